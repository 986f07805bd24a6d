"""The columns: what each one means, where it comes from, and what it may hold."""

from collections.abc import Iterable
from dataclasses import dataclass

import dagster as dg

from synapse_assets.steps.titanic_schema import COLUMNS


@dataclass(frozen=True)
class Column:
    """One column of the prepared table.

    Attributes:
        type: Delta type.
        description: What a value means, with its unit.
        sources: Columns of the input that it is made of.
        allowed: Lowest and highest value; None where any value is right. A column with a range
            is never null.
    """

    type: str
    description: str
    sources: tuple[str, ...]
    allowed: tuple[float, float] | None = None


PREPARED = {
    "passenger_id": Column("long", "Number of the passenger", ("PassengerId",), (0, 10**18)),
    "survived": Column("integer", "1 if the passenger survived, else 0", ("Survived",), (0, 1)),
    "pclass": Column("integer", "Class of the ticket, 1 to 3", ("Pclass",), (1, 3)),
    "name": Column("string", "Name with title", ("Name",)),
    "sex": Column("string", "'male' or 'female'", ("Sex",)),
    "age": Column(
        "double",
        "Age in years; filled with a median where it was missing",
        ("Age", "Name", "Pclass"),
        (0, 120),
    ),
    "sib_sp": Column("integer", "Siblings and spouses aboard", ("SibSp",), (0, 999)),
    "parch": Column("integer", "Parents and children aboard", ("Parch",), (0, 999)),
    "ticket": Column("string", "Number of the ticket", ("Ticket",)),
    "fare": Column("double", "Fare in pounds of 1912", ("Fare", "Pclass"), (0, 1_000_000)),
    "cabin": Column("string", "Cabin, null where unknown", ("Cabin",)),
    "embarked": Column("string", "Port: S, C or Q", ("Embarked",)),
    "title": Column("string", "Title, rare ones as 'Rare'", ("Name",)),
    "family_size": Column("integer", "Members aboard", ("SibSp", "Parch"), (1, 1999)),
    "is_alone": Column("boolean", "Whether the family size is 1", ("SibSp", "Parch")),
    "deck": Column("string", "First letter of the cabin, 'U' where unknown", ("Cabin",)),
    "age_imputed": Column("boolean", "Whether the age was filled", ("Age",)),
}


def input_schema() -> dg.TableSchema:
    """Return the columns of the files that arrive."""
    return dg.TableSchema([dg.TableColumn(name=name, type="string") for name in COLUMNS])


def prepared_schema() -> dg.TableSchema:
    """Return the columns of the prepared table, described."""
    return dg.TableSchema(
        [
            *(
                dg.TableColumn(
                    name=name,
                    type=column.type,
                    # Dagster's open-source UI does not draw the lineage of columns.
                    description=f"{column.description} (from {', '.join(column.sources)})",
                )
                for name, column in PREPARED.items()
            ),
            dg.TableColumn(name="arrival", type="string", description="Name of the arrival"),
        ]
    )


def prepared_lineage() -> dg.TableColumnLineage:
    """Return which columns of the input each prepared column is made of."""
    return lineage({name: column.sources for name, column in PREPARED.items()})


def quarantined_lineage() -> dg.TableColumnLineage:
    """Return which columns of the input the refused rows keep."""
    return lineage({"passenger_id": ("PassengerId",), "reason": COLUMNS, "raw": COLUMNS})


def lineage(sources: dict[str, Iterable[str]]) -> dg.TableColumnLineage:
    """Return a lineage from columns of `titanic_input`."""
    key = dg.AssetKey("titanic_input")
    return dg.TableColumnLineage(
        {
            name: [dg.TableColumnDep(asset_key=key, column_name=column) for column in columns]
            for name, columns in sources.items()
        }
    )

"""The checks: no row is lost, the table is what its readers expect, the model is of use.

They read references and Delta's log, never the data, so they cost the same at any number of rows.
"""

import json

import dagster as dg

from synapse_assets.datasets.table import column_bounds
from synapse_assets.datasets.version import DatasetVersion
from synapse_assets.datastore import Datastore
from synapse_assets.defs.titanic.assets import ARRIVALS
from synapse_assets.defs.titanic.columns import PREPARED

# A share of refused rows above which somebody should look at the arrival.
_MANY_REFUSED = 0.05


@dg.asset_check(
    asset="titanic_prepared",
    additional_ins={
        "titanic_input": dg.AssetIn("titanic_input"),
        "titanic_quarantined": dg.AssetIn("titanic_quarantined"),
    },
    partitions_def=ARRIVALS,
    blocking=True,
)
def rows_are_conserved(
    titanic_prepared: DatasetVersion,
    titanic_quarantined: DatasetVersion,
    titanic_input: DatasetVersion,
) -> dg.AssetCheckResult:
    """Every row of the input is in one of the two tables; counted twice, by different code."""
    rows_in = sum(int(file.properties["rows"]) for file in titanic_input.files)
    prepared, quarantined = titanic_prepared.rows, titanic_quarantined.rows
    return dg.AssetCheckResult(
        passed=rows_in == prepared + quarantined,
        description=f"{rows_in:,} rows in = {prepared:,} prepared + {quarantined:,} quarantined"
        if rows_in == prepared + quarantined
        else f"{rows_in:,} rows came in, but {prepared:,} are prepared and {quarantined:,} "
        "quarantined: look at the log of titanic_prepared for this arrival.",
        metadata={"rows_in": rows_in, "prepared": prepared, "quarantined": quarantined},
    )


@dg.asset_check(asset="titanic_prepared", partitions_def=ARRIVALS, blocking=True)
def columns_are_as_declared(titanic_prepared: DatasetVersion) -> dg.AssetCheckResult:
    """The table has the columns and types that its readers were written for."""
    fields = json.loads(titanic_prepared.schema or "{}")["fields"]
    found = {f["name"]: f["type"] for f in fields if f["name"] != titanic_prepared.partition_by}
    declared = {name: column.type for name, column in PREPARED.items()}
    wrong = [
        f"{name} is {found.get(name, 'missing')} instead of {declared.get(name, 'absent')}"
        for name in {**declared, **found}
        if found.get(name) != declared.get(name)
    ]
    return dg.AssetCheckResult(
        passed=not wrong, description="; ".join(wrong) or f"{len(found)} columns"
    )


@dg.asset_check(asset="titanic_prepared", partitions_def=ARRIVALS, blocking=True)
def values_are_in_range(
    titanic_prepared: DatasetVersion, datastore: Datastore
) -> dg.AssetCheckResult:
    """No value lies outside of what it can mean, and none is missing where it must not be."""
    bounds = column_bounds(datastore, titanic_prepared)
    wrong = []
    ranges = {name: column.allowed for name, column in PREPARED.items() if column.allowed}
    for name, (lowest, highest) in ranges.items():
        column = bounds[name]
        if column.nulls != 0:
            wrong.append(f"{name} is missing in {column.nulls} rows")
        if titanic_prepared.rows == 0:
            continue
        too_low = column.lower is not None and column.lower < lowest
        too_high = column.upper is not None and column.upper > highest
        if too_low or too_high:
            wrong.append(
                f"{name} lies between {column.lower} and {column.upper}, "
                f"and {lowest} to {highest} is allowed"
            )
        elif column.lower is None or column.upper is None:
            wrong.append(f"{name} has no bounds in the log")
    return dg.AssetCheckResult(
        passed=not wrong,
        description="; ".join(wrong) or f"{len(ranges)} columns within their ranges",
    )


@dg.asset_check(
    asset="titanic_quarantined",
    additional_ins={"titanic_prepared": dg.AssetIn("titanic_prepared")},
    partitions_def=ARRIVALS,
)
def few_rows_are_refused(
    titanic_quarantined: DatasetVersion, titanic_prepared: DatasetVersion
) -> dg.AssetCheckResult:
    """A small share of the arrival was refused; a warning, as the good rows go on."""
    rows = titanic_prepared.rows + titanic_quarantined.rows
    share = titanic_quarantined.rows / rows if rows else 0.0
    return dg.AssetCheckResult(
        passed=share <= _MANY_REFUSED,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{titanic_quarantined.rows:,} of {rows:,} rows refused",
        metadata={"share": share},
    )


@dg.asset_check(asset="survival_model")
def model_beats_majority_class(
    survival_model: DatasetVersion, datastore: Datastore
) -> dg.AssetCheckResult:
    """The model predicts better than always answering with the more frequent class."""
    metrics = json.loads(datastore.storage().read_text(survival_model.file("metrics.json")) or "{}")
    accuracy, majority = metrics["accuracy"], metrics["majority_class_accuracy"]
    return dg.AssetCheckResult(
        passed=accuracy > majority,
        description=f"accuracy {accuracy:.3f}, majority class {majority:.3f}",
        metadata={"accuracy": accuracy, "majority_class_accuracy": majority},
    )

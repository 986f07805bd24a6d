"""Turns the landed CSV files into one typed table, and sets refused rows aside with a reason.

Every row of the input comes out in exactly one of the two tables. Text becomes numbers only
where a pattern has vouched for it, so that the step does the same with Spark's ANSI mode on
(the default of Spark 4) and off (Spark 3).
"""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import reduce
from typing import TypeVar
from urllib.parse import unquote

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention
from pyspark.sql.types import StringType, StructField, StructType

from synapse_assets.steps import titanic_rules as rules
from synapse_assets.steps.titanic_schema import COLUMNS, check_header, parse_header

logger = logging.getLogger(__name__)

_MAX_SHOWN_CHARS = 40
# `land` refuses a line with more fields; Spark's parser dies beyond its limit.
_MAX_FIELDS_IN_LINE = 1_000_100

_RAGGED = "_corrupt_record"
# url_decode takes a plus for a space; in a path it is a plus.
_SOURCE_FILE = r"url_decode(replace(regexp_extract(_path, r'([^/]+)\z', 1), '+', '%2B'))"
_TITLE = f"""
    CASE trim(regexp_extract(name, r'{rules.TITLE_IN_NAME}', 1))
    {" ".join(f"WHEN '{found}' THEN '{title}'" for found, title in rules.TITLES.items())}
    ELSE '{rules.OTHER_TITLE}' END
"""

_SNAKE_CASE = {name: re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in COLUMNS}
# Spark does not tell Age from age: the text as it was read has names of its own.
_TEXT = {name: f"{snake_case}_text" for name, snake_case in _SNAKE_CASE.items()}

_Key = TypeVar("_Key", bound=Hashable)


def prepare(
    spark: SparkSession, titanic_input: list[str], report: Callable[..., None]
) -> dict[str, DataFrame]:
    """Return the typed rows as `titanic_prepared` and the refused ones as `titanic_quarantined`.

    A missing age becomes the median of the passenger's title and class, else of the title, else
    of everyone; a missing fare the median of the class; a missing port the most common one; a
    missing SibSp or Parch counts as 0. Of several good rows with one PassengerId the first in
    the order of files and lines is kept, the later ones are refused.

    Args:
        spark: The session to read and compute with.
        titanic_input: The URIs of the CSV files, glob characters escaped.
        report: Called with how many values were filled.

    Raises:
        ValueError: There is no file, or a file's first line is not a header of the 12 columns.
    """
    if not titanic_input:
        raise ValueError("titanic_input holds no file: land at least one CSV file.")
    groups = _group_files(spark, titanic_input)
    checked = reduce(
        DataFrame.unionByName,
        [
            _check_rows(_read_files(spark, paths, header, is_odd), header, is_odd)
            for (header, is_odd), paths in groups.items()
        ],
    )
    # Numbered after the union: before it, each part would begin at 0 again.
    checked = checked.withColumn("_row", F.monotonically_increasing_id())
    # Both tables, the medians and the search for doubles read it: the text is parsed once.
    checked = checked.persist(StorageLevel.MEMORY_AND_DISK)
    kept, doubles = _split_off_doubles(checked.filter("is_bad = 0"))
    fillings, missing = _learn_fillings(kept)
    report("titanic_prepared", **missing)
    refused = _explain_refused(checked.filter("is_bad = 1"))
    return {
        "titanic_prepared": _fill_and_derive(kept, fillings),
        "titanic_quarantined": refused if doubles is None else refused.unionByName(doubles),
    }


# --- reading -------------------------------------------------------------------------------


# Files that Spark can read with one call have one header and one way to find the end of a row.
_Groups = dict[tuple[tuple[str, ...], bool], list[str]]


def _group_files(spark: SparkSession, uris: Sequence[str]) -> _Groups:
    """Find each file's header, and whether its fields hold line breaks, in one pass over lines.

    A quoted field that spans lines leaves an odd number of quotes on its first line. Only files
    with such a line are read with multiLine, which forbids Spark to split them.

    Returns:
        The files by their header and whether they hold line breaks.
    """
    has_all_names = " AND ".join(f"contains(value, '{name}')" for name in COLUMNS)
    found = (
        spark.read.text(list(uris))
        .selectExpr(
            "value",
            "_metadata.file_path AS path",
            "monotonically_increasing_id() AS at",
            """(octet_length(value) - octet_length(replace(value, '"', ''))) % 2 = 1 AS is_odd""",
            f"_metadata.file_block_start = 0 AND {has_all_names} AS is_header",
        )
        .filter("is_odd OR is_header")
        .groupBy("path")
        .agg(
            F.max("is_odd").alias("is_odd"),
            F.expr("min_by(value, at) FILTER (WHERE is_header) AS header"),
        )
        .collect()
    )
    headers = {row.path: row.header for row in found if row.header is not None}
    if len(headers) < len(set(uris)):
        with_header = {_decode_name(path) for path in headers}
        without = sorted({_decode_name(uri.replace("\\", "")) for uri in uris} - with_header)
        raise ValueError(
            f"{', '.join(without) or 'A file'}, line 1: there is no header with the columns "
            f"{', '.join(COLUMNS)}: begin the file with it."
        )
    groups: _Groups = defaultdict(list)
    for row in sorted(found, key=lambda row: str(row.path)):
        header = parse_header(row.header)
        check_header(header, file_name=_decode_name(row.path))
        groups[tuple(header), row.is_odd].append(_escape_glob(unquote(row.path)))
    return groups


def _read_files(
    spark: SparkSession, paths: list[str], header: Sequence[str], is_odd: bool
) -> DataFrame:
    # Under the header's own names: with others Spark would warn that the header does not conform.
    fields = [StructField(name, StringType()) for name in (*header, _RAGGED)]
    rows = (
        spark.read.schema(StructType(fields))
        .option("header", True)
        .option("encoding", "UTF-8")
        .option("quote", '"')
        .option("escape", '"')
        .option("mode", "PERMISSIVE")
        .option("columnNameOfCorruptRecord", _RAGGED)
        .option("multiLine", is_odd)
        .option("maxColumns", _MAX_FIELDS_IN_LINE)
        .option("maxCharsPerColumn", -1)
        .csv(paths)
    )
    return rows.selectExpr(
        *(f"{name} AS {_TEXT[name]}" for name in header),
        _RAGGED,
        "_metadata.file_path AS _path",
        "_metadata.file_block_start AS _block",
    )


def _decode_name(path: str) -> str:
    return unquote(path).rsplit("/", 1)[-1]


def _escape_glob(path: str) -> str:
    return "".join(f"\\{char}" if char in "\\*?[]{}" else char for char in path)


# --- checking ------------------------------------------------------------------------------


def _check_rows(rows: DataFrame, header: Sequence[str], is_odd: bool) -> DataFrame:
    """Return the typed values of each row, whether they are good, and the text of a bad row.

    A value is null where its text is missing or wrong. The reasons are written later, for the
    few rows that need one: sentences for each row here would cost more than all the rest.
    """
    if is_odd:
        # Spark skips white lines itself only where it reads line by line.
        is_white = rf"coalesce({_RAGGED} rlike r'\A[\x01-\x20]*\z', false)"
        rows = rows.filter(f"NOT {is_white}")
    classes = " ".join(f"WHEN '{pclass}' THEN {pclass}" for pclass in rules.CLASSES)
    numbers = rows.selectExpr(
        "*",
        f"{_cast('PassengerId', rules.WHOLE_NUMBER, 'bigint')} AS passenger_id",
        f"CASE {_trim('Survived')} WHEN '0' THEN 0 WHEN '1' THEN 1 END AS survived",
        f"CASE {_trim('Pclass')} {classes} END AS pclass",
        f"nullif({_trim('Name')}, '') AS name",
        f"IF(lower({_trim('Sex')}) IN {rules.SEXES}, lower({_trim('Sex')}), NULL) AS sex",
        f"{_cast('Age', rules.NUMBER, 'double')} AS age",
        f"{_cast('SibSp', rules.SMALL_NUMBER, 'int')} AS sib_sp",
        f"{_cast('Parch', rules.SMALL_NUMBER, 'int')} AS parch",
        f"nullif({_trim('Ticket')}, '') AS ticket",
        f"{_cast('Fare', rules.NUMBER, 'double')} AS fare",
        f"nullif({_trim('Cabin')}, '') AS cabin",
        f"IF(upper({_trim('Embarked')}) IN {rules.PORTS}, upper({_trim('Embarked')}), NULL) "
        "AS embarked",
    )
    is_good = f"""
        {_RAGGED} IS NULL
        AND passenger_id IS NOT NULL AND survived IS NOT NULL AND pclass IS NOT NULL
        AND name IS NOT NULL AND sex IS NOT NULL
        AND IF(age IS NULL, {_is_missing("Age")}, age BETWEEN 0 AND {rules.OLDEST_AGE_YEARS})
        AND IF(fare IS NULL, {_is_missing("Fare")}, fare BETWEEN 0 AND {rules.HIGHEST_FARE_POUNDS})
        AND IF(sib_sp IS NULL, {_is_missing("SibSp")}, sib_sp >= 0)
        AND IF(parch IS NULL, {_is_missing("Parch")}, parch >= 0)
        AND (embarked IS NOT NULL OR {_is_missing("Embarked")})
        AND length(name) <= {rules.MAX_FIELD_CHARS}
        AND coalesce(length(ticket), 0) <= {rules.MAX_FIELD_CHARS}
        AND coalesce(length(cabin), 0) <= {rules.MAX_FIELD_CHARS}
    """
    # With multiLine Spark gives the line ends around a ragged row too.
    ragged = rf"trim(BOTH '\r\n' FROM {_RAGGED})"
    in_file_order = ", ".join(_TEXT[name] for name in header)
    return numbers.selectExpr("*", f"({is_good}) AS is_good").selectExpr(
        "_path",
        "_block",
        # A number, since Spark skips cached batches by their minimum and maximum.
        "IF(is_good, 0, 1) AS is_bad",
        *[
            f"coalesce({name}, IF(is_good, 0, NULL)) AS {name}"
            if name in ("sib_sp", "parch")
            else name
            for name in _SNAKE_CASE.values()
        ],
        f"IF(is_good, {_TITLE}, NULL) AS title",
        f"IF(is_good, NULL, struct({', '.join([*_TEXT.values(), _RAGGED])})) AS refused",
        f"IF(is_good, NULL, coalesce({ragged}, {_encode_csv_line(in_file_order)})) AS raw",
    )


def _trim(name: str) -> str:
    return f"trim({_TEXT[name]})"


def _is_missing(name: str) -> str:
    return f"({_TEXT[name]} IS NULL OR {_trim(name)} = '')"


def _cast(name: str, pattern: str, to: str) -> str:
    # \z and not $, which would let a trailing line break pass.
    return rf"IF({_trim(name)} rlike r'\A{pattern}\z', CAST({_trim(name)} AS {to}), NULL)"


def _encode_csv_line(values: str) -> str:
    return (
        f"to_csv(struct({values}), map('escape', '\"', 'emptyValue', '', "
        "'ignoreLeadingWhiteSpace', 'false', 'ignoreTrailingWhiteSpace', 'false'))"
    )


def _explain_refused(refused: DataFrame) -> DataFrame:
    """Return the quarantine's columns for rows that are ragged or hold a wrong value."""
    is_ragged = f"{_RAGGED} IS NOT NULL"
    long_fields = [
        f"IF(length({_trim(name)}) > {rules.MAX_FIELD_CHARS}, concat('{name} has ', "
        f"length({_trim(name)}), ' characters, the limit is {rules.MAX_FIELD_CHARS}'), NULL)"
        for name in COLUMNS
    ]
    wrong_values = [
        *[_explain_missing(name) for name in ("PassengerId", "Survived", "Pclass", "Name", "Sex")],
        _explain_wrong("PassengerId", "is not a whole number of up to 18 digits"),
        _explain_wrong("Survived", "is not 0 or 1"),
        _explain_wrong("Pclass", "is not 1, 2 or 3"),
        _explain_wrong("Sex", "is not male or female"),
        *_explain_number("Age", "is not a number", above=rules.OLDEST_AGE_YEARS),
        *_explain_number("SibSp", "is not a whole number of up to 3 digits"),
        *_explain_number("Parch", "is not a whole number of up to 3 digits"),
        *_explain_number("Fare", "is not a number", above=rules.HIGHEST_FARE_POUNDS),
        _explain_wrong("Embarked", "is not C, Q or S"),
    ]
    # The values of a ragged row may stand in the wrong columns: its one reason is its length.
    reason = (
        f"IF({is_ragged}, concat_ws('; ', {_explain_ragged()}, {', '.join(long_fields)}), "
        f"concat_ws('; ', {', '.join([*wrong_values, *long_fields])}))"
    )
    return refused.select("*", "refused.*").selectExpr(
        f"{_SOURCE_FILE} AS source_file",
        f"substring({_TEXT['PassengerId']}, 1, 100) AS passenger_id",
        f"{reason} AS reason",
        "raw",
    )


def _explain_missing(name: str) -> str:
    return f"IF({_is_missing(name)}, '{name} is missing', NULL)"


def _explain_wrong(name: str, problem: str) -> str:
    value = _SNAKE_CASE[name]
    return (
        f"IF({value} IS NULL AND NOT {_is_missing(name)}, "
        f"concat('{name} \\'', {_cut(name)}, '\\' {problem}'), NULL)"
    )


def _explain_number(name: str, problem: str, *, above: int | None = None) -> list[str]:
    value = _SNAKE_CASE[name]
    reasons = [
        _explain_wrong(name, problem),
        f"IF({value} < 0, concat('{name} ', {_cut(name)}, ' is negative'), NULL)",
    ]
    if above is not None:
        too_high = f"concat('{name} ', {_cut(name)}, ' is above {above}')"
        reasons.append(f"IF({value} > {above}, {too_high}, NULL)")
    return reasons


def _cut(name: str) -> str:
    text = _trim(name)
    return (
        f"IF(length({text}) > {_MAX_SHOWN_CHARS}, "
        f"concat(substring({text}, 1, {_MAX_SHOWN_CHARS - 1}), '…'), {text})"
    )


def _explain_ragged() -> str:
    # A doubled quote inside a quoted field reads as two quoted parts side by side, so that
    # what is left outside of quotes has one comma per end of a field.
    outside = f"""regexp_replace({_RAGGED}, '"[^"]*"?', '')"""
    fields = f"1 + length({outside}) - length(replace({outside}, ',', ''))"
    return (
        f"IF({fields} = {len(COLUMNS)}, 'a quote in the row is not closed or doubled, so that its "
        f"fields are not {len(COLUMNS)}', concat('the row has ', {fields}, "
        f"IF({fields} = 1, ' field', ' fields'), ', the header has {len(COLUMNS)}'))"
    )


# --- doubles -------------------------------------------------------------------------------


def _split_off_doubles(good: DataFrame) -> tuple[DataFrame, DataFrame | None]:
    """Return the rows to keep, and the quarantine's columns for later rows of one PassengerId."""
    doubled = (
        good.groupBy("passenger_id")
        .agg(F.count(F.lit(1)).alias("rows"))
        .filter("rows > 1")
        .select("passenger_id")
        .persist(StorageLevel.MEMORY_AND_DISK)
    )
    if doubled.count() == 0:
        return good, None
    # Rows of one block of a file are numbered in their order; blocks are not.
    in_file_order = Window.partitionBy("passenger_id").orderBy("_path", "_block", "_row")
    later = (
        good.select("passenger_id", "_path", "_block", "_row")
        .join(doubled, "passenger_id", "left_semi")
        .select("_row", F.row_number().over(in_file_order).alias("place"))
        .filter("place > 1")
        .select("_row")
        .persist(StorageLevel.MEMORY_AND_DISK)
    )
    values = [
        f"regexp_replace(CAST({column} AS string), '[.]0$', '') AS {column}"
        if column in ("age", "fare")
        else column
        for column in _SNAKE_CASE.values()
    ]
    doubles = good.join(later, "_row", "left_semi").selectExpr(
        f"{_SOURCE_FILE} AS source_file",
        "CAST(passenger_id AS string) AS passenger_id",
        "concat('PassengerId ', passenger_id, ' is taken by an earlier row') AS reason",
        f"{_encode_csv_line(', '.join(values))} AS raw",
    )
    return good.join(later, "_row", "left_anti"), doubles


# --- filling -------------------------------------------------------------------------------


def _learn_fillings(kept: DataFrame) -> tuple[rules.Fillings, dict[str, int]]:
    """Count the known values once, and take the medians from the counts.

    Ages are counted by hundredths of a year, so that however many rows there are, at most
    15 x 12,001 counts come to the driver, and the medians are exact to that.

    Returns:
        What to fill, and how many values are to be filled with it.
    """
    counts = (
        kept.selectExpr("title", "pclass", "fare", "embarked", "round(age, 2) AS age")
        .groupBy("title", "pclass", "age")
        .agg(
            F.count(F.lit(1)).alias("rows"),
            F.count("fare").alias("fares"),
            *[F.count(F.when(F.col("embarked") == port, 1)).alias(port) for port in rules.PORTS],
        )
        .collect()
    )
    rows = sum(row.rows for row in counts)
    ports = {port: sum(row[port] for row in counts) for port in rules.PORTS}
    known = [row for row in counts if row.age is not None]
    missing = {
        "ages_imputed": rows - sum(row.rows for row in known),
        "fares_imputed": rows - sum(row.fares for row in counts),
        "ports_imputed": rows - sum(ports.values()),
    }
    logger.info("%d rows kept, %d ages to fill", rows, missing["ages_imputed"])
    fares = _compute_median_fares(kept) if missing["fares_imputed"] else {}
    fillings = rules.Fillings(
        age_by_title_and_class=_compute_medians(
            [((row.title, row.pclass), row.age, row.rows) for row in known]
        ),
        age_by_title=_compute_medians([(row.title, row.age, row.rows) for row in known]),
        age=_compute_medians([(None, row.age, row.rows) for row in known]).get(
            None, rules.AGE_WHERE_NONE_IS_KNOWN
        ),
        fare_by_class={pclass: fare for pclass, fare in fares.items() if pclass is not None},
        fare=fares.get(None, rules.FARE_WHERE_NONE_IS_KNOWN),
        # The first of equals, which is also the answer where no port is known.
        port=max(rules.PORTS, key=lambda port: ports[port]),
    )
    return fillings, missing


def _compute_medians(counted: Iterable[tuple[_Key, float, int]]) -> dict[_Key, float]:
    """Return the lower median per key of (key, value, how often)."""
    by_key: dict[_Key, list[tuple[float, int]]] = defaultdict(list)
    for key, value, times in counted:
        by_key[key].append((value, times))
    medians: dict[_Key, float] = {}
    for key, values in by_key.items():
        half = sum(times for _, times in values) / 2
        seen = 0
        for value, times in sorted(values):
            seen += times
            if seen >= half:
                medians[key] = value
                break
    return medians


def _compute_median_fares(kept: DataFrame) -> dict[int | None, float]:
    """Return the median fare per class, and over all of them under None."""
    found = kept.rollup("pclass").agg(F.percentile_approx("fare", 0.5).alias("fare")).collect()
    return {row.pclass: row.fare for row in found if row.fare is not None}


def _fill_and_derive(kept: DataFrame, fillings: rules.Fillings) -> DataFrame:
    by_both, by_title = fillings.age_by_title_and_class, fillings.age_by_title
    ages = [f"WHEN title = '{t}' AND pclass = {c} THEN {by_both[t, c]}D" for t, c in by_both]
    ages += [f"WHEN title = '{title}' THEN {age}D" for title, age in by_title.items()]
    fares = [f"WHEN pclass = {c} THEN {fare}D" for c, fare in fillings.fare_by_class.items()]
    return kept.selectExpr(
        "*",
        "sib_sp + parch + 1 AS family_size",
        f"regexp_extract(upper(cabin), '{rules.DECK_IN_CABIN}', 1) AS letter",
    ).selectExpr(
        *("passenger_id", "survived", "pclass", "name", "sex"),
        f"coalesce(age, CASE {' '.join(ages)} WHEN true THEN {fillings.age}D END) AS age",
        *("sib_sp", "parch", "ticket"),
        f"coalesce(fare, CASE {' '.join(fares)} WHEN true THEN {fillings.fare}D END) AS fare",
        "cabin",
        f"coalesce(embarked, '{fillings.port}') AS embarked",
        *("title", "family_size"),
        "family_size = 1 AS is_alone",
        f"IF(letter != '', letter, '{rules.UNKNOWN_DECK}') AS deck",
        "age IS NULL AS age_imputed",
    )

import datetime as dt
import subprocess
import sys
from typing import Any

import dagster as dg
import pytest
from syrupy.assertion import SnapshotAssertion

from synapse_assets.definitions import defs
from synapse_assets.defs.resources import resources_of
from synapse_assets.errors import ConfigurationError

# Change with the code, and are tested where they are made.
_UNSTABLE = {"code_version", "dagster/column_schema", "dagster/column_lineage"}


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return defs()


def describe_asset(spec: dg.AssetSpec) -> dict[str, Any]:
    return {
        "deps": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
        "partitions": getattr(spec.partitions_def, "name", None),
        "group": spec.group_name,
        "kinds": sorted(spec.kinds),
        "owners": list(spec.owners),
        "automation": spec.automation_condition is not None,
        "has_code_version": spec.code_version is not None,
        "has_description": bool(spec.description),
        "metadata": {
            key: value
            for key, value in sorted(spec.metadata.items())
            if key not in _UNSTABLE and not key.startswith("dagster")
        },
    }


def test_asset_graph(definitions: dg.Definitions, snapshot: SnapshotAssertion) -> None:
    graph = definitions.resolve_asset_graph()
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    checks = {
        f"{key.asset_key.to_user_string()}/{key.name}": {
            "blocking": graph.get_check_spec(key).blocking,
            "has_description": bool(graph.get_check_spec(key).description),
        }
        for key in sorted(graph.asset_check_keys)
    }
    assert {
        "assets": {name: describe_asset(spec) for name, spec in sorted(specs.items())},
        "checks": checks,
        "resources": sorted(definitions.resources or {}),
    } == snapshot


def test_column_lineage_leads_to_columns_that_exist(definitions: dg.Definitions) -> None:
    specs = {spec.key: spec for spec in definitions.resolve_all_asset_specs()}
    for spec in specs.values():
        lineage = spec.metadata.get("dagster/column_lineage")
        for dependencies in lineage.deps_by_column.values() if lineage else []:
            for dependency in dependencies:
                schema = specs[dependency.asset_key].metadata["dagster/column_schema"]
                assert dependency.column_name in {column.name for column in schema.columns}


def test_loading_the_definitions_loads_no_engine() -> None:
    code = (
        "import sys; from synapse_assets.definitions import defs; defs(); "
        "heavy = {'azure', 'adlfs', 'deltalake', 'hdfs_native', 'fsspec', 'pandas', 'polars', "
        "'pyarrow', 'pyspark', 'sklearn', 'matplotlib', 'dagster_azure', 'dagster_pyspark'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_deployment_whose_places_are_not_named_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"azure is not complete: set .*_ML_WORKSPACE\."):
        resources_of("azure")


def test_unknown_deployment_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cloud9 is unknown"):
        resources_of("cloud9")


def test_table_that_nobody_adds_to_is_a_warning_and_not_an_error(
    definitions: dg.Definitions,
) -> None:
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    policy = specs["titanic_prepared"].freshness_policy
    assert policy == dg.FreshnessPolicy.time_window(
        warn_window=dt.timedelta(hours=24), fail_window=dt.timedelta(days=365)
    )
    assert {name for name, spec in specs.items() if spec.freshness_policy} == {"titanic_prepared"}

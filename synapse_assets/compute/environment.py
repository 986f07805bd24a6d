"""What a step ran on, and whether that has changed since the last good run."""

from collections.abc import Mapping

import dagster as dg

METADATA_KEY = "environment"


def find_changes(
    context: dg.AssetExecutionContext, key: dg.AssetKey, environment: Mapping[str, str]
) -> list[str]:
    """Return what is other than when the asset was last materialized, as 'name old -> new'.

    A version that changes by itself (a pool's runtime, a package of an image) explains results
    that change without a change of code.
    """
    before = _last_environment(context.instance, key)
    if before is None:
        return []
    names = sorted({*before, *environment})
    return [
        f"{name} {before.get(name, 'none')} -> {environment.get(name, 'none')}"
        for name in names
        if before.get(name) != environment.get(name)
    ]


def _last_environment(instance: dg.DagsterInstance, key: dg.AssetKey) -> Mapping[str, str] | None:
    event = instance.get_latest_materialization_event(key)
    materialization = None if event is None else event.asset_materialization
    if materialization is None:
        return None
    value = materialization.metadata.get(METADATA_KEY)
    return value.value if isinstance(value, dg.JsonMetadataValue) else None  # type: ignore[return-value]

"""The commands on arrivals: `synapse-assets arrivals list`, `replay`, `ignore` and `retire`."""

import argparse
import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from synapse_assets import settings

if TYPE_CHECKING:
    import dagster as dg

    from synapse_assets.arrivals.overview import Overview
    from synapse_assets.datastore import Datastore

_RUN_ID_DIGITS = 8


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands on arrivals to the command line."""
    arrivals = commands.add_parser("arrivals", help="list, replay, ignore or retire arrivals")
    verbs = arrivals.add_subparsers(required=True, metavar="VERB")

    def add(verb: str, run: Callable[..., int], about: str) -> argparse.ArgumentParser:
        parser = verbs.add_parser(verb, help=about)
        parser.set_defaults(run=run)
        return parser

    add("list", _list, "list the arrivals in the landing folder, and what became of them")
    replay = add("replay", _replay, "have the sensor ask for an arrival once more")
    ignore = add("ignore", _ignore, "have the sensor leave an arrival alone until it changes")
    ignore.add_argument("--undo", action="store_true", help="ignore it no more")
    for parser in (replay, ignore):
        parser.add_argument("arrival", metavar="NAME", help="an arrival, as `list` names it")
    retire = add("retire", _retire, "fold old partitions into one, without reading their data")
    retire.add_argument(
        "--before",
        metavar="DATE",
        type=dt.date.fromisoformat,
        required=True,
        help="those that arrived before this day (UTC), as in 2026-01-31",
    )


def _list(_: argparse.Namespace) -> int:
    from synapse_assets.arrivals.overview import look_over
    from synapse_assets.console import format_columns
    from synapse_assets.defs.titanic.sensors import LIMITS, TITANIC_ARRIVALS

    with _opened() as (datastore, instance):
        found = look_over(
            TITANIC_ARRIVALS, datastore, instance, settle_seconds=LIMITS.settle_seconds
        )
        header = ["arrival", "blobs", "size", "state", "last run (UTC)"]
        print("\n".join(format_columns(header, [_row(each) for each in found])))
    return 0


def _row(overview: "Overview") -> list[str]:
    from synapse_assets.console import format_size

    arrival, run = overview.arrival, overview.run
    when = "-"
    if run is not None:
        created = dt.datetime.fromtimestamp(run.created, tz=dt.timezone.utc)
        when = f"{run.run_id[:_RUN_ID_DIGITS]} {created:%Y-%m-%d %H:%M:%S}"
    size = format_size(arrival.size)
    return [arrival.name, f"{arrival.blobs:,}", size, overview.state, when]


def _replay(options: argparse.Namespace) -> int:
    from synapse_assets.arrivals.overview import replay
    from synapse_assets.defs.titanic.sensors import TITANIC_ARRIVALS

    with _opened() as (datastore, instance):
        replay(TITANIC_ARRIVALS, datastore, instance, options.arrival)
    print(
        f"{options.arrival}: the sensor '{TITANIC_ARRIVALS.sensor}' asks for it once more in its "
        "next tick."
    )
    return 0


def _ignore(options: argparse.Namespace) -> int:
    from synapse_assets.arrivals.overview import heed, ignore
    from synapse_assets.defs.titanic.sensors import TITANIC_ARRIVALS

    with _opened() as (datastore, instance):
        if not options.undo:
            ignore(TITANIC_ARRIVALS, datastore, instance, options.arrival)
            print(f"{options.arrival}: the sensor leaves it alone until its blobs change.")
        elif heed(TITANIC_ARRIVALS, datastore, instance, options.arrival):
            print(f"{options.arrival}: the sensor looks at it again in its next tick.")
        else:
            print(f"{options.arrival}: nothing to do, it was not ignored.")
    return 0


def _retire(options: argparse.Namespace) -> int:
    from synapse_assets.arrivals.retire import retire
    from synapse_assets.defs.titanic.automation import WHOLE
    from synapse_assets.defs.titanic.sensors import TITANIC_ARRIVALS

    with _opened() as (datastore, instance):
        retired = retire(
            TITANIC_ARRIVALS,
            datastore,
            instance,
            assets=_assets(),
            before=options.before,
            tags=WHOLE,
        )
    if not retired.partitions:
        print(f"Nothing to do: no partition that can be retired is from before {options.before}.")
        return 0
    for name, files in retired.files.items():
        print(f"{name}: {files:,} {'file' if files == 1 else 'files'} moved.")
    print(f"{len(retired.partitions):,} partitions are now one, '{retired.into}'.")
    return 0


def _assets() -> "list[dg.AssetKey]":
    """Return the assets that have the arrivals as their partitions."""
    from synapse_assets.definitions import defs
    from synapse_assets.defs.titanic.assets import ARRIVALS

    graph = defs().resolve_asset_graph()
    return [
        key
        for key in graph.toposorted_asset_keys
        if graph.get(key).is_materializable and graph.get(key).partitions_def == ARRIVALS
    ]


@contextmanager
def _opened() -> Iterator[tuple["Datastore", "dg.DagsterInstance"]]:
    from synapse_assets import pipeline

    with (
        pipeline.open_instance(settings.dagster_home()) as instance,
        pipeline.open_datastore(instance, settings.deployment()) as datastore,
    ):
        yield datastore, instance

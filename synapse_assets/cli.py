"""The command line: `synapse-assets run`, `ui` and others; see also `cli_*`."""

import argparse
import dataclasses
import gc
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from synapse_assets import cli_arrivals, cli_datasets, cli_predict, settings
from synapse_assets.errors import SynapseAssetsError

_SAMPLE_ROWS = 891
_SAMPLE_SEED = 1912


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 for success, 1 for a failure, 130 for an interruption."""
    started = time.monotonic()
    options = _parser().parse_args(arguments)
    options.started = started
    try:
        sys.exit(options.run(options))
    except (SynapseAssetsError, ValueError) as e:
        print(f"synapse-assets: {e}", file=sys.stderr)
        sys.exit(1)
    except OSError as e:
        print(f"synapse-assets: {e.filename or ''}: {e.strerror or e}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nsynapse-assets: interrupted; what was committed before is whole.", file=sys.stderr)
        sys.exit(130)
    finally:
        # Else Python looks at each object of Dagster once more when it ends, for 0.4 s.
        gc.freeze()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="synapse-assets", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="materialize the whole pipeline for one file")
    run.add_argument("--input", type=Path, help="a CSV file; a generated sample if not given")
    run.set_defaults(run=_run)

    sample = commands.add_parser("sample", help="write a CSV file in the form of Titanic.csv")
    sample.add_argument("--rows", type=int, default=_SAMPLE_ROWS, help="number of passengers")
    sample.add_argument("--seed", type=int, default=_SAMPLE_SEED, help="same seed, same bytes")
    sample.add_argument("--out", type=Path, required=True, help="file to write")
    sample.set_defaults(run=_sample)

    cli_arrivals.add_commands(commands)
    cli_datasets.add_commands(commands)
    cli_predict.add_commands(commands)

    services = commands.add_parser(
        "services",
        help="run Azurite, HDFS and what stands in for Synapse and Azure ML until Ctrl-C",
    )
    services.add_argument(
        "--fetch", action="store_true", help="only fetch what they and Spark's driver are made of"
    )
    services.set_defaults(run=_services)

    emulator = commands.add_parser(
        "emulator", help="run what stands in for Synapse and Azure ML alone until Ctrl-C"
    )
    emulator.add_argument(
        "--port", type=int, default=10_100, help="Synapse's port on 127.0.0.1 (default: 10100)"
    )
    emulator.add_argument(
        "--pool",
        action="append",
        metavar="NAME",
        help="a Spark pool (default: spark01); repeatable",
    )
    emulator.add_argument(
        "--master",
        default="local[2]",
        help="Spark master: 'local[2]' (the default) or 'spark://host:port'",
    )
    emulator.set_defaults(run=_emulator)

    doctor = commands.add_parser(
        "doctor", help="say what is right with the deployment, what is not, and what to do"
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object instead")
    doctor.set_defaults(run=_doctor)

    ui = commands.add_parser("ui", help="open the Dagster UI on this project")
    ui.add_argument("--port", type=int, default=3000, help="port on 127.0.0.1")
    ui.set_defaults(run=_ui)
    return parser


def _sample(options: argparse.Namespace) -> int:
    from synapse_assets.sample import write_sample

    write_sample(options.out, rows=options.rows, seed=options.seed)
    size = options.out.stat().st_size
    seconds = time.monotonic() - options.started
    print(f"{options.out}: {options.rows:,} rows, {size:,} bytes, {seconds:.1f} s")
    return 0


def _own_sample() -> Path:
    """Return the sample that stands in where no input is given, written on first use."""
    from synapse_assets.sample import SAMPLE_ARRIVAL, write_sample

    path = settings.state_folder() / "sample" / f"{SAMPLE_ARRIVAL}.csv"
    if not path.exists():
        write_sample(path, rows=_SAMPLE_ROWS, seed=_SAMPLE_SEED)
    return path


def _run(options: argparse.Namespace) -> int:
    from synapse_assets.compute.java import require_java
    from synapse_assets.steps.land import check_header

    # Whatever would stop the run is looked for before any of the slow imports.
    require_java()
    source = options.input or _own_sample()
    check_header(source)

    # Modules stay: to look for garbage among them would take a fifth of the time of the imports.
    gc.disable()
    from synapse_assets import pipeline
    from synapse_assets.console import Console
    from synapse_assets.definitions import defs

    gc.freeze()
    gc.enable()

    home = settings.dagster_home()
    _require_services(home)
    log_file = home / "logs" / f"run-{time.strftime('%Y%m%d-%H%M%S')}.log"
    console = Console(log_file, started=options.started)
    with (
        pipeline.open_instance(home) as instance,
        pipeline.open_datastore(instance, settings.deployment()) as datastore,
        console.capture(),
    ):
        arrival = pipeline.land_file(datastore, source)
        console.say(f"{source} has landed as the arrival '{arrival}'.")
        for run_id in pipeline.end_dead_runs(instance):
            console.say(f"Run {run_id} was killed; what it had not committed is made again.")
        pipeline.register_arrivals(instance, datastore)
        tags = pipeline.observe_arrival(instance, datastore, arrival)
        definitions = defs()
        stale = pipeline.find_stale(instance, definitions, datastore, arrival)
        outcome = pipeline.Outcome(success=True)
        if stale:
            console.plan(stale)
            outcome = pipeline.execute(
                instance,
                definitions,
                arrival=arrival,
                selection=list(stale),
                tags=tags,
                on_event=console.on_event,
            )
        console.summarize(
            pipeline.summarize(instance, definitions, datastore, arrival),
            stale=stale,
            seconds=time.monotonic() - options.started,
        )
    for failure in outcome.failures:
        console.say(f"FAILED  {failure}")
    if not outcome.success:
        console.say(f"The whole log: {console.log_file}")
        return 1
    console.say("Next: `make ui` shows the lineage, the plots and the logs in your browser.")
    return 0


def _require_services(home: Path) -> None:
    """Look whether services elsewhere answer; what is on this machine is found out at once."""
    is_elsewhere = "://" in os.environ.get(settings.DATASTORE, "") or settings.LIVY in os.environ
    if settings.deployment() == "local" and not is_elsewhere:
        return
    from synapse_assets.doctor import require_reachable

    require_reachable(deployment=settings.deployment(), home=home)


def _services(options: argparse.Namespace) -> int:
    from synapse_assets.services.supervisor import fetch_all, run_services

    if options.fetch:
        fetch_all()
    else:
        run_services()
    return 0


def _emulator(options: argparse.Namespace) -> int:
    from synapse_assets.services.supervisor import run_emulator

    pools = options.pool or ("spark01",)
    run_emulator(port=options.port, pools=pools, master=options.master)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from synapse_assets.doctor import Finding, examine

    # What the SDK logs of a failure is in the finding, too.
    logging.getLogger("azure").setLevel(logging.CRITICAL)
    marks = {"ok": "ok", "warning": "! ", "failed": "!!", "skipped": "--"}
    counts = dict.fromkeys(marks, 0)
    found: list[Finding] = []
    for finding in examine(deployment=settings.deployment(), home=settings.dagster_home()):
        found.append(finding)
        counts[finding.status] += 1
        if not options.json:
            print(f"{marks[finding.status]}  {finding.name:<10}  {finding.found}", flush=True)
            if finding.remedy:
                print(f"{'':<16}{finding.remedy}", flush=True)
    if options.json:
        findings = [dataclasses.asdict(finding) for finding in found]
        result = {"deployment": settings.deployment(), "counts": counts, "findings": findings}
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        seconds = time.monotonic() - options.started
        print(f"\n{told} ({seconds:.1f} s)")
    return 1 if counts["failed"] else 0


def _ui(options: argparse.Namespace) -> int:
    from synapse_assets.compute.java import require_java

    require_java()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", options.port))
        except OSError as e:
            raise SynapseAssetsError(
                f"Port {options.port} is taken ({e.strerror}). Stop what uses it, or choose "
                f"another: make ui PORT={options.port + 1}"
            ) from e

    from synapse_assets import pipeline

    home = settings.dagster_home()
    _require_services(home)
    with (
        pipeline.open_instance(home) as instance,
        pipeline.open_datastore(instance, settings.deployment()) as datastore,
    ):
        pipeline.end_dead_runs(instance)
        if not pipeline.register_arrivals(instance, datastore):
            pipeline.land_file(datastore, _own_sample())
            pipeline.register_arrivals(instance, datastore)
    project = settings.project_folder()
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(project / "workspace.yaml")]
    command += ["--host", "127.0.0.1", "--port", str(options.port)]
    print(f"Dagster's UI comes up on http://127.0.0.1:{options.port} (Ctrl-C ends it).", flush=True)
    os.chdir(project)
    os.execv(sys.executable, command)  # noqa: S606 -- this process becomes dagster's

"""Measure the pipeline against plain scripts and plain Dagster, in one run on this machine.

Everything is measured from outside, process start to process end, and interleaved: bare, plain,
ours, bare, plain, ours ... Nothing here fails because something was slow.
"""

import argparse
import datetime as dt
import functools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import psutil

from benchmarks.measure import Measurement, measure
from benchmarks.report import Results, format_page, format_tables
from synapse_assets.compute.java import require_java
from synapse_assets.compute.spark import LocalSpark, class_archive
from synapse_assets.datastore import Datastore
from synapse_assets.sample import write_sample

_ROWS = (891, 2_000_000)
_VARIANTS = ("bare", "plain", "ours")
_REPEATS = 3
_SEED = 1912
_PAGE = Path("docs/performance.md")
_PACKAGES = ("dagster", "pyspark", "pyarrow", "scikit-learn", "deltalake")

_Measure = Callable[..., Measurement]

_IMPORT_REPEATS = 9
_IMPORTS = {
    "import dagster": "import dagster",
    "import synapse_assets.definitions": "import synapse_assets.definitions",
    "load the definitions": "from synapse_assets.definitions import defs; defs()",
}
# What the installed `synapse-assets` does.
_OURS = [sys.executable, "-c", "from synapse_assets.cli import main; main()", "run", "--input"]


def main() -> None:
    options = _parse()
    results = Results(machine=_describe_machine(), repeats=options.repeats)
    # As `make` does when it installs.
    class_archive.make()
    with tempfile.TemporaryDirectory(prefix="synapse-assets-bench-") as scratch:
        _warm_up(options.variants, Path(scratch))
        for _ in range(_IMPORT_REPEATS):
            for name, code in _IMPORTS.items():
                results.imports.setdefault(name, []).append(_measure_import(code))
        for rows in options.rows:
            source = Path(scratch, f"{rows}-rows.csv")
            write_sample(source, rows=rows, seed=_SEED)
            # The last round is for memory alone.
            for repeat in range(options.repeats + 1):
                with_memory = repeat == options.repeats
                kept = results.memory if with_memory else results.runs
                # Another one goes first each time, and none pays for what another left to write.
                first = repeat % len(options.variants)
                for variant in [*options.variants[first:], *options.variants[:first]]:
                    os.sync()
                    with tempfile.TemporaryDirectory(dir=scratch) as folder:
                        run = functools.partial(measure, with_memory=with_memory)
                        for name, measured in _RUN[variant](source, Path(folder), run).items():
                            kept.setdefault((rows, name), []).append(measured)
                            what = f"{measured.seconds:.1f} s"
                            if with_memory:
                                what = f"{measured.tree / 2**20:,.0f} MiB"
                            print(f"{rows:,} rows, round {repeat + 1}, {name}: {what}", flush=True)
            source.unlink()
    print(f"\n{format_tables(results)}")
    if options.write is not None:
        options.write.write_text(format_page(results), encoding="utf-8")
        print(f"Written to {options.write}.")
    else:
        print(f"Not written to {_PAGE}: only a part was measured, or fewer than {_REPEATS} times.")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=_ROWS, help="sizes of the input")
    parser.add_argument("--repeats", type=int, default=_REPEATS, help="runs of each variant")
    parser.add_argument("--variants", nargs="+", choices=_VARIANTS, default=_VARIANTS)
    parser.add_argument(
        "--write", type=Path, help=f"page to write; {_PAGE} where everything is measured"
    )
    options = parser.parse_args()
    whole = {*options.rows} >= {*_ROWS} and {*options.variants} == {*_VARIANTS}
    if options.write is None and whole and options.repeats >= _REPEATS:
        options.write = _PAGE
    return options


def _warm_up(variants: Sequence[str], scratch: Path) -> None:
    """Run everything once, unmeasured: byte code is written, files are in the page cache."""
    source = scratch / "warm-up.csv"
    write_sample(source, rows=_ROWS[0], seed=_SEED)
    for variant in variants:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            _RUN[variant](source, Path(folder), measure)
            print(f"warmed up: {variant}", flush=True)


def _run_bare(source: Path, folder: Path, run: _Measure) -> dict[str, Measurement]:
    data = folder / "data"
    commands = [
        _python("benchmarks.bare_prepare", source, data, _spark_conf()),
        _python("benchmarks.bare_train", data),
    ]
    return {"bare": run(commands, environment=_environment(folder), log=folder / "log")}


def _run_plain(source: Path, folder: Path, run: _Measure) -> dict[str, Measurement]:
    environment = _environment(folder)
    home = Path(environment["DAGSTER_HOME"])
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    command = _python("benchmarks.plain_dagster", source, folder / "data", _spark_conf())
    return {"plain": run([command], environment=environment, log=folder / "log")}


def _run_ours(source: Path, folder: Path, run: _Measure) -> dict[str, Measurement]:
    commands = [[*_OURS, str(source)]]
    environment, log = _environment(folder), folder / "log"
    return {
        name: run(commands, environment=environment, log=log) for name in ("ours", "ours, again")
    }


_RUN: dict[str, Callable[[Path, Path, _Measure], dict[str, Measurement]]] = {
    "bare": _run_bare,
    "plain": _run_plain,
    "ours": _run_ours,
}


def _python(module: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def _spark_conf() -> str:
    # From the compute target itself, so that all variants always have the same session. Handed
    # over as text: the bare scripts do not pay for an import of Dagster.
    datastore = Datastore(root=".")
    spark = LocalSpark(datastore=datastore)
    return json.dumps({**spark.spark_conf(spark.asked())})


def _environment(folder: Path) -> dict[str, str]:
    # Byte code that is never kept would be made anew in each process: nobody who installed it
    # with pip pays for that.
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {
        **inherited,
        "JAVA_HOME": str(require_java()),
        "PYSPARK_PYTHON": sys.executable,
        "DAGSTER_HOME": str(folder / "home"),
        "SYNAPSE_ASSETS_DEPLOYMENT": "local",
        "SYNAPSE_ASSETS_DATASTORE": str(folder / "datastore"),
    }


def _measure_import(code: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        environment = _environment(Path(folder))
        command: Sequence[str] = [sys.executable, "-c", code]
        return measure([command], environment=environment, log=Path(folder, "log")).seconds


def _describe_machine() -> dict[str, str]:
    java = str(require_java() / "bin" / "java")
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    found = re.search(r'version "([^"]+)"', told)
    return {
        "date": dt.datetime.now(tz=dt.timezone.utc).date().isoformat(),
        "cores": str(psutil.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "system": f"{platform.system()} on {platform.machine()}",
        "Java": found[1] if found else "unknown",
        "Python": platform.python_version(),
        **{package: metadata.version(package) for package in _PACKAGES},
    }


if __name__ == "__main__":
    main()

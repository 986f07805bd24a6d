import importlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest

from synapse_assets.compute import bundle
from synapse_assets.compute.bundle import Bundle
from synapse_assets.compute.step import Step
from synapse_assets.datastore import Datastore
from synapse_assets.errors import BundleError, ConfigurationError

Package = Callable[..., str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Return a function that writes modules of a new package `project.steps`."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(**modules: str) -> str:
        folder = tmp_path / "project" / "steps"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / "__init__.py").write_text("import dagster\n")
        (folder / "__init__.py").write_text('"""Steps."""\n')
        for name, source in modules.items():
            (folder / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return "project.steps"

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "project"]:
        del sys.modules[name]


def names_in(made: Bundle) -> set[str]:
    return set(zipfile.ZipFile(BytesIO(made.content)).namelist())


def test_same_code_makes_the_same_bytes() -> None:
    first = Bundle.of_module("synapse_assets.steps.land")
    assert first == Bundle.of_module("synapse_assets.steps.land")


def test_bundle_holds_the_step_the_runner_and_what_they_import(package: Package) -> None:
    package(a="from project.steps import b\nfrom .c import x\n", b="", c="x = 1\n", d="")
    assert names_in(Bundle.of_module("project.steps.a")) == {
        "__main__.py",
        "project/__init__.py",
        "project/steps/__init__.py",
        "project/steps/a.py",
        "project/steps/b.py",
        "project/steps/c.py",
        "synapse_assets/__init__.py",
        "synapse_assets/compute/__init__.py",
        "synapse_assets/compute/channel.py",
        "synapse_assets/compute/runner.py",
        "synapse_assets/datasets/__init__.py",
        "synapse_assets/datasets/downloads.py",
        "synapse_assets/datasets/handlers.py",
        "synapse_assets/datastore/__init__.py",
        "synapse_assets/datastore/blob.py",
        "synapse_assets/datastore/hadoop.py",
        "synapse_assets/datastore/hdfs.py",
        "synapse_assets/datastore/storage.py",
        "synapse_assets/errors.py",
        "vendored/dagster_pipes/__init__.py",
    }


def test_packages_above_the_step_are_stubs(package: Package) -> None:
    package(a="")
    archive = zipfile.ZipFile(BytesIO(Bundle.of_module("project.steps.a").content))
    assert archive.read("project/__init__.py") == b""
    assert archive.read("project/steps/__init__.py") == b'"""Steps."""\n'
    assert archive.read("synapse_assets/__init__.py") == b""


def test_bundled_runner_imports_without_dagster_or_this_package(tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    path.write_bytes(Bundle.of_module("synapse_assets.steps.land").content)
    code = (
        f"import sys; sys.path.insert(0, {str(path)!r}); "
        "import synapse_assets.compute.runner, synapse_assets.steps.land; "
        "heavy = {'dagster', 'pyspark', 'pyarrow', 'deltalake', 'pandas', 'polars'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        f"assert synapse_assets.compute.runner.__file__.startswith({str(path)!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import project.other", r"project\.steps\.a, line 1 imports project\.other, which lies"),
        ("def f():\n    from project import other", "line 2 imports project"),
        ("import dagster as dg", "imports dagster, which is not installed where steps run"),
        ("import no_such_library", "imports no_such_library, which is not installed here"),
        ("from project.steps import b", None),
        ("from project.steps.nowhere import b", "no module project.steps.nowhere to ship"),
        ("def f(:", "has a syntax error"),
    ],
)
def test_imports_are_checked_before_anything_is_sent(
    package: Package, source: str, message: str | None
) -> None:
    package(a=source, b="")
    if message is None:
        Bundle.of_module("project.steps.a")
        return
    with pytest.raises(BundleError, match=message):
        Bundle.of_module("project.steps.a")


def test_large_bundle_names_the_largest_files(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "_MAX_BYTES", 1000)
    package(a="from project.steps import large", large="#" * 500_000)
    with pytest.raises(BundleError, match=r"largest files are project/steps/large\.py \(500,000"):
        Bundle.of_module("project.steps.a")


def test_upload_happens_once_per_content(tmp_path: Path) -> None:
    datastore = Datastore(root=str(tmp_path))
    made = Bundle.of_module("synapse_assets.steps.land")
    uri = made.upload(datastore)
    written = Path(uri).stat().st_mtime_ns
    assert made.upload(datastore) == uri
    assert Path(uri).stat().st_mtime_ns == written


def test_code_version_follows_the_steps_own_code(package: Package) -> None:
    package(a="from project.steps import b", b="x = 1", c="y = 1")
    before = Step("project.steps.a:f").code_version
    package(c="y = 2")
    assert Step("project.steps.a:f").code_version == before
    package(b="x = 2")
    assert Step("project.steps.a:f").code_version != before
    assert (
        Step("project.steps.a:f", {"k": 1}).code_version != Step("project.steps.a:f").code_version
    )


@pytest.mark.parametrize("entry_point", ["f", "a.b", "a:f", "a.b:c.d", "a.b:", "a/b:c"])
def test_entry_point_of_another_form_is_refused(entry_point: str) -> None:
    with pytest.raises(ConfigurationError, match=r"package\.module:function"):
        Step(entry_point)

"""What a newcomer does in the browser: start the pipeline, look at it, cancel a run."""

import re
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, FloatRect, Locator, Page, expect

from synapse_assets.sample import write_sample
from synapse_assets_tests.browser.conftest import Ui, image, poll

pytestmark = [pytest.mark.browser, pytest.mark.spark, pytest.mark.timeout(600)]

_LINEAGE = "/locations/synapse_assets/asset-groups/titanic/lineage"
_MADE = (
    "titanic_input",
    "titanic_quarantined_files",
    "titanic_prepared",
    "titanic_quarantined",
    "survival_model",
)
_PLOTS = ("survival_by_class_sex_age", "roc", "confusion_matrix")

# A run takes 30 s; a machine that does much else besides may need a multiple.
_RUN_SECONDS = 400
_CANCEL_SECONDS = 30
_PATIENCE_MILLISECONDS = 60_000
_MANY_ROWS = 300_000
_MARGIN = 32

expect.set_options(timeout=_PATIENCE_MILLISECONDS)


@pytest.fixture(scope="module")
def first_run(ui: Ui, browser: Browser) -> str:
    """The run that the sensor starts for the waiting sample once it is switched on.

    What follows from it by automation has been made, too.
    """
    page = browser.new_page()
    page.add_init_script("localStorage.setItem('communityNux', '\"1\"')")
    page.goto(f"{ui.url}/assets/titanic_input?view=partitions")
    expect(page.get_by_text("Missing (1)")).to_be_visible()
    expect(page.get_by_text("sample", exact=True).first).to_be_visible()

    page.locator("a[href='/automation']").click()
    _switch(page, "new_arrivals").click()
    expect(_switch(page, "new_arrivals").locator("input")).to_be_checked()
    run_id = ui.wait_for_new_run(known={})
    page.close()
    poll(lambda: ui.run_that_made("survival_model"), seconds=_RUN_SECONDS)
    for made_by in ui.runs():
        ui.wait_for_end(made_by, seconds=_RUN_SECONDS)
    return run_id


@pytest.fixture(scope="module")
def whole_run(ui: Ui, browser: Browser, first_run: str) -> str:
    """A run of everything, by hand."""
    known = ui.runs()
    page = browser.new_page()
    page.add_init_script("localStorage.setItem('communityNux', '\"1\"')")
    page.goto(ui.url + _LINEAGE)
    page.get_by_role("button", name="Materialize all").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="All", exact=True).click()
    dialog.get_by_role("button", name="Launch 1 run").click()
    run_id = ui.wait_for_new_run(known=known)
    page.close()
    return run_id


def test_the_waiting_sample_is_two_clicks_from_green(ui: Ui, page: Page, first_run: str) -> None:
    assert ui.wait_for_end(first_run, seconds=_RUN_SECONDS) == "SUCCESS"
    page.goto(ui.url + _LINEAGE)
    for name in _MADE:
        expect(_green(_node(page, name))).to_be_visible()


def test_everything_is_materialized_by_hand(ui: Ui, page: Page, whole_run: str) -> None:
    assert ui.wait_for_end(whole_run, seconds=_RUN_SECONDS) == "SUCCESS"
    page.goto(ui.url + _LINEAGE)
    for name in _MADE:
        expect(_green(_node(page, name))).to_be_visible()
    expect(_node(page, "titanic_prepared")).to_contain_text("3 / 3 Passed")


def test_lineage_shows_the_assets_and_what_they_depend_on(
    ui: Ui, page: Page, first_run: str, tmp_path: Path
) -> None:
    ui.wait_for_end(first_run, seconds=_RUN_SECONDS)
    page.goto(ui.url + _LINEAGE)
    nodes = page.locator("foreignObject")
    expect(nodes).to_have_count(6)
    for name in ("landing", *_MADE):
        expect(_node(page, name)).to_be_visible()
    expect(page.locator("path[marker-end]")).to_have_count(5)
    for name in _MADE:
        expect(_green(_node(page, name))).to_be_visible()
    page.screenshot(path=image("lineage.png", tmp_path), clip=_around(nodes))


def test_model_page_shows_its_accuracy_and_its_plots(
    ui: Ui, page: Page, first_run: str, tmp_path: Path
) -> None:
    ui.wait_for_end(first_run, seconds=_RUN_SECONDS)
    page.goto(f"{ui.url}/assets/survival_model")
    accuracy = _metadata(page, "accuracy")
    expect(accuracy).to_contain_text(re.compile(r"0\.[6-9]\d"))
    dialog = page.get_by_role("dialog")
    for plot in reversed(_PLOTS):
        expect(dialog).to_have_count(0)
        _metadata(page, plot).get_by_text("[Show Markdown]").click()
        picture = dialog.locator("img[src^='data:image/png']")
        expect(picture).to_be_visible()
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        if plot != _PLOTS[0]:
            dialog.get_by_role("button", name="Close").click()

    accuracy.evaluate("row => row.scrollIntoView({block: 'start'})")
    # For the README: the plot beside the numbers instead of above them.
    page.add_style_tag(
        content=".bp5-dialog { position: relative; left: 420px; }"
        ".bp5-overlay-backdrop { opacity: 0.15 !important; }"
    )
    page.screenshot(path=image("model.png", tmp_path), animations="disabled")


def test_columns_are_described_and_know_where_they_come_from(
    ui: Ui, page: Page, first_run: str
) -> None:
    ui.wait_for_end(first_run, seconds=_RUN_SECONDS)
    page.goto(f"{ui.url}/assets/titanic_prepared")
    expect(page.get_by_text("Age in years; filled with a median")).to_be_visible()
    # Dagster's own server hands out the column lineage, but only Dagster+ draws it.
    data = ui.query(
        '{ assetNodeOrError(assetKey: {path: ["titanic_prepared"]}) { ... on AssetNode { '
        "metadataEntries { ... on TableColumnLineageMetadataEntry { lineage { "
        "columnName columnDeps { assetKey { path } columnName } } } } } } }"
    )
    entries = data["assetNodeOrError"]["metadataEntries"]
    (lineage,) = (entry["lineage"] for entry in entries if "lineage" in entry)
    sources = {
        column["columnName"]: [
            (*d["assetKey"]["path"], d["columnName"]) for d in column["columnDeps"]
        ]
        for column in lineage
    }
    assert set(sources["age"]) == {
        ("titanic_input", "Age"),
        ("titanic_input", "Name"),
        ("titanic_input", "Pclass"),
    }


def test_logs_show_what_the_steps_and_spark_say(ui: Ui, page: Page, whole_run: str) -> None:
    ui.wait_for_end(whole_run, seconds=_RUN_SECONDS)
    page.goto(f"{ui.url}/runs/{whole_run}")
    for message in ("891 rows kept", "fold 5 of 5"):
        page.get_by_placeholder("Filter").fill(message)
        expect(page.get_by_text(re.compile(f"^{message}"))).to_be_visible()

    page.get_by_role("button", name="stderr").click()
    page.get_by_placeholder("Select a step").click()
    page.locator("li").filter(has_text=re.compile("^titanic_prepared$")).first.click()
    expect(page.get_by_text("Setting default log level to").first).to_be_visible()
    page.get_by_role("button", name="stdout").click()
    expect(page.get_by_text(re.compile(r"compute_logs/\w+\.out$"))).to_be_visible()


def test_cancelled_run_leaves_no_process(
    ui: Ui, page: Page, first_run: str, tmp_path: Path
) -> None:
    ui.wait_for_end(first_run, seconds=_RUN_SECONDS)
    arrival = tmp_path / "second.csv"
    write_sample(arrival, rows=_MANY_ROWS, seed=2)
    arrival.rename(ui.datastore / "landing" / "titanic" / arrival.name)

    step = poll(lambda: _spark_step(ui), seconds=_RUN_SECONDS)
    run_id = ui.latest_run()
    page.goto(f"{ui.url}/runs/{run_id}")
    page.get_by_role("button", name="Terminate").click()
    page.get_by_role("dialog").get_by_role("button", name="Terminate 1 run").click()
    assert ui.wait_for_end(run_id, seconds=_CANCEL_SECONDS) == "CANCELED"
    _, alive = psutil.wait_procs(step, timeout=_CANCEL_SECONDS)
    assert alive == []
    assert _step_processes(ui) == []
    expect(page.get_by_text("Canceled", exact=True).first).to_be_visible()


def _switch(page: Page, sensor: str) -> Locator:
    """Return the switch in the row of a sensor, once the page has finished loading it."""
    row = page.locator("[data-index]").filter(has=page.locator(f"a[href$='/sensors/{sensor}']"))
    return row.locator("label[class*='Switch']").filter(has=page.locator("input:enabled"))


def _node(page: Page, name: str) -> Locator:
    return page.locator("foreignObject").filter(has_text=re.compile(f"^{name}Latest event"))


def _green(node: Locator) -> Locator:
    """Return the status row of an asset's node if it is the green one."""
    return node.locator("[style*='--color-background-green']")


def _metadata(page: Page, key: str) -> Locator:
    return page.locator("tr").filter(has=page.get_by_text(key, exact=True))


def _step_processes(ui: Ui) -> list[psutil.Process]:
    """Return the processes that run a step: their command line names the bundle."""
    found = []
    for process in ui.processes():
        try:
            if any(Path(part).name == "bundle.zip" for part in process.cmdline()):
                found.append(process)
        except psutil.Error:  # it just ended
            continue
    return found


def _spark_step(ui: Ui) -> list[psutil.Process] | None:
    """Return the step's process and its children, once Spark's JVM is among them."""
    for process in _step_processes(ui):
        try:
            tree = [process, *process.children(recursive=True)]
            if any(child.name() == "java" for child in tree):
                return tree
        except psutil.Error:  # it just ended
            continue
    return None


def _around(elements: Locator) -> FloatRect:
    """Return the rectangle that holds all elements, with a margin."""
    boxes = [box for element in elements.all() if (box := element.bounding_box())]
    left, top = min(box["x"] for box in boxes), min(box["y"] for box in boxes)
    right = max(box["x"] + box["width"] for box in boxes)
    bottom = max(box["y"] + box["height"] for box in boxes)
    return {
        "x": left - _MARGIN,
        "y": top - _MARGIN,
        "width": right - left + 2 * _MARGIN,
        "height": bottom - top + 2 * _MARGIN,
    }

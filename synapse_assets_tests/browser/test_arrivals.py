"""Many blobs at once in a container of Azurite, before a real `dagster dev` that is killed."""

import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import ContainerClient
from playwright.sync_api import Page, expect

from synapse_assets.arrivals.runs import ARRIVAL_TAG, CONTENT_TAG
from synapse_assets.arrivals.sensor import DATA_VERSION_TAG
from synapse_assets.services import Azurite
from synapse_assets.services.azurite import ACCOUNT_KEY
from synapse_assets_tests.browser.conftest import Ui, image, open_ui, poll
from synapse_assets_tests.browser.shop import CONTAINER, ENDPOINT

pytestmark = [
    pytest.mark.browser,
    pytest.mark.kill,
    pytest.mark.timeout(1500),
]

_ROOT = Path(__file__).parents[2]
_BLOBS = 500
# In the middle of the second tick, which asks for a hundred runs as each does.
_RUNS_AT_THE_KILL = 150
# Two minutes or so on an idle machine.
_SECONDS = 600

_WORKSPACE = """
load_from:
  - python_module:
      module_name: synapse_assets_tests.browser.shop
      location_name: shop
"""
_INSTANCE = """
telemetry:
  enabled: false
run_launcher:
  module: synapse_assets_tests.browser.warm_launcher
  class: WarmLauncher
# Two processes and a database less for each run.
compute_logs:
  module: dagster._core.storage.noop_compute_log_manager
  class: NoOpComputeLogManager
event_log_storage:
  module: dagster._core.storage.event_log
  class: ConsolidatedSqliteEventLogStorage
  config:
    base_dir: {home}/history
run_storage:
  module: dagster._core.storage.runs
  class: SqliteRunStorage
  config:
    base_dir: {home}/history
schedule_storage:
  module: dagster._core.storage.schedules
  class: SqliteScheduleStorage
  config:
    base_dir: {home}/schedules
run_coordinator:
  module: dagster
  class: QueuedRunCoordinator
  config:
    max_concurrent_runs: 6
    dequeue_interval_seconds: 1
sensors:
  use_threads: true
  num_workers: 2
  num_submit_workers: 2
"""
_COUNT = "{ runsOrError(filter: {%s}) { ... on Runs { count } } }"
_RUNS = """{ runsOrError(limit: 2000) { ... on Runs { results {
  status tags { key value } } } } }"""
_ASSETS = """{
  assetNodes(assetKeys: [{path: ["orders"]}]) {
    partitionKeys
    assetMaterializations(limit: 2000) { partition metadataEntries {
      label ... on IntMetadataEntry { intValue } } }
  }
  assetOrError(assetKey: {path: ["incoming"]}) { ... on Asset {
    assetObservations(limit: 2000) { partition tags { key value } } } }
}"""


@pytest.fixture(scope="module")
def blobs(azurite: Azurite) -> dict[str, int]:
    """The names of arrivals, and the number of rows in each."""
    azurite.create_container(CONTAINER)
    return {f"order-{number:03}": number % 7 + 1 for number in range(_BLOBS)}


@pytest.fixture(scope="module")
def runs_before(
    chromium: str, azurite: Azurite, blobs: dict[str, int], folder: Path
) -> list[dict[str, Any]]:
    """The runs that were there when the daemon was killed."""
    with _dagster_dev(azurite, folder) as ui:
        _drop(azurite, blobs)
        poll(lambda: _count(ui) >= _RUNS_AT_THE_KILL or None, seconds=_SECONDS)
        (daemon,) = (p for p in ui.processes() if "dagster._daemon" in p.cmdline())
        daemon.kill()
        return _runs(ui)
    raise AssertionError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    (folder / "workspace.yaml").write_text(_WORKSPACE)
    (folder / "dagster_home").mkdir()
    (folder / "dagster_home" / "dagster.yaml").write_text(
        _INSTANCE.format(home=folder / "dagster_home")
    )
    return folder


@pytest.fixture(scope="module")
def shop(azurite: Azurite, runs_before: list[dict[str, Any]], folder: Path) -> Iterator[Ui]:
    """A `dagster dev` that was started anew after its daemon was killed."""
    with _dagster_dev(azurite, folder) as ui:
        yield ui


def _dagster_dev(azurite: Azurite, folder: Path) -> Any:
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(folder / "workspace.yaml")]
    variables = {ENDPOINT: azurite.endpoint, "PYTHONPATH": str(_ROOT)}
    return open_ui(command, folder=folder, variables=variables)


def _drop(azurite: Azurite, blobs: dict[str, int]) -> None:
    with (
        ContainerClient(azurite.endpoint, CONTAINER, credential=ACCOUNT_KEY) as container,
        ThreadPoolExecutor(8) as pool,
    ):

        def upload(name: str) -> None:
            content = "item\n" + "tea\n" * blobs[name]
            container.upload_blob(f"incoming/{name}.csv", content)

        list(pool.map(upload, blobs))


def _count(ui: Ui, *statuses: str) -> int:
    of = f"statuses: [{', '.join(statuses)}]" if statuses else ""
    return int(ui.query(_COUNT % of)["runsOrError"]["count"])


def _runs(ui: Ui) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = ui.query(_RUNS)["runsOrError"]["results"]
    for run in runs:
        run["tags"] = _tags(run)
    return runs


def _tags(event: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in event["tags"]}


def test_each_of_500_blobs_has_one_run_though_the_daemon_is_killed(
    shop: Ui, runs_before: list[dict[str, Any]], blobs: dict[str, int]
) -> None:
    assert _RUNS_AT_THE_KILL <= len(runs_before) < _BLOBS

    ends = ("SUCCESS", "FAILURE", "CANCELED")
    poll(lambda: _count(shop, *ends) >= _BLOBS or None, seconds=_SECONDS)
    runs = _runs(shop)
    assert Counter(run["tags"][ARRIVAL_TAG] for run in runs) == dict.fromkeys(blobs, 1)
    assert {run["status"] for run in runs} == {"SUCCESS"}

    found = shop.query(_ASSETS)
    (node,) = found["assetNodes"]
    assert sorted(node["partitionKeys"]) == sorted(blobs)
    rows = {
        made["partition"]: entry["intValue"]
        for made in node["assetMaterializations"]
        for entry in made["metadataEntries"]
        if entry["label"] == "dagster/partition_row_count"
    }
    assert len(node["assetMaterializations"]) == _BLOBS
    assert rows == blobs

    # A tick that was killed before it asked for its runs may have told it before, too.
    observed = {
        (seen["partition"], _tags(seen)[DATA_VERSION_TAG])
        for seen in found["assetOrError"]["assetObservations"]
    }
    contents = {
        (run["tags"][ARRIVAL_TAG], run["tags"][CONTENT_TAG].removesuffix(":0")) for run in runs
    }
    assert observed == contents
    assert len({content for _, content in contents}) == _BLOBS


def test_the_sensor_tells_what_it_saw(shop: Ui, page: Page, tmp_path: Path) -> None:
    page.goto(f"{shop.url}/locations/shop/sensors/new_orders")
    told = page.get_by_text(f"{_BLOBS} blobs in {_BLOBS} arrivals in incoming")

    def hover() -> bool | None:
        # Again, since ticks that come move the list. The latest stands above it, too.
        page.get_by_text("0 runs requested", exact=True).nth(1).hover()
        page.wait_for_timeout(500)
        return told.is_visible() or None

    poll(hover, seconds=60)
    page.screenshot(path=image("arrivals-sensor.png", tmp_path), animations="disabled")


def test_each_arrival_is_a_partition(shop: Ui, page: Page, tmp_path: Path) -> None:
    page.goto(f"{shop.url}/assets/orders?view=partitions")
    expect(page.get_by_text(f"Materialized ({_BLOBS})")).to_be_visible()
    page.screenshot(path=image("arrivals-partitions.png", tmp_path), animations="disabled")


def test_lineage_leads_from_the_blobs_to_the_asset(shop: Ui, page: Page) -> None:
    page.goto(f"{shop.url}/asset-groups/~")
    expect(page.locator("foreignObject")).to_have_count(2)

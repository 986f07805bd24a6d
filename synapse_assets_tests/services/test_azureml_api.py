"""The stand-in for Azure ML says in its documentation what it serves."""

import re
from pathlib import Path

from starlette.routing import Route

from synapse_assets.services.azureml_api import build_app

DOCUMENT = Path(__file__).parents[2] / "docs" / "azureml.md"
PROVIDER = (
    "/subscriptions/{subscription}/resourceGroups/{group}/providers/"
    "Microsoft.MachineLearningServices"
)


def test_document_lists_exactly_the_routes(tmp_path: Path) -> None:
    app = build_app(tmp_path, endpoint="https://127.0.0.1")
    served = {
        f"{method} {route.path}"
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    rows = re.findall(r"^\| `((?:GET|PUT|POST|DELETE) .*?)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(row.replace("…", PROVIDER) for row in rows) == sorted(served)
    assert "No real workspace was reached" in DOCUMENT.read_text()

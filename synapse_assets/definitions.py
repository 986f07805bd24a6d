"""The code location that Dagster loads: everything below `defs/`."""

import warnings
from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """Return all definitions of this project."""
    # Not `dg.load_from_defs_folder`: it also imports every installed plugin that has components
    # (all of dagster-azure and the Azure SDK), to list components that nothing here uses.
    package = Path(__file__).parent
    tree = dg.ComponentTree.for_project(path_within_project=package)
    with warnings.catch_warnings():
        # What Dagster's own loader calls below is marked as a preview, to itself.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return tree.build_defs(package / "defs")

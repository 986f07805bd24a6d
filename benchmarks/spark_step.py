"""The step that a batch of ours runs on the stub; the sleeping is the stub's."""

import pyarrow as pa


def make_rows() -> dict[str, pa.Table]:
    return {"rows": pa.table({"n": [1, 2, 3]})}

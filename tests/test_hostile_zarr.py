"""A zarr store may name the codecs that read it. One that names pickle is refused, wherever it names it, and nothing of it runs."""

import json
import os
import pickle
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from expresser.corpus.source import open_source
from expresser.errors import InputError

PICKLE = {"id": "pickle", "protocol": 5}
TEXT = {"id": "vlen-utf8"}


class Trap:
    """Whoever unpickles it leaves a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    cells = ad.AnnData(sp.csr_matrix(np.ones((3, 4), np.float32)))
    cells.obs_names, cells.var_names = list("abc"), [f"ENSG0000000000{i}" for i in range(4)]
    with ad.settings.override(zarr_write_format=2):
        cells.write_zarr(tmp_path / "x.zarr")
    return tmp_path / "x.zarr"


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
@pytest.mark.parametrize("array", ["X/data", "obs/_index", "var/_index"])
@pytest.mark.parametrize(
    "codecs",
    [
        {"filters": [PICKLE], "compressor": None},
        {"filters": None, "compressor": PICKLE},
        {"filters": [TEXT], "compressor": PICKLE},
        {"filters": [TEXT, PICKLE], "compressor": None},
    ],
    ids=["filter", "compressor", "text and compressor", "second filter"],
)
def test_a_store_that_asks_to_be_unpickled_is_refused(store: Path, array: str, codecs: dict[str, object]) -> None:
    trace = store.parent / "trace"
    settings = store / array / ".zarray"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | codecs))
    for chunk in (p for p in settings.parent.iterdir() if not p.name.startswith(".")):
        chunk.write_bytes(pickle.dumps(Trap(trace)))
    (store / ".zmetadata").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"x\.zarr"):
        for _ in open_source(store).chunks():
            pass
    assert not trace.exists()

"""Data sets that embeddings of open chromatin are compared on: simulated benchmarks, and real cells through EXPRESSER_DATA."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from anndata import AnnData

from expresser.errors import InputError
from expresser.simulate import simulate_multiome, simulate_scan_atac
from translate.data import read_study
from translate.study import Study

CELLS = {"multiome": 4000, "multiome_hybrid": 4000}  # where not all of the design's
PEAKS = {"multiome": 20_000, "multiome_hybrid": 20_000}


@dataclass(frozen=True, eq=False)
class Data:
    """Cells, and what is known of them."""

    name: str
    study: Study
    label: str  # columns of obs
    batch: str | None
    bulk: AnnData | None = None  # var, and the profiles that cells were drawn from in varm["bulk"]
    genome: str | None = None
    alone: np.ndarray | None = field(default=None, repr=False)  # cells that joined with ATAC alone


def load(name: str, *, seed: int, cells: int | None, regions: int | None) -> Data:
    """The data set; simulated ones are another draw with every seed. Fewer cells, where asked: of real ones, at random."""
    if name not in DATA:
        raise InputError(f"no data set {name!r}; there are {', '.join(DATA)}.")
    return DATA[name](name, seed, cells, regions)


def _scan(name: str, seed: int, cells: int | None, regions: int | None) -> Data:
    """sim1, sim2, sim3 as they are by default; with fewer regions, as many fragments fewer."""
    n = 30_000 if regions is None else regions
    made = simulate_scan_atac(
        name, n_cells=10_000 if cells is None else cells, n_regions=n, depth=min(n / 30_000, 1), seed=seed
    )
    bulk = AnnData(var=made.var, varm={"bulk": made.varm["bulk"]}, uns={"simulation": {"design": name}})
    batch = "batch" if made.obs["batch"].nunique() > 1 else None
    return Data(name, read_study(atac=made), "cell_type", batch, bulk=bulk)


def _granja(name: str, seed: int, cells: int | None, regions: int | None) -> Data:
    """Haematopoiesis: 14,125 cells x 10,000 peaks, 16 classes, 2 donors."""
    atac = _some(anndata.read_h5ad(_real() / "atac" / "granja_hemato_atac.h5ad"), cells, seed)
    return Data(name, read_study(atac=atac), "BioClassification", "Group")


def _multiome(name: str, seed: int, cells: int | None, regions: int | None) -> Data:
    """Two batches of paired cells; in the hybrid one the second has ATAC alone."""
    made = simulate_multiome(
        n_cells=CELLS[name] if cells is None else cells,
        n_peaks=PEAKS[name] if regions is None else regions,
        n_batches=2,
        seed=seed,
    )
    if name == "multiome":
        return Data(name, read_study(rna=made.rna, atac=made.atac, check_pairing=False), "cell_type", "batch")
    paired = (made.rna.obs["batch"] == "batch0").to_numpy()
    return _hybrid(name, made.rna[paired].copy(), made.atac, "batch")


def _bmmc(name: str, seed: int, cells: int | None, regions: int | None) -> Data:
    """A set of 500 bone-marrow cells, paired."""
    rna, atac = (_multi(f"bmmc_set{name[-1]}_{m}.h5ad") for m in ("rna", "atac"))
    kept = _some(atac, cells, seed).obs_names
    study = read_study(rna=rna[kept].copy(), atac=atac[kept].copy(), check_pairing=False)
    return Data(name, study, "cell_type", "batch")


def _bmmc_hybrid(name: str, seed: int, cells: int | None, regions: int | None) -> Data:
    """Set A paired and set B with ATAC alone, over the peaks of both: they share 24 of 600, so hardly anything ties them."""
    rna = _multi("bmmc_setA_rna.h5ad")
    atac = {s: _some(_multi(f"bmmc_set{s}_atac.h5ad"), cells, seed) for s in "AB"}
    for letter, part in atac.items():
        part.obs = part.obs[["cell_type", "batch"]].astype(str).assign(batch=part.obs["batch"].astype(str) + letter)
        part.obs_names = [f"{n}-{letter}" for n in part.obs_names]
        part.var_names = [n.replace("-", ":", 1) for n in part.var_names]
    rna.obs_names = [f"{n}-A" for n in rna.obs_names]
    both = anndata.concat(atac.values(), join="outer", fill_value=0)
    rna = rna[rna.obs_names.isin(both.obs_names)].copy()
    rna.obs = rna.obs[["cell_type"]].astype(str).assign(batch=rna.obs["batch"].astype(str) + "A")
    return _hybrid(name, rna, both, "batch")


def _bmmc_halves(name: str, seed: int, cells: int | None, regions: int | None) -> Data:
    """Set A, of which one donor keeps its RNA: the same peaks in paired cells and in those of ATAC alone."""
    rna, atac = (_multi(f"bmmc_setA_{m}.h5ad") for m in ("rna", "atac"))
    kept = _some(atac, cells, seed)
    own = rna.obs_names.isin(kept.obs_names) & (rna.obs["batch"] == "s1d1").to_numpy()
    return _hybrid(name, rna[own].copy(), kept, "batch")


def _hybrid(name: str, rna: AnnData, atac: AnnData, batch: str) -> Data:
    """Cells of which only some have RNA."""
    study = read_study(rna=rna, atac=atac, check_pairing=False)
    return Data(name, study, "cell_type", batch, alone=np.flatnonzero(~study.has("rna")))


DATA: dict[str, Callable[[str, int, int | None, int | None], Data]] = {
    "sim1": _scan,
    "sim2": _scan,
    "sim3": _scan,
    "granja": _granja,
    "multiome": _multiome,
    "multiome_hybrid": _multiome,
    "bmmc_A": _bmmc,
    "bmmc_B": _bmmc,
    "bmmc_hybrid": _bmmc_hybrid,
    "bmmc_halves": _bmmc_halves,
}


def bulk_file(data: Data, folder: str | Path) -> Path:
    """The profiles as a file of the kind that the simulator leaves, without its cells."""
    if data.bulk is None:
        raise InputError(f"{data.name} was drawn from no bulk profiles.")
    path = Path(folder) / "bulk.h5ad"
    data.bulk.write_h5ad(path)
    return path


def _some(adata: AnnData, cells: int | None, seed: int) -> AnnData:
    if cells is None or cells >= adata.n_obs:
        return adata
    return adata[np.sort(np.random.default_rng(seed).choice(adata.n_obs, cells, replace=False))].copy()


def _multi(name: str) -> Any:
    return anndata.read_h5ad(_real() / "multiome" / name)


def _real() -> Path:
    folder = os.environ.get("EXPRESSER_DATA")
    if not folder or not Path(folder).is_dir():
        raise InputError(f"EXPRESSER_DATA is {folder!r}; it must name the folder of real data sets. Set it.")
    return Path(folder)

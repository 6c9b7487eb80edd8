"""Small paired studies with a structure to learn, and fits of a second, for the tests of translators."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from translate.babel import BabelConfig
from translate.covariates import BatchColumn, LabelColumn
from translate.fitting import fit
from translate.polarbear import PolarbearConfig
from translate.preprocess import AtacRecipe, RnaRecipe
from translate.registry import SYSTEMS
from translate.scact import ScactConfig
from translate.scmog import ScmogConfig
from translate.splits import Split
from translate.study import Measured, Modality, Study
from translate.translator import Translator

CHROMS = ("chr1", "chr2", "chr10", "chr21")
RNA, ATAC = RnaRecipe(min_genes=0, max_genes=None), AtacRecipe(min_cells=1, max_share=1.0)
BABEL = BabelConfig(rna=RNA, atac=ATAC, latent=8, batch_size=32, epochs=3, protein_epochs=3, protein_lr=1e-2)
SCMOG = ScmogConfig(
    rna=RNA,
    atac=ATAC,
    latent=8,
    adversarial_epochs=2,
    to_rna_batch_size=32,
    to_atac_batch_size=48,
    to_rna_epochs=3,
    to_atac_epochs=3,
    to_protein_epochs=3,
    lr=1e-3,
)
POLARBEAR = PolarbearConfig(
    rna=RNA,
    atac=ATAC,
    batch=BatchColumn("kind"),
    latent=4,
    atac_hidden=6,
    rna_hidden=10,
    batch_size=32,
    epochs=3,
    atac_ramp=2,
    rna_ramp=2,
    map_epochs=3,
    map_batch_size=16,
)
SCACT = ScactConfig(
    rna=RNA,
    atac=ATAC,
    label=LabelColumn("kind"),
    latent=6,
    rna_hidden=(16, 8),
    atac_hidden=(8, 4),
    experts=3,
    batch_size=32,
    epochs=3,
    joint_epochs=3,
    joint_steps=None,
)
CONFIGS: dict[str, Any] = {"babel": BABEL, "scmog": SCMOG, "polarbear": POLARBEAR, "scact": SCACT}


def toy_anndata(
    n_cells: int = 120,
    n_genes: int = 60,
    n_peaks: int = 120,
    n_proteins: int = 7,
    *,
    chroms: Sequence[str] = CHROMS,
    sizes: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[Modality, ad.AnnData]:
    """Counts of three modalities that answer the same two factors. sizes: peaks of each chromosome."""
    rng = np.random.default_rng(seed)
    factors = np.c_[rng.integers(0, 2, n_cells) * 2 - 1, rng.normal(size=n_cells)]
    cells = pd.DataFrame({"kind": np.where(factors[:, 0] > 0, "a", "b")}, index=[f"cell{i:04}" for i in range(n_cells)])

    def draw(n: int, low: float, high: float) -> np.ndarray:
        return np.exp(factors @ rng.normal(0, 0.8, (2, n)) + rng.uniform(low, high, n))

    genes = pd.DataFrame(
        {
            "gene_ids": [f"ENSG{i:011}" for i in range(n_genes)],
            "chrom": [chroms[i % len(chroms)] for i in range(n_genes)],
            "tss": np.arange(n_genes) * 1000,
        },
        index=[f"GENE{i:03}" for i in range(n_genes)],
    )
    where = np.repeat(
        np.arange(len(chroms)), sizes or [len(p) for p in np.array_split(np.arange(n_peaks), len(chroms))]
    )
    peaks = pd.DataFrame(index=[f"{chroms[c]}:{1000 * i}-{1000 * i + 500}" for i, c in enumerate(where)])
    proteins = pd.DataFrame(index=[f"CD{i}" for i in range(n_proteins)])

    def adata(counts: np.ndarray, var: pd.DataFrame) -> ad.AnnData:
        return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=cells.copy(), var=var)

    return {
        "rna": adata(rng.poisson(draw(n_genes, -0.5, 1.5)), genes),
        "atac": adata(rng.poisson(draw(len(peaks), -2.5, 0.0)), peaks),
        "protein": adata(rng.poisson(draw(n_proteins, 1.5, 3.0)), proteins),
    }


def toy_study(
    n_cells: int = 120, modalities: Sequence[Modality] = ("rna", "atac"), *, seed: int = 0, **sizes: Any
) -> Study:
    """`toy_anndata` as a study."""
    from translate.data import read_study

    made = toy_anndata(n_cells, seed=seed, **sizes)
    return read_study(**{m: made[m] for m in modalities}, check_pairing=False)


def toy_measured(made: ad.AnnData, modality: Modality) -> Measured:
    """One of `toy_anndata` as it is read."""
    from translate.reading import read_measured

    return read_measured(made, modality)


def toy_split(n_cells: int = 120, *, valid: int = 30, test: int = 10) -> Split:
    """The last cells test, those before validate."""
    cells = np.arange(n_cells, dtype=np.int64)
    first = n_cells - valid - test
    return Split("toy", cells[:first], cells[first : n_cells - test], cells[n_cells - test :])


def toy_fit(system: str, out: Path, study: Study | None = None, **changes: Any) -> Translator:
    """A finished fit of a small configuration; `changes` to it, or arguments of `fit`."""
    study = toy_study() if study is None else study
    config = CONFIGS[system] if system in CONFIGS else SYSTEMS[system].config_class()
    own = {key: changes.pop(key) for key in list(changes) if key in config.__dataclass_fields__}
    changes = {"split": toy_split(study.n_cells)} | changes
    fitted = fit(system, study, out=out, config=replace(config, **own), **changes)
    assert fitted is not None
    return fitted

r"""Known properties of simulated genes, and known pairs, so that tasks on gene embeddings have a truth and a ceiling.

All of it follows the modules of `simulate_rna`, so an embedding that tells modules apart answers everything, and one
that knows how often a gene was seen, or how long it is, answers only what such a thing can. Genes outside modules have
no labels. With e the `noise`, m(j) the module of gene j:

* **pairs**: positives are pairs inside a module, drawn without replacement with weight :math:`w_i w_j`, w the rank of a
  gene in its module (in random order) to the power -1.5: a few hubs take part in most. Negatives are pairs of genes of
  two modules, all equally likely, as many. "Same module" has AUROC 1. The share of positives among a gene's training
  pairs scores 0.8 and more on random splits, where the same hubs return, and 1/2 where no gene of the test was seen.
* **binary**: 1 in half of the modules, 0 in the others, and turned over with probability e. With :math:`\pi` the share
  of genes in carrying modules, knowing the module gives :math:`t = \pi(1-e) / (\pi(1-e) + (1-\pi)e)`,
  :math:`f = \pi e / (\pi e + (1-\pi)(1-e))` and AUROC :math:`(1 + t - f) / 2`, that is 1 - e for :math:`\pi` = 1/2.
* **value**: :math:`\sqrt{0.8(1-e)}\, u_{m(j)} + \sqrt{0.2(1-e)}\, z_j + \sqrt{e}\, \epsilon_j`, where u is a normal
  effect of the module, z the log10 of `cds_length` (both brought to mean 0 and variance 1 over genes) and
  :math:`\epsilon` standard normal. Pearson r is at most :math:`\sqrt{0.8(1-e)}` from the module alone,
  :math:`\sqrt{0.2(1-e)}` from the length alone, :math:`\sqrt{1-e}` from both.
* **cds_length**: bases, log normal, median near 1,300, a multiple of 3, independent of the module.
* **class**: modules fall into up to four groups, evenly; a gene has that of its module, another one with probability e.
  Accuracy is at most 1 - e.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float64, Int64

from expresser.atomic import replaced_together
from expresser.errors import InputError

MAX_PAIRS = 4000  # positives, where the modules have enough
_LENGTH_SHARE = 0.2  # of the variance of `value` that is not noise


@dataclass(frozen=True, eq=False)
class SimulatedLabels:
    """`pairs`: gene1, gene2, label. `properties`: gene, symbol, binary, value, cds_length, class; one row a module gene.

    `ceilings` are the expected scores of who knows the modules: pairs_auroc, binary_auroc, value_pearson,
    value_pearson_with_length, length_pearson (of who knows the lengths alone), class_accuracy.
    """

    pairs: pd.DataFrame
    properties: pd.DataFrame
    ceilings: dict[str, float]

    def write(self, folder: str | Path) -> tuple[Path, Path]:
        """Write pairs.tsv and properties.tsv, which belong together."""
        paths = Path(folder) / "pairs.tsv", Path(folder) / "properties.tsv"
        with replaced_together(folder, last="properties.tsv") as part:
            for path, frame in zip(paths, (self.pairs, self.properties)):
                frame.to_csv(part / path.name, sep="\t", index=False, lineterminator="\n")
        return paths


def simulate_gene_labels(
    adata: AnnData, *, seed: int = 0, n_pairs: int | None = None, noise: float | int = 0.1
) -> SimulatedLabels:
    """Labels of genes and pairs that follow the modules of `simulate_rna` (see the module's own text for the formulas).

    Args:
        adata: what `simulate_rna` returned, or the same read from its file; two modules or more.
        seed: not negative; the labels depend on it and on the modules, not on the cells.
        n_pairs: positive pairs, at most half of all pairs inside modules; negatives come on top, as many. Without it,
            4,000, or an eighth of the pairs inside modules where that is fewer.
        noise: share of labels turned over, and of the variance of `value` that nothing explains; from 0 to 0.5.
    """
    if adata.uns.get("simulation", {}).get("kind") != "rna" or "module" not in adata.var:
        raise InputError(
            f"simulate_gene_labels: genes with known modules are needed, and this has var columns {list(adata.var)}. "
            "Give what simulate_rna returns."
        )
    if not 0 <= noise <= 0.5 or seed < 0:
        raise InputError(
            f"simulate_gene_labels: noise is {noise:g} and seed {seed}; noise must lie from 0 to 0.5 and the seed must "
            "not be negative."
        )
    names = pd.Categorical(adata.var["module"].astype(str), categories=adata.uns["modules"].index)
    genes = np.flatnonzero(names.codes >= 0)
    there, module = np.unique(names.codes[genes], return_inverse=True)
    n_modules = len(there)
    if n_modules < 2:
        raise InputError(
            f"simulate_gene_labels: the genes have {n_modules} modules, and labels follow the differences between "
            "modules. Simulate two modules or more."
        )
    ids = adata.var_names.to_numpy(dtype=object)[genes]
    first, second, label = _pairs(module, n_pairs, _stream(seed, 0))
    pairs = pd.DataFrame({"gene1": ids[first], "gene2": ids[second], "label": label})

    rng = _stream(seed, 1)
    carries = rng.permutation(np.arange(n_modules) < (n_modules + 1) // 2)[module]
    binary = carries ^ (rng.random(len(genes)) < noise)

    rng = _stream(seed, 2)
    length = 3 * np.maximum(np.round(np.exp(rng.normal(np.log(430), 0.7, len(genes)))), 20)
    effect, z = _standard(rng.normal(size=n_modules)[module]), _standard(np.log10(length))
    of_module, of_length = (1 - _LENGTH_SHARE) * (1 - noise), _LENGTH_SHARE * (1 - noise)
    value = np.sqrt(of_module) * effect + np.sqrt(of_length) * z + np.sqrt(noise) * rng.normal(size=len(genes))

    rng = _stream(seed, 3)
    n_groups = min(4, n_modules)
    group = rng.permutation(np.arange(n_modules) % n_groups)[module]
    moved = rng.random(len(genes)) < noise
    group = np.where(moved, (group + rng.integers(1, n_groups, len(genes))) % n_groups, group)

    properties = pd.DataFrame(
        {
            "gene": ids,
            "symbol": adata.var["symbol"].to_numpy()[genes],
            "binary": binary.astype(np.int8),
            "value": value.round(6),
            "cds_length": length.astype(np.int64),
            "class": [f"group{k}" for k in group],
        }
    )
    ceilings = {
        "pairs_auroc": 1.0,
        "binary_auroc": _binary_ceiling(float(carries.mean()), float(noise)),
        "value_pearson": float(np.sqrt(of_module)),
        "value_pearson_with_length": float(np.sqrt(1 - noise)),
        "length_pearson": float(np.sqrt(of_length)),
        "class_accuracy": float(1 - noise),
    }
    return SimulatedLabels(pairs, properties, ceilings)


def _stream(seed: int, purpose: int) -> np.random.Generator:
    """One stream a property. The key is far from those of the cells: one seed serves both."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1000, purpose)))


def _standard(values: Float64[np.ndarray, " genes"]) -> Float64[np.ndarray, " genes"]:
    return (values - values.mean()) / values.std()


def _binary_ceiling(share: float, noise: float) -> float:
    """Expected AUROC of knowing who carries, for a share of carriers and a share of labels turned over."""
    true = share * (1 - noise) / (share * (1 - noise) + (1 - share) * noise)
    false = share * noise / (share * noise + (1 - share) * (1 - noise))
    return (1 + true - false) / 2


def _pairs(
    module: Int64[np.ndarray, " genes"], n_pairs: int | None, rng: np.random.Generator
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """Places of both genes and the label, in random order, each pair turned at random."""
    weight = np.empty(len(module))
    inside = []
    for k in np.unique(module):
        members = rng.permutation(np.flatnonzero(module == k))
        weight[members] = np.arange(1, len(members) + 1) ** -1.5
        inside.append(members[np.stack(np.triu_indices(len(members), 1))])
    x, y = np.concatenate(inside, axis=1)
    if n_pairs is None:
        n_pairs = max(1, min(MAX_PAIRS, len(x) // 8))
    if not 1 <= n_pairs <= (len(x) + 1) // 2:
        raise InputError(
            f"simulate_gene_labels: n_pairs is {n_pairs}; the modules hold {len(x)} pairs, and from 1 to half of them "
            "can be positive. Pass fewer, or simulate more genes in modules."
        )
    # Weights plus Gumbel noise, the largest first: a draw without replacement in proportion to the weights.
    chosen = np.argsort(-(np.log(weight[x] * weight[y]) + rng.gumbel(size=len(x))), kind="stable")[:n_pairs]
    drawn = np.empty((2, 0), np.int64)
    while drawn.shape[1] < n_pairs:
        more = np.sort(rng.integers(len(module), size=(2, 2 * n_pairs + 16)), axis=0)
        drawn = np.concatenate([drawn, more[:, module[more[0]] != module[more[1]]]], axis=1)
        drawn = drawn[:, np.sort(np.unique(drawn, axis=1, return_index=True)[1])]
    both = np.concatenate([np.stack([x[chosen], y[chosen]]), drawn[:, :n_pairs]], axis=1)
    order = rng.permutation(2 * n_pairs)
    both = both[:, order]
    both = np.where(rng.random(2 * n_pairs) < 0.5, both, both[::-1])
    return both[0], both[1], np.repeat([1, 0], n_pairs)[order]

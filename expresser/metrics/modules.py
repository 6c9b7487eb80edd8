"""Whether gene embeddings know which genes belong together: the module AUC."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64
from sklearn.metrics import roc_auc_score

from expresser.errors import InputError

_BLOCK = 1 << 18  # pairs whose vectors are in memory at one time


def module_auc(
    embedding: Float[np.ndarray, "genes dim"],
    modules: Sequence[str] | np.ndarray,
    *,
    none_label: str = "none",
    max_pairs: int = 1_000_000,
    seed: int = 0,
) -> float:
    """AUROC with which cosine similarity separates pairs of genes of one module from all other pairs.

    The mean embedding is subtracted first: token tables share a large common direction, which would bring every
    cosine near one. 0.5 is chance, 1 means that each same-module pair is more similar than any other pair.

    Parameters
    ----------
    embedding
        One row a gene.
    modules
        The module of each gene; `none_label` marks genes of no module, whose pairs all count as other pairs.
    max_pairs
        Up to this many pairs all are compared; above it, at most half as many are drawn (with replacement, by `seed`)
        of either kind, and the result has a standard error of about 0.5 / sqrt(max_pairs).

    Raises
    ------
    InputError
        Where no pair or every pair shares a module: then there is nothing to separate.

    Relations: supervised gene tasks (interactions, dosage) say whether a classifier can find what this finds unaided.
    """
    labels = np.asarray(modules, dtype=object)
    if labels.shape != (len(embedding),):
        raise InputError(
            f"module AUC: {len(embedding)} embeddings have module labels of shape {labels.shape}, but a gene has one. "
            "Take both from the same gene list."
        )
    names, module = np.unique(labels.astype(str), return_inverse=True)
    module = np.where(names[module] == none_label, -1, module)
    genes = len(module)
    sizes = np.bincount(module[module >= 0], minlength=1)
    n_same = int((sizes * (sizes - 1) // 2).sum())
    n_other = genes * (genes - 1) // 2 - n_same
    if n_same == 0 or n_other == 0:
        raise InputError(
            f"module AUC: of {n_same + n_other} pairs of {genes} genes {n_same} share a module, but both kinds of pair "
            f"are needed. Give at least one module of two genes, and a second module or genes labelled {none_label!r}."
        )
    centred = embedding.astype(np.float64) - embedding.mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    if n_same + n_other <= max_pairs:
        a, b = np.triu_indices(genes, k=1)
        same = (module[a] == module[b]) & (module[a] >= 0)
    else:
        rng = np.random.default_rng(seed)
        half = max(max_pairs // 2, 1)
        pairs = [_same_pairs(rng, module, sizes, half), _other_pairs(rng, module, half)]
        a, b = np.concatenate(pairs, axis=1)
        same = np.repeat([True, False], half)
    return float(roc_auc_score(same, _cosine(unit, a, b)))


def _cosine(
    unit: Float64[np.ndarray, "genes dim"], a: Int64[np.ndarray, " pairs"], b: Int64[np.ndarray, " pairs"]
) -> Float64[np.ndarray, " pairs"]:
    cuts = range(0, len(a), _BLOCK)
    return np.concatenate([np.einsum("pd,pd->p", unit[a[i : i + _BLOCK]], unit[b[i : i + _BLOCK]]) for i in cuts])


def _same_pairs(
    rng: np.random.Generator, module: Int64[np.ndarray, " genes"], sizes: Int64[np.ndarray, " modules"], count: int
) -> Int64[np.ndarray, "2 count"]:
    """Uniform draws of pairs inside a module: a module in proportion to its pairs, then two of its genes."""
    order = np.argsort(module, kind="stable")[int((module < 0).sum()) :]
    start = np.cumsum(sizes) - sizes
    weight = sizes * (sizes - 1.0)
    drawn = rng.choice(len(sizes), size=count, p=weight / weight.sum())
    first = rng.integers(0, sizes[drawn])
    second = rng.integers(0, sizes[drawn] - 1)
    second += second >= first
    return np.stack([order[start[drawn] + first], order[start[drawn] + second]])


def _other_pairs(
    rng: np.random.Generator, module: Int64[np.ndarray, " genes"], count: int
) -> Int64[np.ndarray, "2 count"]:
    """Uniform draws of pairs that share no module: any two genes, drawn again until they qualify."""
    kept: list[np.ndarray] = []
    found = 0
    while found < count:
        pair = rng.integers(0, len(module), size=(2, count))
        a, b = module[pair]
        good = pair[:, (pair[0] != pair[1]) & ((a != b) | (a < 0))]
        kept.append(good)
        found += good.shape[1]
    return np.concatenate(kept, axis=1)[:, :count]

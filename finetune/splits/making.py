"""Which genes or pairs are trained on and which are tested: a split that leaks cannot be made."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Int64, Integer, UInt64
from sklearn.metrics import roc_auc_score

from expresser.errors import InputError
from finetune.splits.dealing import deal, keys_of, mixed, numbered, units
from finetune.splits.degree import degree_scores
from finetune.splits.rules import RULES, Split

__all__ = ["RULES", "PairSplit", "Split", "audit", "gene_folds", "gene_holdout", "inner_pairs", "pair_splits"]

PairSplit = Literal["gene-disjoint", "semi-disjoint", "random", "shipped"]


def gene_folds(y: pd.Series, *, kind: str, folds: int = 5, repeats: int = 20, seed: int = 0) -> list[Split]:
    """k-fold cross-validation over genes, repeated: each gene is tested once a repeat.

    Parameters
    ----------
    y
        The label of each gene, index gene ids. The order of rows does not matter: genes are dealt by id and seed.
    kind
        "regression" deals genes of similar value into different folds; else classes are, each for itself.
    """
    genes = _numbered_genes(y)
    names = y.index.to_numpy(dtype=object)
    if repeats < 1:
        raise InputError(f"{repeats} repeats of cross-validation: give one or more.")
    if folds < 2 or len(y) < 2 * folds:
        raise InputError(f"{folds} folds of {len(y)} genes: give 2 folds or more, and at least 2 genes for each.")
    value = pd.factorize(y, sort=True)[0] if kind != "regression" else y.to_numpy(dtype=np.float64)
    if kind != "regression":
        _check_classes(y, folds)
    splits = []
    for repeat in range(repeats):
        keys = keys_of(names, seed, repeat)
        if kind == "regression":
            fold = deal(value, keys, folds)
        else:
            fold = np.empty(len(y), dtype=np.int64)
            fold[np.lexsort((keys, value))] = np.arange(len(y)) % folds
        for number in range(folds):
            train, test = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            splits.append(Split("genes", repeat, number, train, test, genes))
    return splits


def gene_holdout(y: pd.Series, *, kind: str, share: float = 0.2, seed: int = 0) -> list[Split]:
    """One random test set of genes, as published; not stratified. One draw of few genes says little: see `gene_folds`."""
    genes = _numbered_genes(y)
    n_test = int(np.ceil(share * len(y)))
    if not 0 < n_test < len(y):
        raise InputError(f"a test share of {share} of {len(y)} genes leaves one side empty; give a share such as 0.2.")
    order = np.argsort(keys_of(y.index.to_numpy(dtype=object), seed, 0))
    train, test = np.sort(order[n_test:]), np.sort(order[:n_test])
    if kind != "regression" and (
        lacking := set(y.unique()) - set(y.iloc[train]) or set(y.unique()) - set(y.iloc[test])
    ):
        raise InputError(
            f"one side of a random test set of {n_test} genes has no gene of class {min(map(str, lacking))!r}. "
            "Give another seed, a larger share, or folds."
        )
    return [Split("genes", 0, 0, train, test, genes)]


def pair_splits(
    a: Sequence[str] | np.ndarray,
    b: Sequence[str] | np.ndarray,
    label: Integer[np.ndarray, " pairs"],
    *,
    kind: PairSplit,
    part: np.ndarray | None = None,
    folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
) -> list[Split]:
    """Splits of pairs of genes with labels 0 and 1.

    "gene-disjoint": genes are dealt into `folds` groups of like numbers of pairs; a fold tests the pairs inside one group
    and trains on those outside it, so about 1 / folds² of the pairs are tested and those across (2 / folds) are unused.
    The headline: with any other split, how often a gene interacts in training says most of the answer.
    "semi-disjoint": the same groups; tested are pairs of a gene of the group and a gene known from training.
    "random": unordered pairs are dealt, by class; each is tested once a repeat. A diagnostic, beside `degree_scores`.
    "shipped": the "train", "valid" and "test" of `part`, whatever they are; `Split.strictest` says what they are.

    Genes and pairs are dealt by name and seed: the order of the rows, and of a and b, does not matter.
    """
    names, genes = numbered(a, b)
    label = np.asarray(label)
    _check_pairs(label, genes)
    if kind == "shipped":
        splits = [_shipped(genes, part)]
    elif folds < 2 or repeats < 1:
        raise InputError(f"{folds} folds, {repeats} repeats: give 2 folds or more, and a repeat or more.")
    else:
        splits = list(_dealt(names, genes, label, kind=kind, folds=folds, repeats=repeats, seed=seed))
    for split in splits:
        if problem := _lacking(split, label):
            raise InputError(f"{split.kind} split, repeat {split.repeat}, fold {split.fold}: {problem}")
    return splits


def inner_pairs(
    a: Sequence[str] | np.ndarray,
    b: Sequence[str] | np.ndarray,
    train: Int64[np.ndarray, " train"],
    *,
    kind: PairSplit,
    folds: int = 3,
    seed: int = 0,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, valid) inside the training rows of a split, dealt by its own rule, as positions in `train`.

    A penalty or a number of trees chosen on pairs of known genes would be the best one of another question. Empty parts
    are left out; those with one class are `fit_head`'s to leave out, labels are not looked at here.
    """
    names, genes = numbered(np.asarray(a, dtype=object)[train], np.asarray(b, dtype=object)[train])
    way = "gene-disjoint" if kind == "shipped" else kind
    dealt = _dealt(names, genes, np.zeros(len(train), dtype=np.int8), kind=way, folds=folds, repeats=1, seed=seed)
    return [(split.train, split.test) for split in dealt if len(split.train) and len(split.test)]


def audit(
    a: Sequence[str] | np.ndarray,
    b: Sequence[str] | np.ndarray,
    label: Integer[np.ndarray, " pairs"],
    split: Split,
) -> dict[str, float]:
    """What a split lets through: shares of test pairs with 0, 1, 2 genes in training, pairs on both sides, degree AUROC.

    `degree_auroc` is what `degree_scores` reaches, which knows of a gene only how often it interacts in training: 0.5
    where no gene is shared. A method is worth its vectors by what it has above that.
    """
    _, genes = numbered(a, b)
    label = np.asarray(label)
    known = split.genes_in_training()
    count = int(genes.max()) + 1
    as_given, turned = genes @ [count, 1], genes @ [1, count]
    score = degree_scores(genes[:, 0], genes[:, 1], label, split.rows, split.test)
    truth = label[split.test]
    both = 0 < truth.sum() < len(truth)
    shares = {f"share_{n}_genes_in_training": float((known == n).mean()) if len(known) else np.nan for n in (0, 1, 2)}
    return shares | {
        "repeated_across": float(np.isin(as_given[split.test], as_given[split.rows]).sum()),
        "reversed_across": float(np.isin(as_given[split.test], turned[split.rows]).sum()),
        "degree_auroc": float(roc_auc_score(truth, score)) if both else float("nan"),
    }


def _dealt(
    names: np.ndarray,
    genes: Int64[np.ndarray, "pairs 2"],
    label: Integer[np.ndarray, " pairs"],
    *,
    kind: str,
    folds: int,
    repeats: int,
    seed: int,
) -> Iterator[Split]:
    degree = np.bincount(genes.ravel(), minlength=len(names))
    for repeat in range(repeats):
        keys = keys_of(names, seed, repeat)
        if kind == "random":
            fold = _random_folds(genes, label, keys, folds)
        else:
            group = deal(-degree, keys, folds)[genes]
        for number in range(folds):
            if kind == "random":
                train, test = fold != number, fold == number
            else:
                inside = (group == number).sum(axis=1)
                train = inside == 0
                if kind == "gene-disjoint":
                    test = inside == 2
                else:
                    known = np.zeros(len(names), dtype=bool)
                    known[genes[train]] = True
                    test = (inside == 1) & (known[genes].sum(axis=1) == 1)
            yield Split(kind, repeat, number, np.flatnonzero(train), np.flatnonzero(test), genes)


def _random_folds(
    genes: Int64[np.ndarray, "pairs 2"],
    label: Integer[np.ndarray, " pairs"],
    keys: UInt64[np.ndarray, " genes"],
    folds: int,
) -> Int64[np.ndarray, " pairs"]:
    """Unordered pairs dealt by class; a pair that stands twice is dealt once."""
    _, first, unit = np.unique(units(genes), return_index=True, return_inverse=True)
    low, high = np.sort(genes[first], axis=1).T
    key = mixed(keys[low] ^ mixed(keys[high]))
    positive = np.zeros(len(first), dtype=np.int64)
    np.maximum.at(positive, unit, label.astype(np.int64))
    fold = np.empty(len(first), dtype=np.int64)
    fold[np.lexsort((key, positive))] = np.arange(len(first)) % folds
    return fold[unit]


def _shipped(genes: Int64[np.ndarray, "pairs 2"], part: np.ndarray | None) -> Split:
    if part is None:
        raise InputError("the labels ship no split. Give split gene-disjoint, semi-disjoint or random.")
    names = np.asarray(part, dtype=object)
    if strange := set(names) - {"train", "valid", "test"}:
        raise InputError(f"a shipped split has parts train, valid and test; met {min(map(str, strange))!r}.")
    train, valid, test = (np.flatnonzero(names == name) for name in ("train", "valid", "test"))
    return Split("shipped", 0, 0, train, test, genes, valid if len(valid) else None)


def _lacking(split: Split, label: Integer[np.ndarray, " pairs"]) -> str | None:
    """What to say where a side of the split lacks a class."""
    for side, rows in (("training", split.train), ("test", split.test)):
        positive = int(label[rows].sum())
        if not 0 < positive < len(rows):
            advice = {
                "shipped": "Give split gene-disjoint, semi-disjoint or random.",
                "random": "Give fewer folds, or more pairs of the rarer class.",
            }.get(split.kind, "Give fewer folds, more pairs, or another seed.")
            return f"{len(rows)} {side} pairs, {positive} of them positive; both classes are needed. {advice}"
    return None


def _check_pairs(label: Integer[np.ndarray, " pairs"], genes: Int64[np.ndarray, "pairs 2"]) -> None:
    if len(label) != len(genes):
        raise InputError(f"{len(genes)} pairs have {len(label)} labels; a pair has one.")
    if not set(np.unique(label)) <= {0, 1}:
        raise InputError(f"labels of pairs are 0 and 1; met {np.unique(label)[:5].tolist()}.")


def _check_classes(y: pd.Series, folds: int) -> None:
    sizes = y.value_counts()
    if len(sizes) < 2:
        raise InputError(f"all {len(y)} genes are of class '{sizes.index[0]}'; there is nothing to tell apart.")
    if sizes.iloc[-1] < folds:
        raise InputError(
            f"class '{sizes.index[-1]}' has {sizes.iloc[-1]} genes for {folds} folds, and each fold tests one at least. "
            "Give fewer folds, or join or drop the class."
        )


def _numbered_genes(y: pd.Series) -> Int64[np.ndarray, "genes 1"]:
    if not y.index.is_unique:
        raise InputError(f"gene {y.index[y.index.duplicated()][0]!r} has two labels; keep one row a gene.")
    return np.arange(len(y), dtype=np.int64)[:, None]

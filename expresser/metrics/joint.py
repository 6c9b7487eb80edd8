"""Whether cells of two modalities share one embedding: the modalities mixed, types close together, labels that can be carried over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped
from sklearn.neighbors import KNeighborsClassifier

from expresser.errors import InputError

Labels: TypeAlias = Sequence[str] | Shaped[np.ndarray, "_"]

MIXING_NEIGHBOURS = 1000  # the published number, of tens of thousands of cells
_SHARE = 20  # of fewer cells, one in so many: with a fixed 1,000 of them, any embedding would look mixed
_FEWEST = 10  # neighbours, where there are as many
TRANSFER_NEIGHBOURS = 15


@dataclass(frozen=True, eq=False)
class ModalityMixing:
    """Modalities among each cell's `k` nearest other cells of either modality."""

    k: int
    of_cells: Float64[np.ndarray, " cells"] = field(repr=False)
    """``1 - |share - 1/2|``, share: of the neighbours, those of the second modality. 1: half and half; 1/2: all of one."""
    groups: Mapping[str, float]
    """Mean of the cells of each group."""
    by_chance: float
    """`score` of the same neighbours with modalities shuffled inside each group: the most that these cells can reach."""

    @property
    def score(self) -> float:
        """Mean over groups, each counting alike."""
        return float(np.mean(list(self.groups.values())))


def modality_mixing(
    z: Float[np.ndarray, "cells dim"],
    second: Bool[np.ndarray, " modalities"],
    labels: Labels | None = None,
    *,
    k: int | None = None,
    seed: int = 0,
    budget_mb: float = 64.0,
) -> ModalityMixing:
    r"""Are a cell's neighbours of both modalities? Equation 13 of scACT, :math:`m = 1 - |c_A / (c_A + c_R) - 0.5|`.

    The paper takes one cell of each type at random and its 1,000 nearest; here all cells of a type are averaged, and then the
    types. Of fewer than 20,000 cells k is a twentieth of them (10 at least, as far as there are), unless it is given.
    Euclidean distance; of cells as far as the k-th each counts in part, so nothing depends on their order. Where a type has
    more cells of one modality, even perfect mixing is below 1: see `by_chance`, whose shuffling `seed` decides.

    second: which cells are of the second modality. labels: groups (cell types); None takes all cells as one. 10,000 + 10,000
    cells x 25 take about 10 seconds of one thread, `budget_mb` for each of three blocks of distances.

    Relations: mixing alone is easy, since points without any structure have it; look at it beside silhouette and label transfer.
    """
    n = len(z)
    groups = np.zeros(n, "U3") if labels is None else np.asarray(labels).astype(str)
    if len(second) != n or len(groups) != n or not 0 < int(second.sum()) < n:
        raise InputError(
            f"mixing: {n:,} cells, {len(groups):,} labels and {len(second):,} modalities, {int(second.sum()):,} of them the "
            "second. Give a label and a modality a cell, and cells of both modalities."
        )
    _check(z)
    near = min(max(n // _SHARE, _FEWEST), MIXING_NEIGHBOURS, n - 1) if k is None else k
    if not 0 < near < n:
        raise InputError(f"mixing: {near} neighbours of {n:,} cells. Ask for 1 to {n - 1:,}.")
    names, codes = np.unique(groups, return_inverse=True)
    shuffled, rng = second.copy(), np.random.default_rng(seed)
    for code in range(len(names)):
        here = np.flatnonzero(codes == code)
        shuffled[here] = second[rng.permutation(here)]
    shares = _neighbour_shares(z, np.stack([second, shuffled], axis=1), near, budget_mb)
    of_cells = 1.0 - np.abs(shares - 0.5)
    size = np.bincount(codes)
    means = np.stack([np.bincount(codes, column) / size for column in of_cells.T])
    by_group = {str(name): float(mean) for name, mean in zip(names, means[0])}
    return ModalityMixing(near, of_cells[:, 0], by_group, float(means[1].mean()))


@dataclass(frozen=True)
class CosineDistances:
    """Mean of 1 - cosine over pairs of cells, from 0 to 2."""

    within: float
    """Of two cells of one type: mean over the types of two cells or more."""
    between: float
    """Of two cells of different types, over all such pairs; NaN of one type."""


def cosine_distances(z: Float[np.ndarray, "cells dim"], labels: Labels) -> CosineDistances:
    r"""Mean pairwise cosine distances, exact without any pair: :math:`1 - (|\sum u|^2 - \sum |u|^2) / (n (n - 1))`, u of length 1.

    A cell at the origin has no direction and is at distance 1 from all. `within` alone flatters an embedding whose cells all
    point one way: compare it with `between`.
    """
    codes = np.unique(np.asarray(labels).astype(str), return_inverse=True)[1]
    if len(codes) != len(z) or len(z) < 2:
        raise InputError(
            f"cosine distances: {len(z):,} cells and {len(codes):,} labels. Give two cells or more, each a label."
        )
    _check(z)
    x = z.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    u = np.divide(x, length, out=np.zeros_like(x), where=length > 0)
    size = np.bincount(codes).astype(np.float64)
    sums = np.zeros((len(size), x.shape[1]))
    np.add.at(sums, codes, u)
    squares, own = (sums**2).sum(axis=1), np.bincount(codes, (u**2).sum(axis=1))
    many = size > 1
    within = 1.0 - (squares - own)[many] / (size * (size - 1))[many]
    pairs = size.sum() ** 2 - (size**2).sum()
    between = 1.0 - ((sums.sum(axis=0) ** 2).sum() - squares.sum()) / pairs if pairs else np.nan
    return CosineDistances(float(within.mean()) if many.any() else float("nan"), float(between))


@dataclass(frozen=True)
class LabelTransfer:
    """Labels of some cells guessed from those of others."""

    accuracy: float
    balanced: float
    """Mean over types of the share of the type's cells that get their label."""
    by_chance: float
    """Accuracy of always saying the most frequent label of the cells asked."""


def label_transfer(
    known: Float[np.ndarray, "known dim"],
    labels: Labels,
    asked: Float[np.ndarray, "asked _"],
    truth: Labels,
    *,
    k: int = TRANSFER_NEIGHBOURS,
) -> LabelTransfer:
    """Each cell of `asked` gets the most frequent label among its `k` nearest of `known` (of equal ones the first by name).

    Euclidean distance, exact. A type of `truth` that `known` lacks cannot be guessed and counts as wrong.
    """
    names, answers = np.asarray(labels).astype(str), np.asarray(truth).astype(str)
    if len(names) != len(known) or len(answers) != len(asked) or not len(known) or not len(asked):
        raise InputError(
            f"label transfer: {len(known):,} cells with {len(names):,} labels, {len(asked):,} cells with {len(answers):,}. Give "
            "a label a cell, and cells on both sides."
        )
    if known.shape[1] != asked.shape[1]:
        raise InputError(f"label transfer: {known.shape[1]} and {asked.shape[1]} dimensions. Take both from one space.")
    _check(known)
    _check(asked)
    model = KNeighborsClassifier(min(k, len(known)), algorithm="brute").fit(known, names)
    right = model.predict(asked) == answers
    codes = np.unique(answers, return_inverse=True)[1]
    names, counts = np.unique(names, return_counts=True)
    commonest = names[np.argmax(counts)]
    return LabelTransfer(
        float(right.mean()),
        float((np.bincount(codes, right) / np.bincount(codes)).mean()),
        float((answers == commonest).mean()),
    )


def _neighbour_shares(
    z: Float[np.ndarray, "cells dim"], marks: Bool[np.ndarray, "cells marks"], k: int, budget_mb: float
) -> Float64[np.ndarray, "cells marks"]:
    """Of each cell's `k` nearest other cells, the share with each mark; cells as far as the k-th count in part."""
    x = z.astype(np.float64)
    x -= x.mean(axis=0)  # so that what cancels in |a|² - 2ab + |b|² is small
    square = np.einsum("cd,cd->c", x, x)
    marked = marks.astype(np.float32)
    shares = np.empty(marks.shape)
    rows = max(1, int(budget_mb * 2**20 / (8 * len(x))))
    for first in range(0, len(x), rows):
        here = x[first : first + rows]
        # Rounded to float32, of equal points all are equally far, whatever the order of the sums.
        distance = (square + square[first : first + rows, None] - 2.0 * (here @ x.T)).astype(np.float32)
        distance[np.arange(len(here)), first + np.arange(len(here))] = np.inf  # the cell itself
        last = np.partition(distance, k - 1, axis=1)[:, k - 1 : k]
        nearer, tied = distance < last, distance == last
        part = (k - nearer.sum(axis=1)) / tied.sum(axis=1)
        inside = nearer.astype(np.float32) @ marked + part[:, None] * (tied.astype(np.float32) @ marked)
        shares[first : first + rows] = inside / k
    return shares


def _check(z: Float[np.ndarray, "cells dim"]) -> None:
    if not np.isfinite(z).all():
        raise InputError("alignment: the embedding has values that are not finite. Find out what produced them.")

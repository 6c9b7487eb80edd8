"""Which cells train, validate and test: at random, by a column of obs, by clusters of RNA, or all but a few train."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Int64, Shaped
from scipy import sparse

from expresser.errors import InputError
from expresser.factors import varies
from expresser.threads import kept_threads
from translate.align import take_columns
from translate.study import Modality, Study

SHARES = (0.7, 0.15, 0.15)  # train, valid, test
_PARTS = {"train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "test": 2}
_ROTATIONS = 5
_NEIGHBOURS, _COMPONENTS = 15, 50
_FEWEST = 20  # cells to embed

Cells = Int64[np.ndarray, " cells"]
Names = Shaped[np.ndarray, " cells"]


@dataclass(frozen=True, eq=False)
class Split:
    """Numbers of cells of a study, ascending; no cell is in two parts."""

    name: str
    train: Int64[np.ndarray, " train"] = field(repr=False)
    valid: Int64[np.ndarray, " valid"] = field(repr=False)
    test: Int64[np.ndarray, " test"] = field(repr=False)

    def __post_init__(self) -> None:
        cells = np.concatenate([self.train, self.valid, self.test])
        twice = len(cells) - len(np.unique(cells))
        if twice or not len(cells):
            raise InputError(
                f"split {self.name!r}: {len(self.train)} training, {len(self.valid)} validation and {len(self.test)} test "
                f"cells, {twice} of them in two parts. A cell belongs to one part, and there must be some."
            )

    def __repr__(self) -> str:
        return f"Split({self.name}: {len(self.train):,} train, {len(self.valid):,} valid, {len(self.test):,} test)"


def split_random(
    cells: Study | pd.Index | Sequence[str] | int,
    *,
    shares: tuple[float, float, float] = SHARES,
    seed: int = 0,
    paired_only: bool = True,
) -> Split:
    """Exact shares of the cells, in the order of a hash of seed and cell name: the order of a file does not matter.

    `cells`: a study (those with every modality take part, others train, unless `paired_only` is False; where no cell has
    every modality, these shares of the cells of each), cell names, or how many cells there are. Neighbours in a tissue or
    clones fall on both sides: for new donors or types use `split_by_column`.
    """
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6 or shares[0] == 0:
        raise InputError(f"split: shares {shares} of train, valid and test must not be negative and must sum to 1.")
    names = _names(cells)
    groups, unpaired = _taking_part(cells, len(names), paired_only)
    parts = np.zeros(len(names), dtype=np.int64)
    for some in groups:
        _prove_some(some, 1 + sum(share > 0 for share in shares[1:]), isinstance(cells, Study) and not unpaired)
        n_valid, n_test = (max(round(share * len(some)), 1) if share > 0 else 0 for share in shares[1:])
        order = some[_keyed_order(names[some], seed)]
        parts[order[:n_test]], parts[order[n_test : n_test + n_valid]] = 2, 1
    return _split(f"random{', of each modality by itself' if unpaired else ''}, seed {seed}", parts)


def split_all(study: Study, needs: Sequence[Modality], *, share: float = 0.05, seed: int = 0) -> Split:
    """Every cell trains but this share, at least two, by whose loss training is watched; none is held out to the end.

    For embeddings, which are wanted of the very cells they are fitted to. Those watched have every modality of `needs`, and
    are drawn in the order of a hash of seed and cell name.
    """
    some = np.flatnonzero(np.logical_and.reduce([study.has(m) for m in needs])).astype(np.int64)
    if len(some) < _FEWEST:
        raise InputError(
            f"split: {len(some):,} cells were measured in {' and '.join(needs)}; an embedding needs {_FEWEST} at least. Give "
            "more cells."
        )
    parts = np.zeros(study.n_cells, dtype=np.int64)
    parts[some[_keyed_order(_names(study)[some], seed)[: max(round(share * len(some)), 2)]]] = 1
    return _split(f"all cells; {share:.0%} of them only watched, seed {seed}", parts)


def thinned_split(split: Split, study: Study, most: int) -> Split:
    """At most so many cells of each part, the first in the order of a hash of their names; those that are left out are in none."""
    parts, said, names = [], [], _names(study)
    for what, cells in (("training", split.train), ("validation", split.valid), ("test", split.test)):
        if len(cells) > most:
            said.append(f"{most:,} of {len(cells):,} {what} cells")
            cells = np.sort(cells[_keyed_order(names[cells], 0)[:most]])
        parts.append(cells)
    return Split("; ".join([split.name, *said]), *parts)


def split_by_column(
    cells: Study | pd.DataFrame,
    column: str,
    *,
    valid: Sequence[str] | str | None = None,
    test: Sequence[str] | str | None = None,
    shares: tuple[float, float, float] = SHARES,
    seed: int = 0,
    paired_only: bool = True,
) -> Split:
    """By a column of obs: its values are "train", "valid", "test", or groups (donor, cell type) that stay whole.

    Groups: `valid` and `test` name those held out; a part left None takes whole groups in keyed random order until it has
    about its share of the cells. Of a study those with every modality take part, others train, unless `paired_only` is
    False or no cell has every modality; a cell without a value is an error where it takes part.
    """
    obs = cells.obs if isinstance(cells, Study) else cells
    if column not in obs:
        raise InputError(f"split: obs has no column {column!r}; it has {[str(c) for c in obs.columns][:10]}.")
    some = np.sort(np.concatenate(_taking_part(cells, len(obs), paired_only)[0]))
    _prove_some(some, 2, isinstance(cells, Study))
    absent = obs[column].isna().to_numpy()[some]
    if absent.any():
        raise InputError(
            f"split: {int(absent.sum())} of {len(some)} cells have no {column!r} (first: "
            f"{str(obs.index[some[np.argmax(absent)]])!r}). Fill them in (obs[{column!r}].fillna('unknown') makes one group "
            "of them) or leave these cells out."
        )
    values = np.array([str(v) for v in obs[column].to_numpy()[some]], dtype=object)
    parts = np.zeros(len(obs), dtype=np.int64)
    if valid is None and test is None and {v.lower() for v in values} <= set(_PARTS):
        parts[some] = [_PARTS[v.lower()] for v in values]
        return _split(f"by {column}", parts)
    groups, sizes = np.unique(values.astype(str), return_counts=True)
    if valid is None and test is None and 2 * len(groups) > len(some) > _ROTATIONS:
        raise InputError(
            f"split: {column!r} has {len(groups):,} values for {len(some):,} cells (first: {', '.join(groups[:3])}): no groups of "
            "cells that could stay whole. Name a column such as donor, batch or cell type, or split at random."
        )
    chosen = [_listed(named, groups, column) for named in (valid, test)]
    if set(chosen[0] or []) & set(chosen[1] or []):
        raise InputError(f"split: {sorted(set(chosen[0] or []) & set(chosen[1] or []))} are in both valid and test.")
    held = _whole_groups(groups, sizes, chosen, shares, seed, column)
    for part, names in zip((1, 2), held):
        parts[some[np.isin(values.astype(str), names)]] = part
    keyed = ", seed " + str(seed) if None in chosen else ""
    whole = "; ".join(f"{part} {', '.join(names)}" for part, names in zip(("valid", "test"), held) if names)
    return _split(f"by {column}: {whole}{keyed}", parts)


def validate_at_random(study: Study, split: Split, *, share: float = SHARES[1], seed: int = 0) -> Split:
    """The split with this share of its training cells validating instead: for data with too few groups to spare one.

    Of the cells with every modality; in the order of a hash of seed and name. What is monitored is then how well cells of
    known groups are predicted, the test is of new ones.
    """
    some = np.intersect1d(split.train, study.paired)
    _prove_some(some, 2, True)
    order = some[_keyed_order(_names(study)[some], seed)]
    valid = np.sort(order[: max(round(share * len(some)), 1)])
    name = f"{split.name}; {share:.0%} of training cells validate, seed {seed}"
    return Split(name, np.setdiff1d(split.train, valid), np.union1d(split.valid, valid), split.test)


def split_by_cluster(
    study: Study, *, rotation: int = 0, resolution: float = 1.5, seed: int = 0, paired_only: bool = True
) -> Split:
    """Whole clusters of RNA are held out: the largest validates, the second tests (Wu et al., PNAS 2021, "Data splits").

    Size-normalised log1p RNA, 50 principal components, 15 neighbours, Leiden with 2 iterations. Rotation i of the five
    takes clusters i and i + 1 (of the five largest, after the last comes the first), so none is twice validation or
    twice test. Cells and genes are put in the order of their names first: the order of a file does not matter.
    """
    if not 0 <= rotation < _ROTATIONS:
        raise InputError(f"split: rotation {rotation}; there are {_ROTATIONS}, numbered 0 to {_ROTATIONS - 1}.")
    some = np.flatnonzero(study.has("rna")).astype(np.int64)
    some = study.paired if paired_only else some
    _prove_some(some, _NEIGHBOURS + 1, True)
    clusters = _leiden(study, some[np.argsort(_names(study)[some], kind="stable")], resolution, seed)
    needed = 3 if rotation == 0 else _ROTATIONS
    if len(clusters) < needed:
        raise InputError(
            f"split: {len(some):,} cells fall into {len(clusters)} clusters at resolution {resolution}; rotation {rotation} "
            f"needs {needed} (two held out, the rest to train; rotations go over the five largest). Raise the resolution, "
            "or use split_random or split_by_column."
        )
    parts = np.zeros(study.n_cells, dtype=np.int64)
    parts[clusters[rotation]], parts[clusters[(rotation + 1) % _ROTATIONS]] = 1, 2
    return _split(f"by cluster, rotation {rotation}, resolution {resolution:g}, seed {seed}", parts)


def _leiden(study: Study, cells: Cells, resolution: float, seed: int) -> list[Int64[np.ndarray, " _"]]:
    """Clusters of these cells, the largest first (of equal ones that with the earliest cell)."""
    import scanpy as sc  # here, since the other splits should not cost its seconds of import

    rna = study.measured["rna"]
    columns = np.argsort(rna.var.index.to_numpy(dtype=object), kind="stable").astype(np.int64)
    counts = take_columns(rna.matrix, columns, study.rows["rna"][cells])
    counts = counts[:, counts.getnnz(axis=0) > 0]
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    if min(counts.shape) < 3 or not varies(counts):
        raise InputError(
            f"split: {counts.shape[0]:,} cells with {counts.shape[1]:,} expressed genes, or all alike, have no clusters. Use "
            "split_random or split_by_column (--split random, --split COLUMN)."
        )
    scale = np.median(totals[totals > 0]) / np.maximum(totals, 1)
    x = sparse.csr_matrix(sparse.diags_array(scale.astype(np.float32)) @ counts)
    x.data = np.log1p(x.data)
    adata = AnnData(x, obs=pd.DataFrame(index=[str(i) for i in range(len(cells))]))
    with kept_threads():
        sc.pp.pca(adata, n_comps=min(_COMPONENTS, *(size - 1 for size in x.shape)), random_state=seed)
        sc.pp.neighbors(adata, n_neighbors=_NEIGHBOURS, random_state=seed)
    sc.tl.leiden(adata, resolution, random_state=seed, n_iterations=2, flavor="igraph", directed=False)
    labels = adata.obs["leiden"].astype(int).to_numpy()
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return [cells[rows] for rows in sorted(members, key=lambda rows: (-len(rows), rows[0]))]


def _taking_part(
    cells: Study | pd.DataFrame | pd.Index | Sequence[str] | int, n: int, paired_only: bool
) -> tuple[list[Cells], bool]:
    """Cells that are dealt out, each set by itself; and whether they are sets of one modality each, no cell having all."""
    if not isinstance(cells, Study) or not paired_only:
        return [np.arange(n, dtype=np.int64)], False
    if len(cells.paired) or len(cells.modalities) < 2:
        return [cells.paired], False
    first = np.full(n, -1)  # of a cell with some of several modalities, the first
    for number, modality in reversed(list(enumerate(cells.modalities))):
        first[cells.has(modality)] = number
    return [np.flatnonzero(first == number).astype(np.int64) for number in np.unique(first)], True


def _names(cells: Study | pd.DataFrame | pd.Index | Sequence[str] | int) -> Names:
    if isinstance(cells, int):
        return np.array([str(i) for i in range(cells)], dtype=object)
    index = cells.obs.index if isinstance(cells, Study) else cells
    return np.array([str(name) for name in index], dtype=object)


def _keyed_order(names: Names, seed: int) -> Cells:
    """A permutation that depends on seed and names, not on the order they come in."""
    keys = [hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest() for name in names]
    return np.array(sorted(range(len(keys)), key=lambda i: (keys[i], names[i])), dtype=np.int64)


def _prove_some(cells: Cells, least: int, of_study: bool) -> None:
    if len(cells) < least:
        hint = " Only cells with every modality take part: paired_only=False takes all." if of_study else ""
        raise InputError(f"split: {len(cells)} cells take part, at least {least} are needed.{hint}")


def _listed(named: Sequence[str] | str | None, groups: Names, column: str) -> list[str] | None:
    if named is None:
        return None
    wanted = [named] if isinstance(named, str) else [str(name) for name in named]
    unknown = [name for name in wanted if name not in set(groups)]
    if unknown:
        raise InputError(f"split: {column!r} has no {unknown}; its groups are {[str(g) for g in groups][:20]}.")
    return wanted


def _whole_groups(
    groups: Names,
    sizes: Cells,
    chosen: list[list[str] | None],
    shares: tuple[float, float, float],
    seed: int,
    column: str,
) -> list[list[str]]:
    """Groups of (valid, test): as chosen, else dealt out in keyed order where they fit, at least one each."""
    size = {str(name): int(n) for name, n in zip(groups, sizes)}
    held = [list(names or []) for names in chosen]
    open_ = [part for part, names in enumerate(chosen) if names is None]
    free = [str(groups[i]) for i in _keyed_order(groups, seed) if str(groups[i]) not in held[0] + held[1]]
    if len(free) <= len(open_):
        raise InputError(
            f"split: {column!r} has {len(groups)} groups ({', '.join(map(str, groups[:5]))}), too few for "
            f"{' and '.join(('valid', 'test')[part] for part in open_) or 'held-out groups'} and some left to train."
        )
    target = [share * sum(size.values()) for share in shares[1:]]
    left = list(free)
    for name in free:
        room = [p for p in open_ if sum(size[g] for g in held[p]) + size[name] / 2 < target[p]]  # nearer with it
        reserved = 1 + sum(not held[p] for p in open_)  # one to train, one for each part that has none yet
        if room and len(left) > reserved - any(not held[p] for p in room):
            part = max(room, key=lambda p: target[p] - sum(size[g] for g in held[p]))
            held[part].append(name)
            left.remove(name)
    for part in open_:
        if not held[part]:  # every group is larger than the share: the smallest
            least = min(left, key=lambda name: (size[name], free.index(name)))
            held[part].append(least)
            left.remove(least)
    return held


def _split(name: str, parts: Cells) -> Split:
    return Split(name, *(np.flatnonzero(parts == part).astype(np.int64) for part in range(3)))

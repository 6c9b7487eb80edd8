"""Two sets of cells brought together without pairs: by the activity of the same genes and optimal transport, or by MMD alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from scipy import sparse
from scipy.spatial.distance import cdist
from torch import Tensor

from expresser.corpus.stream import permutation
from translate.batches import SparseRows
from translate.feed import Feed, atac_input, rna_input
from translate.gene_peaks import peak_gene_weights
from translate.losses import gathered

MOST = 3000  # cells of each modality that a coupling is worked out for; others are placed by it
ROUNDS = 300  # of scaling rows and columns
SOFT = 0.05  # of the median cost: how far mass spreads (ε)
RELAXED = 1.0  # of the median cost: what a cell that is not wholly matched costs, a nat (ρ)
AT_ONCE = 1024  # cells
Side = Literal["rna", "atac"]
SIDES: tuple[Side, Side] = ("rna", "atac")
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of MMD's kernels, times the median squared distance
_LARGEST = 600.0  # exponent; e^-600 is still a double

Latents = Float64[np.ndarray, "_ latent"]
Places = Float64[np.ndarray, "_ place"]
Codes = Int64[np.ndarray, " _"]


@dataclass(frozen=True, eq=False)
class SharedGenes:
    """Directions of two latents along which expression and gene activity move the same genes, the strongest first.

    Expression is regressed on the one latent and gene activity (`translate.gene_peaks`) on the other, both standardised for
    each gene; singular vectors of the product of the two sets of slopes are the directions. No cell is compared with another.
    """

    rna: Float64[np.ndarray, "latent shared"] = field(repr=False)
    atac: Float64[np.ndarray, "latent shared"] = field(repr=False)

    @classmethod
    def fit(cls, feed: Feed, rna: tuple[Codes, Latents], atac: tuple[Codes, Latents]) -> "SharedGenes | None":
        """Of cells (their numbers and latents) of each modality. None where no peak lies near a gene of known place."""
        weights = peak_gene_weights(atac_input(feed.inputs).regions, rna_input(feed.inputs).var)
        if not weights.nnz:
            return None
        (u, zu), (v, zv) = rna, atac
        near = np.asarray(weights.sum(axis=1)).ravel()
        total = np.concatenate([block @ near for block in _opened(feed, v)])
        scale = max(float(np.median(total)), 1e-6)

        def activity() -> Iterator[Float64[np.ndarray, "_ genes"]]:
            for block in _opened(feed, v):
                factor = scale / np.maximum(block @ near, 1e-6)
                yield np.log1p((block @ weights).toarray() * factor[:, None])

        slopes = _slopes(zu, _expressed(feed, u)), _slopes(zv, activity())
        left, strength, right = np.linalg.svd(slopes[0] @ slopes[1].T)
        if not strength[0] > 0:
            return None
        root = np.sqrt(strength / strength[0])
        return cls(*(side * (root / _spread(z @ side)) for side, z in ((left, zu), (right.T, zv))))


@dataclass(frozen=True, eq=False)
class Coupling:
    r"""Entropic transport between two sets of cells, and where it sends other cells.

    Minimises :math:`\sum_{ij} P_{ij} C_{ij} + \varepsilon KL(P \| ab^T)` plus ρ times the divergence of both marginals from even
    ones, so that types of which one side has more need not go elsewhere (Chizat et al., Math. Comp. 2018). C: squared
    distances of places that can be compared; cells of different labels cost as much as the farthest more. A cell is sent to
    the mean latent of its partners (Pooladian & Niles-Weed, 2021), which for other cells follows from the scalings.
    """

    places: tuple[Places, Places] = field(repr=False)
    labels: tuple[Codes, Codes] = field(repr=False)
    latents: tuple[Latents, Latents] = field(repr=False)
    scalings: tuple[Float64[np.ndarray, " _"], Float64[np.ndarray, " _"]] = field(repr=False)  # logarithms
    epsilon: float
    penalty: float

    @classmethod
    def fit(
        cls, places: tuple[Places, Places], labels: tuple[Codes, Codes], latents: tuple[Latents, Latents]
    ) -> "Coupling":
        """Of two sets of cells: where they are compared, their labels (-1: none), and their own latents."""
        cost = cdist(*places, "sqeuclidean")
        middle, penalty = float(np.median(cost)), float(cost.max())
        cost += penalty * _differ(*labels)
        epsilon = max(SOFT * middle, 1e-12)
        power = RELAXED / (RELAXED + SOFT)
        # Rows lose their least cost, which their scaling gives back: what is left can be exponentiated.
        least = cost.min(axis=1)
        kernel = np.exp(-np.minimum((cost - least[:, None]) / epsilon, _LARGEST))
        n, m = cost.shape
        u, v = np.ones(n), np.ones(m)
        for _ in range(ROUNDS):
            # Scalings of the whole kernel are u e^(least / ε); the relaxed step takes a power of those.
            u = _powered(kernel @ v / m, power, least / epsilon)
            v = np.maximum(kernel.T @ u / n, 1e-300) ** -power
        scalings = np.log(np.maximum(u, 1e-300)) + least / epsilon, np.log(np.maximum(v, 1e-300))
        return cls(places, labels, latents, scalings, epsilon, penalty)

    def sent(self, places: Places, labels: Codes, *, side: int) -> Latents:
        """Where cells of one side (0 or 1) come to lie in the latent of the other."""
        other = 1 - side
        found = []
        for start in range(0, len(places), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            cost = cdist(places[some], self.places[other], "sqeuclidean")
            cost += self.penalty * _differ(labels[some], self.labels[other])
            exponent = self.scalings[other] - cost / self.epsilon
            share = np.exp(exponent - exponent.max(axis=1, keepdims=True))
            found.append(share @ self.latents[other] / share.sum(axis=1, keepdims=True))
        return np.concatenate(found) if found else np.zeros((0, self.latents[other].shape[1]))


def sent_by_genes(
    feed: Feed, train: Codes, latents: Mapping[Side, Latents], labels: Codes
) -> dict[Side, Latents] | None:
    """Where the activity of genes sends each cell in the latent of the other modality; None where no peak lies near a gene.

    latents: by modality, a row a cell of the feed. Of the training cells at most `MOST` of each modality decide; labels (-1:
    none) keep cells of known types apart. Cells without a modality have 0.
    """
    own = [train[feed.has(side)[train]] for side in SIDES]
    some = [np.sort(c[permutation(len(c), 1 + i)[:MOST]]) if len(c) > MOST else c for i, c in enumerate(own)]
    rna, atac = ((cells, latents[side][cells]) for cells, side in zip(some, SIDES))
    shared = SharedGenes.fit(feed, rna, atac)
    if shared is None:
        return None
    places = [latents["rna"] @ shared.rna, latents["atac"] @ shared.atac]
    places = [place - place[cells].mean(axis=0) for place, cells in zip(places, some)]
    u, v = some
    coupling = Coupling.fit((places[0][u], places[1][v]), (labels[u], labels[v]), (rna[1], atac[1]))
    found: dict[Side, Latents] = {}
    for number, side in enumerate(SIDES):
        has = np.flatnonzero(feed.has(side))
        found[side] = np.zeros_like(latents[side])
        found[side][has] = coupling.sent(places[number][has], labels[has], side=number)
    return found


def affine(
    x: Latents, y: Places, *, ridge: float = 1e-2
) -> tuple[Float64[np.ndarray, "latent place"], Float64[np.ndarray, " place"]]:
    """Weight and shift of the best ``x @ weight + shift``; ridge: of the mean variance of x, which keeps weights small."""
    a, b = x.mean(axis=0), y.mean(axis=0)
    gram = (x - a).T @ (x - a)
    gram += np.eye(len(gram)) * (ridge * max(np.trace(gram) / len(gram), 1e-12))
    weight = np.linalg.solve(gram, (x - a).T @ (y - b))
    return weight, b - a @ weight


def discrepancy(
    x: Float[Tensor, "cells latent"], y: Float[Tensor, "others latent"]
) -> tuple[Float32[Tensor, " cells"], Float32[Tensor, " others"]]:
    r"""Each cell's part of the maximum mean discrepancy of two sets of the whole step; the means of both add up to it.

    .. math:: MMD^2 = \overline{k(x, x')} + \overline{k(y, y')} - 2 \overline{k(x, y)}

    k: a mean of Gaussian kernels, whose widths are shares and multiples of the median squared distance between the sets.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = x.float(), y.float()
        every_x, every_y = gathered(x), gathered(y)
        middle = torch.cdist(every_x.detach(), every_y.detach()).square().median().clamp_min(1e-6)

        def near(a: Tensor, b: Tensor) -> Tensor:
            square = (a[:, None] - b[None]).square().sum(dim=2)
            return torch.stack([(-square / (width * middle)).exp() for width in WIDTHS]).mean(dim=0).mean(dim=1)

        return near(x, every_x) - near(x, every_y), near(y, every_y) - near(y, every_x)


def _powered(sums: Float64[np.ndarray, " n"], power: float, taken: Float64[np.ndarray, " n"]) -> np.ndarray:
    """``sums ** -power`` of sums that stand for ``sums * exp(-taken)``, and over ``exp(taken)``, which stays taken out."""
    exponent = (power - 1) * taken - power * np.log(np.maximum(sums, 1e-300))
    return np.exp(np.clip(exponent, -_LARGEST, _LARGEST))


def _differ(a: Codes, b: Codes) -> np.ndarray:
    return (a[:, None] != b[None]) & (a[:, None] >= 0) & (b[None] >= 0)


def _spread(x: Latents) -> Float64[np.ndarray, " latent"]:
    return np.maximum(x.std(axis=0), 1e-9)


def _slopes(latent: Latents, values: Iterator[np.ndarray]) -> Float64[np.ndarray, "latent genes"]:
    """Of each gene's values on the latent, over the gene's standard deviation; 0 for genes that do not vary."""
    n, width = latent.shape
    centred = latent - latent.mean(axis=0)
    gram = centred.T @ centred + np.eye(width) * (1e-3 * n)
    products: Any = 0.0
    moments: Any = 0.0
    at = 0
    for block in values:
        here = centred[at : at + len(block)]
        at += len(block)
        own, theirs = here.T @ block, np.stack([block.sum(axis=0), np.square(block).sum(axis=0)])
        products, moments = products + own, moments + theirs
    mean, square = moments / n
    sd = np.sqrt(np.maximum(square - mean**2, 0))
    return np.linalg.solve(gram, products) * np.divide(1.0, sd, out=np.zeros_like(sd), where=sd > 1e-6)


def _expressed(feed: Feed, cells: Codes) -> Iterator[Float64[np.ndarray, "_ genes"]]:
    """ln(1 + size-normalised counts) of these cells, some at a time."""
    if feed.rna_counts is None:
        raise ValueError("no RNA was read.")
    found, rows = rna_input(feed.inputs), feed.rows["rna"][cells]
    for start in range(0, len(rows), AT_ONCE):
        yield found.targets(feed.rna_counts[rows[start : start + AT_ONCE]]).log1p().toarray().astype(np.float64)


def _opened(feed: Feed, cells: Codes) -> Iterator[sparse.csr_matrix]:
    """Peaks of these cells, 0/1, some at a time."""
    if feed.atac_open is None:
        raise ValueError("no ATAC was read.")
    rows = feed.rows["atac"][cells]
    for start in range(0, len(rows), AT_ONCE):
        yield _matrix(feed.atac_open.rows(rows[start : start + AT_ONCE]))


def _matrix(rows: SparseRows) -> sparse.csr_matrix:
    of_bag = np.tile(np.arange(rows.n_cells), rows.n_blocks)
    cells = np.repeat(of_bag, rows.offsets.long().diff().numpy())
    ones = np.ones(len(cells))
    return sparse.csr_matrix((ones, (cells, rows.indices.numpy())), shape=(rows.n_cells, rows.n_features))

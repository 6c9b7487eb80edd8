"""What every simulator draws from: seeded streams, abundances, effects of types and donors, depth, counts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32, Float64, Int64
from scipy import stats

from expresser.errors import InputError

# Cells are drawn in blocks of this fixed size, each from its own generator keyed by (seed, block): a cell does not
# depend on how many follow it, and the dense work space of a block stays near 100 MB at 20,000 genes.
CELLS_PER_BLOCK = 256

# Minus the natural log of the share of all counts held by the gene of each rank: mean of the two PBMC samples up to
# 13,700 genes, extrapolated beyond, so that a whole annotation can be simulated and its tail is practically never seen.
_RANK = np.r_[1, 3, 10, 20, 30, 45, 60, 75, 90, 120, 160, 200, 300, 500]
_RANK = np.r_[_RANK, 1000, 2000, 4000, 6000, 8000, 10_000, 12_000, 13_700, 40_000]
_MINUS_LOG_SHARE = np.r_[3.75, 4.18, 4.65, 4.89, 5.14, 5.39, 5.57, 5.76, 6.06, 6.54, 7.05, 7.40, 7.94, 8.53]
_MINUS_LOG_SHARE = np.r_[_MINUS_LOG_SHARE, 9.22, 9.92, 10.80, 11.48, 12.13, 12.91, 13.98, 14.78, 19.0]
MAX_GENES = int(_RANK[-1])

# One stream of random numbers each. The order is part of the seed: only append.
_PURPOSES = (
    "abundance", "types", "modules", "donors", "dispersion", "cells",  # simulate_rna
    "genome", "states", "loadings", "peaks", "reference", "proteins",  # the other simulators
)  # fmt: skip

_DEPTH_BETWEEN_TYPES = 0.2  # share of the variance of log depth that lies between cell types (0.23 in labelled PBMC)


def stream(args: Mapping[str, Any], purpose: str, *key: int) -> np.random.Generator:
    """One stream a purpose: another number of types, say, leaves the genes' abundance as it was."""
    return np.random.default_rng(np.random.SeedSequence(args["seed"], spawn_key=(_PURPOSES.index(purpose), *key)))


def check_ranges(where: str, args: Mapping[str, Any], ranges: Mapping[str, tuple[float | int, float | int]]) -> None:
    """Every number in its range, or an InputError that names it."""
    for name, (low, high) in ranges.items():
        if not low <= args[name] <= high:  # NaN lands here too
            raise InputError(
                f"{where}: {name} is {args[name]}; it must lie from {low:g} to {high:g}. Pass one that does."
            )


def draw_abundance(
    rng: np.random.Generator, n_genes: int
) -> tuple[Float64[np.ndarray, " genes"], Float64[np.ndarray, " genes"]]:
    """Shares of all counts in random gene order (sum 1), and how much of an effect a gene takes.

    The more abundant the less: undamped, one type or program moves the ribosomal genes, half of all counts, and with
    them every other gene.
    """
    log_share = -np.interp(np.log(np.arange(1, n_genes + 1)), np.log(_RANK), _MINUS_LOG_SHARE)
    share = np.exp(rng.permutation(log_share) + rng.normal(0, 0.1, n_genes))
    damping = (1 + share / 4e-4) ** -0.3 * np.exp(rng.normal(0, 0.2, n_genes))
    return share / share.sum(), damping


def draw_dispersion(
    rng: np.random.Generator, share: Float64[np.ndarray, " genes"], scale: float | int
) -> Float64[np.ndarray, " genes"]:
    """The variance over mean squared that nothing explains: less, the more abundant a gene is."""
    return scale * (0.03 + 0.3 / (1 + share / 4e-4)) * np.exp(rng.normal(0, 0.4, len(share)))


def type_frequencies(n_types: int) -> Float64[np.ndarray, " types"]:
    """From common to rare (0.15 of the commonest), sum 1."""
    frequency = np.geomspace(1, 0.15, n_types)
    return frequency / frequency.sum()


def draw_types(rng: np.random.Generator, n_types: int, n_features: int) -> Float64[np.ndarray, "types features"]:
    """Log effect of each type on each feature: a tree of two levels plus markers, zero where there is one type."""
    if n_types == 1:
        return np.zeros((1, n_features))
    lineage = np.arange(n_types) % int(np.ceil(np.sqrt(n_types)))
    shape = (n_types, n_features)
    effect = rng.normal(0, 1, shape) * (rng.random(shape) < 0.25)
    effect += rng.gamma(3, 0.75, shape) * (rng.random(shape) < 0.012)
    effect = effect[lineage] + rng.normal(0, 0.5, shape) * (rng.random(shape) < 0.15)
    effect += rng.gamma(3, 0.75, shape) * (rng.random(shape) < 0.008)
    return effect


def draw_depth_shift(
    rng: np.random.Generator, frequency: Float64[np.ndarray, " types"], depth_sd: float | int
) -> Float64[np.ndarray, " types"]:
    """Shift of each type's log depth from the median; a fifth of the variance of log depth. Zero for one type."""
    if len(frequency) == 1:
        return np.zeros(1)
    shift = rng.normal(size=len(frequency))
    shift -= frequency @ shift
    return shift * (depth_sd * np.sqrt(_DEPTH_BETWEEN_TYPES / (frequency @ shift**2)))


def draw_donors(
    rng: np.random.Generator, args: Mapping[str, Any], n_features: int
) -> Float64[np.ndarray, "donors features"]:
    """Log effect of each donor, with that of its batch, on each feature."""
    n_donors = args["n_batches"] * args["donors_per_batch"]
    batch = rng.normal(0, args["batch_sd"], (args["n_batches"], n_features)).repeat(args["donors_per_batch"], axis=0)
    return batch + rng.normal(0, args["donor_sd"], (n_donors, n_features))


def draw_depth(
    rng: np.random.Generator,
    shift: Float64[np.ndarray, " cells"],
    *,
    median: float | int,
    sd: float | int,
    skew: float | int,
    typed: bool,
) -> Float64[np.ndarray, " cells"]:
    """Expected total counts: log skew-normal around the shift of the cell's type.

    The skew-normal is delta |z0| + sqrt(1 - delta^2) z1 (Azzalini 1985), delta solved from the skewness wanted, here
    brought to standard deviation 1 and median 0. `typed`: the shifts between types already hold their part of `sd`.
    """
    within = 1 - _DEPTH_BETWEEN_TYPES if typed else 1.0
    third = (abs(skew) * within**-1.5) ** (2 / 3)
    delta = np.sign(skew) * np.sqrt(np.pi / 2 * third / (third + (2 - np.pi / 2) ** (2 / 3)))
    z = rng.normal(size=(2, len(shift)))
    skewed = delta * np.abs(z[0]) + np.sqrt(1 - delta**2) * z[1]
    middle = stats.skewnorm.median(delta / np.sqrt(1 - delta**2))
    unit = (skewed - middle) / np.sqrt(1 - 2 / np.pi * delta**2)
    return median * np.exp(shift + sd * np.sqrt(within) * unit)


def draw_counts(
    mean: Float32[np.ndarray, "cells genes"], phi: Float32[np.ndarray, " genes"], rng: np.random.Generator
) -> tuple[Int64[np.ndarray, " entries"], Int64[np.ndarray, " entries"], Float32[np.ndarray, " entries"]]:
    r"""Exact negative binomial draws, of which only the non-zero ones (row, gene, count) are ever worked on.

    A gamma-Poisson count is the number of events by time 1 of a Poisson process with a gamma rate of this mean and
    shape 1/phi. Its first event comes at :math:`T = \mathrm{expm1}(\phi E) / (\phi \mu)`, E standard exponential; none
    by 1 is a zero. Given T the rate is :math:`\Gamma(1/\phi + 1) / (1/(\phi\mu) + T)`, which gives the events left
    after T. A gamma and a Poisson for every entry, nine in ten of them zero, take 2.7 times as long (256 x 10,000).
    """
    wait = rng.standard_exponential(mean.shape, dtype=np.float32)
    row, gene = np.nonzero(wait < mean)  # necessary for T < 1, and sufficient when phi = 0
    e, mu, over = (values.astype(np.float64) for values in (wait[row, gene], mean[row, gene], phi[gene]))
    over = np.maximum(over, 1e-9)  # Poisson to nine digits
    first = np.expm1(over * e) / (over * mu)
    seen = first < 1
    row, gene, mu, over, first = row[seen], gene[seen], mu[seen], over[seen], first[seen]
    rate = rng.standard_gamma(1 / over + 1) / (1 / (over * mu) + first)
    return row, gene, (1 + rng.poisson(rate * (1 - first))).astype(np.float32)


def cells_table(
    args: Mapping[str, Any],
    cell_type: Int64[np.ndarray, " cells"],
    donor: Int64[np.ndarray, " cells"],
    depth: Float64[np.ndarray, " cells"],
) -> pd.DataFrame:
    """obs: `cell_type`, `batch`, `donor`, `depth`, indexed by cell names."""
    donors = [f"donor{b}_{d}" for b in range(args["n_batches"]) for d in range(args["donors_per_batch"])]
    return pd.DataFrame(
        {
            "cell_type": _labels(cell_type, "type", args["n_types"]),
            "batch": _labels(donor // args["donors_per_batch"], "batch", args["n_batches"]),
            "donor": pd.Categorical.from_codes(donor, categories=donors),
            "depth": depth,
        },
        index=[f"cell{i:07d}" for i in range(len(donor))],
    )


def gene_ids(n_genes: int) -> list[str]:
    """Ensembl-like ids of a reserved range, which no annotation uses."""
    return [f"ENSG9{j:010d}" for j in range(1, n_genes + 1)]


def gene_symbols(n_genes: int) -> list[str]:
    """SIM0001 and so on."""
    return [f"SIM{j:04d}" for j in range(1, n_genes + 1)]


def _labels(codes: Int64[np.ndarray, " cells"], name: str, n: int) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, categories=[f"{name}{i}" for i in range(n)])

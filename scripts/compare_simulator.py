"""How near simulated RNA counts come to a real data set: a table, and with --out a figure that lays one over the other.

    python scripts/compare_simulator.py --data "$EXPRESSER_DATA/rna/pbmc3k.h5ad" --out simulator.png

The simulation takes the real file's numbers of cells and genes and, but for --fit-depth, the simulator's defaults. Both
matrices are then cut to genes seen in three cells and measured by the same code.
"""

import argparse
import json
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import anndata
import matplotlib
import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float64, Int64
from scipy import sparse, stats
from scipy.sparse.linalg import svds
from sklearn.metrics import roc_auc_score

from expresser.simulate import simulate_rna

MIN_CELLS = 3
DROPPED = 0.1


@dataclass(frozen=True)
class Sample:
    """Counts of genes seen in three cells, and the per-cell and per-gene numbers that everything below needs."""

    counts: sparse.csr_matrix
    total: Float64[np.ndarray, " cells"]
    genes_per_cell: Int64[np.ndarray, " cells"]
    detection: Float64[np.ndarray, " genes"]
    nonzero: Float64[np.ndarray, " entries"]  # log1p(1e4 count / total)
    mean: Float64[np.ndarray, " genes"]  # of counts scaled to the median depth
    cv2: Float64[np.ndarray, " genes"]
    cv2_clipped: Float64[np.ndarray, " genes"]  # values above the gene's fifth largest set to it

    @classmethod
    def of(cls, counts: sparse.csr_matrix) -> "Sample":
        counts = counts.tocsr().astype(np.float64)
        counts = counts[:, np.bincount(counts.indices, minlength=counts.shape[1]) >= MIN_CELLS]
        total = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
        lengths = np.diff(counts.indptr)
        scaled = counts.copy()
        scaled.data *= np.repeat(np.median(total) / total, lengths)
        columns = scaled.tocsc()
        clipped = columns.copy()
        for j in range(columns.shape[1]):
            values = clipped.data[columns.indptr[j] : columns.indptr[j + 1]]
            if len(values) >= 5:
                np.minimum(values, np.partition(values, -5)[-5], out=values)
        return cls(
            counts=counts,
            total=total,
            genes_per_cell=lengths.astype(np.int64),
            detection=np.bincount(counts.indices, minlength=counts.shape[1]) / counts.shape[0],
            nonzero=np.log1p(1e4 * counts.data / np.repeat(total, lengths)),
            mean=np.asarray(columns.mean(axis=0)).ravel(),
            cv2=_cv2(columns),
            cv2_clipped=_cv2(clipped),
        )


def _cv2(columns: sparse.csc_matrix) -> Float64[np.ndarray, " genes"]:
    mean = np.asarray(columns.mean(axis=0)).ravel()
    return np.asarray(columns.multiply(columns).mean(axis=0)).ravel() / mean**2 - 1


@dataclass(frozen=True)
class Imputation:
    """Errors on dropped non-zeros (log1p of counts per 1e4), and what is left once gene and cell are known."""

    gene_mean_mae: float
    additive_mae: float
    svd_mae: float  # additive + rank-10 SVD of the residuals, unobserved entries zero
    svd_explained: float  # share of the additive model's squared error on dropped entries that the SVD removes
    type_explained: float  # the same for the mean residual of (cell type, gene), shrunk by 3; NaN without labels
    singular_values: Float64[np.ndarray, " components"]


def mean_by(
    key: Int64[np.ndarray, " entries"], values: Float64[np.ndarray, " entries"], size: int, prior: float = 0
) -> Float64[np.ndarray, " keys"]:
    """Mean value of each key, with `prior` zeros added; 0 where there is none."""
    return np.bincount(key, values, minlength=size) / np.maximum(np.bincount(key, minlength=size) + prior, 1)


def impute(
    counts: sparse.csr_matrix, cell_type: Int64[np.ndarray, " cells"] | None, *, rank: int = 10, seed: int = 0
) -> Imputation:
    """Drop a tenth of the non-zeros, normalise what is left, fit, predict the dropped."""
    n, m = counts.shape
    entries = counts.tocoo()
    row, gene = entries.row.astype(np.int64), entries.col.astype(np.int64)
    dropped = np.random.default_rng(seed).random(counts.nnz) < DROPPED
    total = np.bincount(row[~dropped], entries.data[~dropped], minlength=n)
    x = np.log1p(1e4 * entries.data / np.maximum(total, 1)[row])
    r, g, y = row[~dropped], gene[~dropped], x[~dropped]
    rr, gg, truth = row[dropped], gene[dropped], x[dropped]

    gene_mean = mean_by(g, y, m)
    grand, gene_effect, cell_effect = y.mean(), np.zeros(m), np.zeros(n)
    for _ in range(20):  # alternating means: converged to four digits
        gene_effect = mean_by(g, y - grand - cell_effect[r], m)
        cell_effect = mean_by(r, y - grand - gene_effect[g], n)
    residual = y - grand - gene_effect[g] - cell_effect[r]
    left = truth - grand - gene_effect[gg] - cell_effect[rr]
    u, s, vt = svds(sparse.csr_matrix((residual, (r, g)), shape=(n, m)), k=rank, rng=np.random.default_rng(seed))
    left_svd = left - np.einsum("ek,ek->e", u[rr] * s, vt.T[gg])
    explained_by_type = float("nan")
    if cell_type is not None:
        n_types = int(cell_type.max()) + 1
        effect = mean_by(cell_type[r] * m + g, residual, n_types * m, prior=3)
        explained_by_type = 1 - float(((left - effect[cell_type[rr] * m + gg]) ** 2).mean() / (left**2).mean())
    return Imputation(
        gene_mean_mae=float(np.abs(truth - gene_mean[gg]).mean()),
        additive_mae=float(np.abs(left).mean()),
        svd_mae=float(np.abs(left_svd).mean()),
        svd_explained=1 - float((left_svd**2).mean() / (left**2).mean()),
        type_explained=explained_by_type,
        singular_values=np.sort(s)[::-1],
    )


def slope(mean: Float64[np.ndarray, " genes"], cv2: Float64[np.ndarray, " genes"]) -> float:
    """Least-squares slope of log10 CV2 against log10 mean over genes with a positive CV2."""
    ok = cv2 > 0
    return float(np.polyfit(np.log10(mean[ok]), np.log10(cv2[ok]), 1)[0])


def column(s: Sample, i: Imputation) -> dict[str, float]:
    """One column of the table."""
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    log_total = np.log(s.total)
    numbers: dict[str, float] = {
        "genes in 3 cells or more": s.counts.shape[1],
        "median counts a cell": np.median(s.total),
        "sd of log counts a cell": log_total.std(),
        "skewness of log counts a cell": stats.skew(log_total),
        **{f"genes a cell, quantile {q:g}": np.quantile(s.genes_per_cell, q) for q in quantiles},
        "share of zeros": 1 - s.counts.nnz / np.prod(s.counts.shape),
        "share of ones among non-zeros": (s.counts.data == 1).mean(),
        "slope log CV2 on log mean": slope(s.mean, s.cv2),
        "slope, clipped at fifth largest": slope(s.mean, s.cv2_clipped),
        **{f"non-zero log value, quantile {q:g}": np.quantile(s.nonzero, q) for q in (*quantiles, 0.99)},
        "dropped non-zeros: gene mean MAE": i.gene_mean_mae,
        "dropped non-zeros: gene + cell MAE": i.additive_mae,
        "dropped non-zeros: + rank-10 SVD MAE": i.svd_mae,
        "residual variance explained by SVD": i.svd_explained,
        "residual variance explained by types": i.type_explained,
        **{f"singular value {k} of residuals": i.singular_values[k - 1] for k in (1, 2, 5, 10)},
    }
    return numbers


def table(samples: dict[str, Sample], imputations: dict[str, Imputation]) -> pd.DataFrame:
    frame = pd.DataFrame({name: column(samples[name], imputations[name]) for name in samples})
    real, simulated = samples.values()
    for label, a, b in (
        ("detection a gene", real.detection, simulated.detection),
        ("non-zero log values", real.nonzero, simulated.nonzero),
    ):
        frame.loc[f"KS distance, {label}"] = [float("nan"), stats.ks_2samp(a, b, method="asymp").statistic]
    return frame


def module_auc(adata: AnnData, components: int = 50) -> dict[str, float]:
    """AUROC of telling gene pairs of one module from pairs of two, from log-normalised values and nothing else."""
    counts = adata.X.astype(np.float64)
    x = np.log1p(1e4 * counts.toarray() / np.asarray(counts.sum(axis=1)))
    module = adata.var["module"].cat.codes.to_numpy()
    inside = np.flatnonzero(module > 0)
    a, b = np.triu_indices(len(inside), 1)
    same = module[inside[a]] == module[inside[b]]

    def cosine(embedding: Float64[np.ndarray, "genes components"]) -> float:
        unit = embedding[inside] / np.maximum(np.linalg.norm(embedding[inside], axis=1, keepdims=True), 1e-12)
        return float(roc_auc_score(same, (unit @ unit.T)[a, b]))

    centred = x - x.mean(axis=0)
    scores = {"correlation": cosine(centred.T)}
    for name, matrix in {"SVD cosine": x, "SVD cosine, genes centred": centred}.items():
        _, s, vt = svds(matrix, k=components, rng=np.random.default_rng(0))
        scores[name] = cosine(vt.T * s)
    return scores


def draw(samples: dict[str, Sample], imputations: dict[str, Imputation], out: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(17, 8), layout="constrained")
    colours = {"real": "#1f1f1f", "simulated": "#d1495b"}
    dots = {"s": 3, "alpha": 0.25, "linewidths": 0, "rasterized": True}
    depth_bins = np.histogram_bin_edges(np.log10(np.concatenate([s.total for s in samples.values()])), 50)
    gene_bins = np.histogram_bin_edges(np.concatenate([s.genes_per_cell for s in samples.values()]), 60)
    for name, s in samples.items():
        colour = colours[name]
        step = {"histtype": "step", "density": True, "color": colour, "label": name}
        axes[0, 0].hist(np.log10(s.total), bins=depth_bins, **step)
        axes[0, 1].hist(s.genes_per_cell, bins=gene_bins, **step)
        axes[0, 2].hist(s.nonzero, bins=np.linspace(0, 7, 141), **step)
        axes[0, 3].plot(np.arange(1, len(s.mean) + 1), np.sort(s.mean)[::-1], color=colour, label=name)
        axes[1, 0].scatter(s.mean, 1 - s.detection, color=colour, **dots)
        ok = s.cv2_clipped > 0
        axes[1, 1].scatter(s.mean[ok], s.cv2_clipped[ok], color=colour, **dots)
        fano = pd.Series(s.cv2_clipped * s.mean).groupby(np.round(np.log10(s.mean) * 4) / 4)
        axes[1, 2].plot(10 ** fano.median().index.to_numpy(), fano.median(), color=colour, label=f"{name}, median")
        axes[1, 2].plot(
            10 ** fano.median().index.to_numpy(), fano.quantile(0.9), "--", color=colour, label=f"{name}, 90 %"
        )
        axes[1, 3].plot(np.arange(1, 11), imputations[name].singular_values, "o-", color=colour, label=name)
    mean = np.geomspace(1e-3, 1e2, 200)
    axes[1, 0].plot(mean, np.exp(-mean), color="#3066be", linewidth=1, label="Poisson")
    axes[1, 1].plot(mean, 1 / mean, color="#3066be", linewidth=1, label="Poisson")
    texts = [
        ("Depth", "log10 counts a cell", "density"),
        ("Genes a cell", "genes", "density"),
        ("Non-zero values", "log1p(1e4 count / total)", "density"),
        ("Rank and abundance", "rank", "mean count a cell"),
        ("Mean and drop-out", "mean count a cell", "share of zeros"),
        ("Mean and variance (clipped)", "mean count a cell", "CV2"),
        ("Variance over mean (clipped)", "mean count a cell", "Fano factor"),
        ("Gene + cell residuals of non-zeros", "component", "singular value"),
    ]
    for axis, (title, x, y) in zip(axes.flat, texts, strict=True):
        axis.set(title=title, xlabel=x, ylabel=y)
        axis.legend(frameon=False)
    for axis in axes.flat[3:7]:
        axis.set_xscale("log")
    for axis in (axes[0, 3], axes[1, 1], axes[1, 2]):
        axis.set_yscale("log")
    axes[1, 1].set_ylim(0.02, 5e3)
    figure.savefig(out, dpi=110)


def codes(labels: pd.Series) -> Int64[np.ndarray, " cells"]:
    """Type numbers; unlabelled cells are a type of their own."""
    return labels.astype(str).astype("category").cat.codes.to_numpy().astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="h5ad with raw counts in X")
    parser.add_argument("--labels", default="cell_type", help="obs column of cell types, where there is one")
    parser.add_argument("--out", type=Path, help="figure to write (png, svg or pdf)")
    parser.add_argument(
        "--fit-depth", action="store_true", help="give the simulator the real median and spread of depth"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.data.is_file():
        parser.error(f"{args.data}: no such file. Pass an h5ad file with raw counts in X.")
    real = anndata.read_h5ad(args.data)
    counts = sparse.csr_matrix(real.X)
    if counts.nnz == 0 or counts.data.min() < 0 or (counts.data % 1).any():
        parser.error(
            f"{args.data}: X holds no raw counts (whole numbers from 0). Pass a file from before normalisation."
        )
    total = np.asarray(counts.sum(axis=1)).ravel()
    kept = total > 0
    counts, total, obs = counts[kept], total[kept], real.obs[kept]
    start = time.perf_counter()
    if args.fit_depth:
        median, sd = float(np.median(total)), float(np.log(total).std())
        simulated = simulate_rna(
            n_cells=len(obs), n_genes=real.n_vars, median_depth=median, depth_sd=sd, seed=args.seed
        )
    else:
        simulated = simulate_rna(n_cells=len(obs), n_genes=real.n_vars, seed=args.seed)
    seconds = time.perf_counter() - start

    samples = {"real": Sample.of(counts), "simulated": Sample.of(simulated.X)}
    types = {
        "real": codes(obs[args.labels]) if args.labels in obs else None,
        "simulated": codes(simulated.obs["cell_type"]),
    }
    imputations = {name: impute(samples[name].counts, types[name], seed=args.seed) for name in samples}
    print(f"{args.data.name}: {len(obs):,} cells x {real.n_vars:,} genes; simulated in {seconds:.1f} s\n")
    print(table(samples, imputations).to_string(float_format=lambda v: f"{v:,.4g}", na_rep=""))
    print("\nAUROC, gene pairs of one simulated module against pairs of two (4,000 cells x 2,000 genes):")
    for name, value in module_auc(simulate_rna(n_cells=4000, n_genes=2000, seed=args.seed)).items():
        print(f"  {name:28s} {value:.3f}")
    versions = {name: version(name) for name in ("expresser", "numpy", "scipy", "anndata")}
    print("\n" + json.dumps({"seed": args.seed, "python": platform.python_version(), **versions}))
    if args.out is not None:
        draw(samples, imputations, args.out)
        print(f"figure: {args.out}")


if __name__ == "__main__":
    main()

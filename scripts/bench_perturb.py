"""How well attribution finds the planted links of peaks and genes in simulated cells, beside distance and correlation.

BABEL (or another system) is fitted to simulated cells; the mean attribution of each peak to a gene's predicted expression ranks
all pairs of a peak and a gene within a window of its transcription start, and so do the distance, the correlation over cells of
measured values and of measured ATAC with predicted RNA, and products of the first with the distance. Score: area under the
precision-recall curve over all pairs (a random ranking scores the share of linked pairs), and the mean AUROC over genes, which
compares the peaks of one gene only. Both are also given without promoters, and without distance: each link beside five peaks
of the same kind that are linked to genes of other chromosomes ("matched"). Where peaks are few for the genes nearly all peaks
near a gene are its own, so distance alone is close to perfect; with many, as in the second example, a gene has as many peaks
near it that are not. One JSON object a line. Examples:

    python scripts/bench_perturb.py --cells 2000 --genes 3000 --peaks 20000 --targets 300 --examined 200 --threads 1
    python scripts/bench_perturb.py --genes 1000 --peaks 60000 --rna-depth 1000 --window 100000 --targets 150 --examined 60
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from expresser.record import plain_json, provenance
from expresser.regions import Regions
from expresser.simulate import simulate_multiome
from translate.attribution import integrated_gradients
from translate.data import read_study
from translate.fitting import configuration, fit
from translate.peak_links import correlate, of_matrix, of_predicted, pairs_near
from translate.perturb import on_own_features
from translate.splits import split_random


def linked(pairs: pd.DataFrame, links: pd.DataFrame, peaks: pd.Index, genes: pd.Index) -> pd.DataFrame:
    """`pairs` with columns linked, kind ("" for none) and effect of the planted links; names are of the model's features."""
    table = links.assign(peak=peaks.get_indexer(links["peak"]), gene=genes.get_indexer(links["gene"]))
    known = table[(table["peak"] >= 0) & (table["gene"] >= 0)][["peak", "gene", "kind", "effect"]]
    found = pairs.merge(known, how="left", on=["peak", "gene"])
    kind = found["kind"].astype(object).where(found["kind"].notna(), "")
    return found.assign(linked=found["effect"].notna(), kind=kind, effect=found["effect"].fillna(0.0))


def controls(pairs: pd.DataFrame, links: pd.DataFrame, peaks: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Beside each linked pair, the gene with five random peaks of the same kind that are linked on other chromosomes."""
    own = links[links["peak"].isin(peaks.index)]
    number, chrom = peaks.index.get_indexer(own["peak"]), peaks["chrom"].loc[own["peak"]].to_numpy()
    kind = own["kind"].astype(str).to_numpy()
    at = peaks["chrom"].to_numpy()
    rows = []
    for pair in pairs[pairs["linked"]].itertuples():
        others = number[(kind == pair.kind) & (chrom != at[pair.peak])]
        rows.append(pd.DataFrame({"gene": pair.gene, "peak": rng.choice(others, 5), "kind": pair.kind}))
    return (
        pd.concat(rows, ignore_index=True)
        .assign(linked=False, effect=0.0, distance=0)
        .drop_duplicates(["gene", "peak"])
    )


def scores(pairs: pd.DataFrame, ranking: np.ndarray) -> dict[str, float]:
    """AUPRC over all pairs, and the mean over genes of the AUROC among one gene's peaks."""
    truth = pairs["linked"].to_numpy()
    by_gene = []
    for _, rows in pairs.groupby("gene").indices.items():
        if 0 < truth[rows].sum() < len(rows):
            by_gene.append(roc_auc_score(truth[rows], ranking[rows]))
    return {
        "auprc": float(average_precision_score(truth, ranking)),
        "auroc_within_gene": float(np.mean(by_gene)) if by_gene else float("nan"),
    }


def subsets(pairs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Which pairs count: those in the window; of these without promoters; links and their controls, promoters apart."""
    near, promoter = pairs["near"].to_numpy(), (pairs["kind"] == "promoter").to_numpy()
    matched = ~near | pairs["linked"].to_numpy()
    return {
        "window": near,
        "window_no_promoters": near & ~promoter,
        "matched": matched,
        "matched_promoters": matched & promoter,
        "matched_enhancers": matched & ~promoter,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", default="babel")
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--genes", type=int, default=3000)
    parser.add_argument("--peaks", type=int, default=20_000)
    parser.add_argument("--depth", type=float, default=None, help="fragments in peaks of a median cell")
    parser.add_argument("--rna-depth", type=float, default=None, help="counts of a median cell")
    parser.add_argument("--targets", type=int, default=300, help="genes explained, drawn from those with links")
    parser.add_argument("--examined", type=int, default=200, help="cells attributed in")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--baseline", default="zero", choices=["zero", "mean"])
    parser.add_argument("--window", type=int, default=500_000)
    parser.add_argument("--epochs", type=int, default=None, help="at most; without it, those of the system")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    given = parse()
    torch.set_num_threads(given.threads)
    rng = np.random.default_rng(given.seed)
    made = simulate_multiome(
        n_cells=given.cells,
        n_genes=given.genes,
        n_peaks=given.peaks,
        rna_depth=given.rna_depth,
        atac_depth=given.depth,
        seed=given.seed,
    )
    study = read_study(rna=made.rna, atac=made.atac, check_pairing=False)
    config = configuration(given.system, "default", None)
    config = replace(config, rna=replace(config.rna, min_genes=0, max_genes=None))  # small simulations have few
    if given.epochs is not None:
        config = replace(config, epochs=given.epochs)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(
            given.system,
            study,
            split=split_random(study, seed=given.seed),
            out=Path(folder) / "fit",
            config=config,
            seed=given.seed,
        )
    if fitted is None:
        raise RuntimeError("the fit was cut short")
    seconds = {"fit": time.perf_counter() - began}

    genes, peaks = fitted.var("rna"), fitted.var("atac")
    with_links = np.flatnonzero(genes.index.isin(made.links["gene"]))
    numbers = np.sort(rng.choice(with_links, min(given.targets, len(with_links)), replace=False))
    regions = Regions.from_var(peaks, where="the model")
    pairs = linked(
        pairs_near(regions, genes, window=given.window, only_genes=numbers), made.links, peaks.index, genes.index
    )
    pairs = pd.concat(
        [pairs.assign(near=True), controls(pairs, made.links, peaks, rng).assign(near=False)], ignore_index=True
    )
    rna, atac = (on_own_features(fitted.inputs, study.measured[m], m) for m in ("rna", "atac"))
    examined = np.sort(rng.choice(study.n_cells, min(given.examined, study.n_cells), replace=False))
    began = time.perf_counter()
    found = integrated_gradients(
        fitted,
        atac.take(examined),
        genes.index[numbers].tolist(),
        to="rna",
        baseline=given.baseline,
        n_steps=given.steps,
    )
    seconds["attribution"] = time.perf_counter() - began
    means = {one.number: np.asarray(one.values.mean(axis=0)).ravel() for one in found}
    # Of the cells where the peak is open: a rare peak that matters where it is open is a link too.
    open_share = np.maximum(np.asarray(atac.matrix[examined].mean(axis=0)).ravel(), 1 / len(examined))
    at = list(zip(pairs["gene"].tolist(), pairs["peak"].tolist()))
    mean = np.array([means[gene][peak] for gene, peak in at])
    each = mean / open_share[pairs["peak"]]
    began = time.perf_counter()
    rna_input: Any = fitted.inputs["rna"]
    measured, opened = of_matrix(rna_input.targets(rna.matrix), log=True), of_matrix(atac.matrix)
    predicted = of_predicted(fitted.predict(atac, source="atac", to="rna"))
    r = correlate(pairs, opened, measured, study.n_cells)["r"].fillna(0).to_numpy()
    r_predicted = correlate(pairs, opened, predicted, study.n_cells)["r"].fillna(0).to_numpy()
    seconds["correlation"] = time.perf_counter() - began
    near = 1 / (1 + pairs["distance"].abs().to_numpy() / 10_000)
    rankings = {
        "distance": -pairs["distance"].abs().to_numpy().astype(float),
        "attribution": mean,
        "attribution_abs": np.abs(mean),
        "attribution_where_open": each,
        "attribution_where_open_abs": np.abs(each),
        "correlation_measured": r,
        "correlation_measured_abs": np.abs(r),
        "correlation_predicted": r_predicted,
        "attribution_x_distance": np.maximum(mean, 0) * near,
        "correlation_measured_x_distance": np.maximum(r, 0) * near,
        "correlation_predicted_x_distance": np.maximum(r_predicted, 0) * near,
    }
    kinds = {}
    for name, mask in subsets(pairs).items():
        some = pairs[mask].reset_index(drop=True)
        kinds[name] = {
            "pairs": len(some),
            "linked": int(some["linked"].sum()),
            "chance": float(some["linked"].mean()),
            "rankings": {  # links and controls are told apart by distance and by nothing else that would count
                ranking: scores(some, values[mask])
                for ranking, values in rankings.items()
                if not (name.startswith("matched") and "distance" in ranking)
            },
        }
    delta = [one.relative_delta for one in found]
    print(
        json.dumps(
            plain_json(
                {
                    "options": vars(given),
                    "seconds": seconds,
                    "targets": len(numbers),
                    "relative_delta_mean": float(np.mean(delta)),
                    "relative_delta_max": float(np.max(delta)),
                    "attribution_r_spearman": pd.Series(mean).corr(pd.Series(r), method="spearman"),
                    "subsets": kinds,
                    "provenance": provenance(seed=given.seed),
                }
            )
        )
    )
    for name, of in kinds.items():
        print(f"\n{name}: {of['linked']:,} of {of['pairs']:,} pairs are linked (chance AUPRC {of['chance']:.3f})")
        print(pd.DataFrame(of["rankings"]).T.round(3).to_string())


if __name__ == "__main__":
    main()

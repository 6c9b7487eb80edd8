"""How well each translator predicts held-out cells, beside baselines and, where data are simulated, the true rates.

One JSON object a line for each data set, split, seed and method; a table of means over seeds at the end. Example:

    python scripts/bench_translators.py --data simulated --splits random cell_type --seeds 3
    EXPRESSER_DATA=folder python scripts/bench_translators.py --data bmmc scicar cite --seeds 3
"""

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anndata import AnnData

from expresser.record import plain_json, provenance
from expresser.simulate import simulate_multiome
from translate.alignment_judging import spaces_of
from translate.data import Study, read_study
from translate.evaluate import evaluate
from translate.fitting import configuration, fit
from translate.oracle import oracle
from translate.splits import Split, split_by_column, split_random

# Subsets of genes and peaks in the small real files: nothing is filtered out of them.
SUBSET = {"rna": {"min_genes": 1, "max_genes": None, "autosomes": False}, "atac": {"max_share": 1.0}}
SHOWN = {
    "atac_to_rna": ("pearson_flat", "pearson_gene"),
    "rna_to_atac": ("auroc_flat", "auroc_peak", "auprnorm_peak", "ece"),
    "rna_to_protein": ("pearson_flat", "pearson_protein", "mae"),
}


def simulated(seed: int, genes: int, peaks: int) -> tuple[Study, Any]:
    """2,000 paired cells and the truth behind them."""
    made = simulate_multiome(n_genes=genes, n_peaks=peaks, seed=seed)
    return read_study(rna=made.rna, atac=made.atac, check_pairing=False), made


def joined(a: Path, b: Path) -> tuple[AnnData, AnnData]:
    """Two files of one modality over the features that both have."""
    import anndata

    one, two = anndata.read_h5ad(a), anndata.read_h5ad(b)
    shared = one.var_names[one.var_names.isin(two.var_names)]
    return one[:, shared].copy(), two[:, shared].copy()


def bmmc(folder: Path, seed: int) -> tuple[Study, Split]:
    """Of set A the first donor trains and validates; the test cells are those of set B of other donors."""
    import anndata

    from expresser.regions import Regions
    from translate.peaks import repool

    rna_a, rna_b = joined(folder / "bmmc_setA_rna.h5ad", folder / "bmmc_setB_rna.h5ad")
    atac_a, atac_b = (anndata.read_h5ad(folder / f"bmmc_set{name}_atac.h5ad") for name in "AB")
    donor = sorted(rna_a.obs["batch"].unique())[0]
    own, other = np.flatnonzero(rna_a.obs["batch"] == donor), np.flatnonzero(rna_b.obs["batch"] != donor)
    names = rna_b.obs_names[other]
    pooled = repool(atac_b[names].X, Regions.parse(list(atac_b.var_names)), Regions.parse(list(atac_a.var_names)))
    parts = [atac_a[rna_a.obs_names[own]], AnnData(pooled, obs=atac_b[names].obs, var=atac_a.var)]
    rna, atac = anndata.concat([rna_a[own], rna_b[other]], merge="first"), anndata.concat(parts, merge="first")
    order = np.random.default_rng(seed).permutation(len(own))
    n = len(own) // 5
    test = len(own) + np.arange(len(other))
    split = Split(f"donor {donor} of A trains, other donors of B test", np.sort(order[n:]), np.sort(order[:n]), test)
    return read_study(rna=rna, atac=atac, check_pairing=False), split


def scicar(folder: Path, seed: int) -> tuple[Study, Split]:
    """A549 cells, three hours of treatment; random cells are held out."""
    study = read_study(
        rna=folder / "scicar_a549_rna.h5ad", atac=folder / "scicar_a549_atac_binary.h5ad", check_pairing=False
    )
    return study, split_random(study, seed=seed)


def cite(folder: Path, seed: int) -> tuple[Study, Split]:
    """200 PBMC with 29 proteins; random cells are held out."""
    study = read_study(rna=folder / "pbmc_5k_protein_v3.h5ad", protein="obsm:protein_expression", check_pairing=False)
    return study, split_random(study, seed=seed)


def run(name: str, study: Study, split: Split, entry: str, seed: int, truth: Any, subset: bool) -> dict[str, Any]:
    """Fit one system and score it with the baselines: metrics of `translate.evaluate`."""
    system, _, preset = entry.partition(":")
    config = configuration(system, preset or "default", None)
    if subset:
        config = replace(config, **{m: replace(getattr(config, m), **changes) for m, changes in SUBSET.items()})
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        fitted = fit(system, study, split=split, out=Path(folder) / "fit", config=config, seed=seed)
        seconds = time.perf_counter() - began
    if fitted is None:
        raise RuntimeError("the fit was cut short")
    there = [(s, t) for s, t in fitted.directions if s != t and {s, t} <= set(study.modalities)]
    methods: dict[str, Any] = {entry: {f"{s}_to_{t}": partial(fitted.predict, source=s, to=t) for s, t in there}}
    if truth is not None:
        methods["oracle"] = oracle(truth, fitted.inputs)
        methods["oracle_own_depth"] = oracle(truth, fitted.inputs, own_depth=True)
    latents = {entry: spaces_of(fitted)}
    metrics, _ = evaluate(
        methods, study, split, fitted.inputs, latents=latents, directions=list(methods[entry]), seed=seed
    )
    metrics["methods"][entry]["fit_seconds"] = seconds
    metrics["features"] = {m: len(i.var) for m, i in fitted.inputs.items()}
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["simulated"], choices=["simulated", "bmmc", "scicar", "cite"])
    parser.add_argument("--splits", nargs="+", default=["random"], choices=["random", "cell_type"])
    parser.add_argument("--systems", nargs="+", default=["babel", "babel:paper", "scmog", "scmog:paper"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--genes", type=int, default=3000)
    parser.add_argument("--peaks", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    lines: list[str] = []
    shown: dict[tuple[Any, ...], str] = {}
    real = Path(os.environ.get("EXPRESSER_DATA", ".")) / "multiome"
    for data in options.data:
        for kind in options.splits if data == "simulated" else ["held-out"]:
            for seed in range(options.seeds):
                truth = None
                if data == "simulated":
                    study, truth = simulated(seed, options.genes, options.peaks)
                    split = (
                        split_random(study, seed=seed) if kind == "random" else split_by_column(study, kind, seed=seed)
                    )
                else:
                    reader = {"bmmc": bmmc, "scicar": scicar, "cite": cite}[data]
                    study, split = reader(real if data != "cite" else real.parent / "cite", seed)
                for entry in options.systems:
                    metrics = run(data, study, split, entry, seed, truth, data != "simulated")
                    for method, scores in metrics["methods"].items():
                        key = (f"{data}, {kind}", entry if method == entry else method, "")
                        if (
                            method != entry
                            and shown.setdefault((data, kind, seed, *metrics["features"].values()), entry) != entry
                        ):
                            continue  # baselines are the same for every system that keeps the same genes and peaks
                        rows[key].append(scores)
                        line = {
                            "name": f"{data}/{kind}/{method}",
                            "seed": seed,
                            "split": split.name,
                            "cells": metrics["cells"],
                            "features": metrics["features"],
                            "threads": torch.get_num_threads(),
                            **scores,
                        }
                        lines.append(json.dumps(plain_json(line)))
                        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join([json.dumps(provenance()), *lines]) + "\n")
    for (where, method, _), found in rows.items():
        words = [where, method]
        for direction, names in SHOWN.items():
            for name in names:
                values = [s[direction][name] for s in found if direction in s and name in s[direction]]
                if values:
                    spread = f" ±{np.std(values):.3f}" if len(values) > 1 else ""
                    words.append(f"{direction}.{name} {np.mean(values):.3f}{spread}")
        if values := [s["foscttm"] for s in found if "foscttm" in s]:
            words.append(f"foscttm {np.mean(values):.3f}")
        print(" | ".join(words))


if __name__ == "__main__":
    main()

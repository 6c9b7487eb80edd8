"""The demo's sections on translators and the embedder, from files that commands wrote."""

import json
from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import sparse

from expresser.demo.drawings import cell_maps, cloud, loss_curves, rate_curves
from expresser.demo.page_models import read_metrics
from expresser.demo.plan import Places
from expresser.report import Best, Figure, Section, Table

NAMES = {"babel": "BABEL", "polarbear": "Polarbear", "sailer": "SAILER"}
LEAD = {"atac_to_rna": "pearson_gene", "rna_to_atac": "auroc_peak"}
_ABOUT = {
    "babel": "BABEL learns from cells measured in both.",
    "polarbear": "Polarbear learns from the same cells, and from others that were measured in RNA or ATAC alone.",
}
_SCORES = {
    "rna_to_atac": {
        "auroc_peak": "AUROC by peak",
        "auprnorm_peak": "AUPRnorm by peak",
        "auroc_cell": "AUROC by cell",
        "auroc_flat": "AUROC, all entries",
        "ece": "calibration error",
    },
    "atac_to_rna": {
        "pearson_gene": "r by gene",
        "pearson_cell": "r by cell",
        "pearson_flat": "r, all entries",
        "mae": "MAE",
        "rmse": "RMSE",
    },
}
_TITLES = {"rna_to_atac": "RNA to ATAC", "atac_to_rna": "ATAC to RNA"}
_LESS = ("MAE", "RMSE", "calibration error", "I(z, depth), nats", "I(z, batch), nats", "batches, off even")


def translator(at: Places, system: str) -> Section:
    """Both directions beside the baselines, predictions against measurements, latents on a map, losses."""
    metrics = read_metrics(at / f"runs/{system}_unseen")
    tables = [_direction(metrics, system, direction) for direction in ("rna_to_atac", "atac_to_rna")]
    figures = [_expression(at, system), *_peaks(at, system), *_latents(at, system)]
    alignment = metrics["methods"][system].get("foscttm")
    words = [
        f"{_ABOUT[system]} It is judged by {metrics['cells']['test']:,} more cells, measured in both, of which it is shown one side. "
        "oracle is the simulator's own rates: no method can do better. By gene and by peak: does a method know in which cells it is "
        "high? Over all entries most is known by the mean alone.",
        _verdict(metrics, system),
    ]
    if alignment is not None:
        words.append(
            f"FOSCTTM {alignment:.3f}: the share of cells nearer to a cell's latent than its own other side is (0.5: chance)."
        )
    return Section(
        f"Translation: {NAMES[system]}",
        "\n\n".join(word for word in words if word),
        (*tables, *figures, *loss_curves(NAMES[system], at / f"runs/{system}")),
    )


def _verdict(metrics: Mapping[str, Any], system: str) -> str:
    """What metrics.json says of the model and each baseline."""
    parts = []
    for direction, said in metrics["verdicts"].items():
        by: dict[str, list[str]] = {}
        for baseline, verdict in said.items():
            by.setdefault(verdict, []).append(baseline)
        verbs = {
            "beats": "beats",
            "on a par": "is on a par with",
            "behind": "is behind",
            "undecided": "is not told apart from",
        }
        found = "; ".join(f"{verbs[verdict]} {', '.join(names)}" for verdict, names in by.items())
        if found:
            parts.append(f"{_TITLES[direction]}, {system} {found}.")
    return " ".join(parts)


_TRUTH = frozenset({"oracle"})


def _direction(metrics: Mapping[str, Any], system: str, direction: str) -> Table:
    names = _SCORES[direction]
    rows = {
        method: {label: scores[direction].get(key) for key, label in names.items()}
        for method, scores in metrics["methods"].items()
        if direction in scores
    }
    lead = names[LEAD[direction]]
    frame = pd.DataFrame.from_dict(rows, orient="index", dtype=float).sort_values(lead, ascending=False)
    frame = frame.round(9) + 0.0  # what is 0 but for rounding is not to be read as -1e-18
    frame.index.name = "method"
    frame.insert(0, f"{system} …", [metrics["verdicts"].get(direction, {}).get(name, "") for name in frame.index])
    best: dict[str, Best] = {label: "min" if label in _LESS else "max" for label in names.values()}
    return Table(_TITLES[direction], frame, f"…: by the 95 % interval of the difference in {lead}.", best, _TRUTH)


def _expression(at: Places, system: str) -> Figure:
    """Expression of all genes predicted from ATAC against what was measured, on the scale of the model."""
    predicted = ad.read_h5ad(at / f"cells/{system}_rna.h5ad")
    measured = ad.read_h5ad(at / "data/multiome/unseen_rna.h5ad")[predicted.obs_names, predicted.var_names]
    inputs = json.loads((at / f"runs/{system}/model/inputs.json").read_text())
    counts = _dense(measured)
    truth = np.log1p(counts * inputs["rna"]["median_library"] / counts.sum(1, keepdims=True).clip(1))
    caption = f"{predicted.n_vars:,} genes in {predicted.n_obs:,} unseen cells, zeros included."
    return cloud(
        f"{NAMES[system]}: expression, measured and predicted from ATAC",
        truth.ravel(),
        _dense(predicted).ravel(),
        unit="ln(1 + size-normalised count)",
        caption=caption,
    )


def _peaks(at: Places, system: str) -> list[Figure]:
    """Which peaks are open in which cell, by the model and by how often each is open in the training cells."""
    predicted = ad.read_h5ad(at / f"cells/{system}_atac.h5ad")
    measured = ad.read_h5ad(at / "data/multiome/unseen_atac.h5ad")
    peaks = predicted.var_names.intersection(measured.var_names, sort=False)
    parts = pd.read_csv(at / f"runs/{system}/split.tsv", sep="\t", index_col="cell", dtype=str)["part"]
    training = ad.read_h5ad(at / "data/multiome/seen_atac.h5ad")
    training = training[training.obs_names.isin(parts.index[parts == "train"]), peaks]
    share = (_dense(training) > 0).mean(axis=0)
    label = _dense(measured[predicted.obs_names, peaks]) > 0
    scores = {
        system: _dense(predicted[:, peaks]).ravel(),
        "share of training cells": np.broadcast_to(share, label.shape).ravel(),
    }
    caption = f"All entries: {len(peaks):,} peaks in {len(label):,} unseen cells. Grey: one answer for all cells."
    return rate_curves(
        f"{NAMES[system]}: open peaks, from RNA",
        label.ravel(),
        scores,
        references=frozenset({"share of training cells"}),
        caption=caption,
    )


def _latents(at: Places, system: str) -> list[Figure]:
    """The same unseen cells from both sides in one map: two in the same place where they are encoded alike."""
    sides = {name: ad.read_h5ad(at / f"cells/{system}_from_{name.lower()}.h5ad") for name in ("RNA", "ATAC")}
    points = np.concatenate([np.asarray(cells.obsm[f"X_{system}"]) for cells in sides.values()])
    colours = {
        "side": np.repeat([f"from {name}" for name in sides], [cells.n_obs for cells in sides.values()]),
        "cell type": np.concatenate([cells.obs["cell_type"].astype(str).to_numpy() for cells in sides.values()]),
        "batch": np.concatenate([cells.obs["batch"].astype(str).to_numpy() for cells in sides.values()]),
    }
    return cell_maps(f"{NAMES[system]}: latents of unseen cells", points, colours)


def embedder(at: Places) -> Section:
    """Clusters against types, what the embedding still knows of depth and batch, the map in three colours."""
    metrics = read_metrics(at / "runs/sailer")
    names = {
        "ari": "ARI",
        "nmi": "NMI",
        "silhouette": "silhouette",
        "mi_depth": "I(z, depth), nats",
        "mi_batch": "I(z, batch), nats",
        "mixing": "batches, off even",
    }
    rows = {
        method: {label: found.get(key) for key, label in names.items()}
        for method, found in metrics["embeddings"].items()
    }
    frame = pd.DataFrame.from_dict(rows, orient="index", dtype=float).sort_values("ARI", ascending=False)
    frame.index.name = "method"
    cells = ad.read_h5ad(at / "cells/sailer.h5ad")
    open_peaks = np.asarray((cells.X > 0).sum(1)).ravel()
    colours = {
        "cell type": cells.obs["cell_type"].astype(str).to_numpy(),
        "batch": cells.obs["batch"].astype(str).to_numpy(),
        "depth (log10 open regions)": np.log10(open_peaks.clip(1)),
    }
    best: dict[str, Best] = {label: "min" if label in _LESS else "max" for label in names.values()}
    items: list[Table | Figure] = [Table("Embeddings", frame, best=best)]
    if metrics["imputation"]:
        dice = pd.DataFrame({"Dice": metrics["imputation"]["dice"]})
        dice.index.name = "calls"
        items.append(Table("Open regions called, against bulk", dice, best={"Dice": "max"}))
    items += cell_maps("SAILER", cells.obsm["X_sailer"], colours)
    items += loss_curves("SAILER", at / "runs/sailer")
    text = (
        f"{cells.n_obs:,} cells drawn fragment by fragment from bulk profiles: four types in two batches of unlike depth, and a rare "
        "type in each. SAILER embeds them from ATAC alone, free of depth and batch. ARI, NMI and silhouette: are clusters cell types? "
        "I(z, depth) and I(z, batch): what a latent dimension still tells of depth and batch; 0 is best."
    )
    said = [metrics["verdict"]["sentence"]] if metrics.get("verdict") else []
    return Section(f"Embedding: {NAMES['sailer']}", "\n\n".join([text, *said]), tuple(items))


def _dense(cells: ad.AnnData) -> Float[np.ndarray, "cells features"]:
    """X as float64."""
    return np.asarray(cells.X.toarray() if sparse.issparse(cells.X) else cells.X, dtype=np.float64)

"""The imputation task: hidden expression of cells that the model never saw, against baselines that must be beaten."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from scipy import sparse

from expresser.corpus.source import Source, open_source
from expresser.errors import InputError
from expresser.genes import GeneVocab
from expresser.metrics.expression import ExpressionScores
from expresser.record import provenance, write_metrics
from finetune import molecular_cv
from finetune.completion import cells_of, pattern, totals
from finetune.imputation_baselines import BASELINES, Counts
from finetune.imputation_data import CellCounts, Data, read_cells, read_reference
from finetune.imputation_protocols import drop_entries, split_molecules
from finetune.imputation_report import Drawings, write_page

MODEL = "expresser"

ProtocolName = Literal["dropout", "mcv"]
Predict = Callable[..., np.ndarray]
Progress = Callable[[int, int], None]

# Which scores say that a method is better, and in which direction; the first one orders the table.
DECIDING: dict[str, dict[str, Literal["min", "max"]]] = {
    "dropout": {"mae": "min", "pearson": "max"},
    "mcv": {"poisson": "min", "mse": "min"},
}


@runtime_checkable
class Model(Protocol):
    """What of `expresser.checkpoint.Checkpoint` is used here."""

    @property
    def vocab(self) -> GeneVocab:
        """The genes its tokens stand for."""

    @property
    def source(self) -> str:
        """Folder or hub id."""


def run_imputation(
    *,
    model: str | Path | Model | None,
    data: Data,
    vocab: GeneVocab | None = None,
    protocol: ProtocolName = "dropout",
    drop: float = 0.1,
    seeds: int | Sequence[int] = 3,
    methods: Sequence[str] | None = None,
    reference: Data | None = None,
    reference_cells: int = 5000,
    out: str | Path | None = None,
    max_cells: int | None = None,
    min_genes: int = 20,
    mcv_genes: int = 2000,
    layer: str | None = None,
    predict: Predict | None = None,
    max_tokens: int = 16384,
    device: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hide a part of the data, let each method restore it, score all alike.

    Protocol "dropout": random non-zero entries of the counts over the vocabulary are set to zero
    (`imputation_protocols.drop_entries`); everything a method gets, the library size of each cell included, is
    computed from what is left; it is told where the dropped entries are and predicts their log-normalised values.
    Protocol "mcv": a tenth of the molecules is held out and every entry of the `mcv_genes` most counted genes is
    judged (`molecular_cv`).

    Parameters
    ----------
    model
        A checkpoint folder, a hub id, a loaded checkpoint, or None for the baselines alone. Its row is `expresser`.
    data
        Raw counts of cells that the model was not trained on, in any format of `open_source`; `layer` as there.
    vocab
        None: the model's; without a model, the data's own genes.
    drop
        Share of non-zero entries hidden (dropout); of molecules, see `split_molecules`, in "mcv" it is ignored.
    seeds
        How many draws (0, 1, …), or which. Scores are means over them, `..._sd` their standard deviation.
    methods
        Names of `BASELINES` ("mcv": of `molecular_cv.METHODS`); None (or none) for all. One whose package is missing
        is named in `skipped` and stands in the table with the reason.
    reference
        Raw counts of further cells, or a corpus folder: at most `reference_cells` random ones are given to each
        baseline, whose scores with them are the rows `..._reference`. Cells of the reference that are also in the
        data are left out.
    out
        Folder for `metrics.json` and `report.html`; None writes nothing.
    max_cells, min_genes
        At most so many random cells of the data; cells with fewer non-zero genes of the vocabulary are left out.
    predict
        For tests: stands for `expresser.impute.predict_entries`.
    progress
        Called with (method runs done, method runs in all).

    Returns
    -------
    What `metrics.json` holds: `methods` {name: {score, score_sd}}, `skipped`, `verdict` {baseline: "beaten" | "mixed" |
    "not beaten"}, `drop`, `seeds`, `n_cells`, `n_genes`, `n_entries` (mean over seeds), `data`, `reference`.

    Raises
    ------
    InputError
        For input that is no raw count matrix or of another species, unknown methods, no cell left, nothing dropped.
    """
    if protocol not in DECIDING:
        raise InputError(f"protocol is {protocol!r}; there are {', '.join(map(repr, DECIDING))}.")
    known: Mapping[str, object] = BASELINES if protocol == "dropout" else molecular_cv.METHODS
    names = list(dict.fromkeys(methods or known))
    if strange := [name for name in names if name not in known]:
        raise InputError(f"no method {strange[0]!r} in protocol {protocol!r}; there are {', '.join(known)}.")
    seed_list = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not seed_list or min(seed_list) < 0:
        raise InputError(f"seeds is {seeds!r}; give at least one draw, and no negative seed.")
    checkpoint = _loaded(model)
    source = open_source(data, layer=layer)
    vocab = _vocabulary(checkpoint, vocab, source)
    cells = read_cells(source, vocab, max_cells=max_cells, min_genes=min_genes)
    others = None if reference is None else read_reference(reference, vocab, cells.counts, at_most=reference_cells)

    skipped = {name: reason for name in names if (reason := _missing(name))}
    runnable = [name for name in names if name not in skipped]
    references = [(None, "")] + ([(others.counts, "_reference")] if others is not None else [])
    asked = _predictor(predict, max_tokens, device) if checkpoint is not None else None
    steps, done = len(seed_list) * (len(runnable) * len(references) + (asked is not None)), 0
    results: dict[str, list[dict[str, float]]] = defaultdict(list)
    drawings, n_entries = Drawings(), []
    for seed in seed_list:
        draw: _DropoutDraw | _MolecularDraw
        if protocol == "dropout":
            draw = _DropoutDraw(cells, seed=seed, drop=drop)
        else:
            draw = _MolecularDraw(cells, seed=seed, n_genes=mcv_genes)
        n_entries.append(draw.n_entries)
        runs: list[tuple[Callable[[], dict[str, np.ndarray]], Counts | None, str]] = [
            (partial(draw.baseline, name, given), given, suffix) for name in runnable for given, suffix in references
        ]
        if asked is not None and checkpoint is not None:
            runs.append((partial(_model_row, draw, asked, checkpoint), None, ""))
        for run, given, suffix in runs:
            start = time.perf_counter()
            rows = run()
            seconds = time.perf_counter() - start
            for name, answer in rows.items():
                scores = draw.score(name + suffix, answer, given, drawings)
                results[name + suffix].append(scores | {"seconds": seconds})
            done += 1
            if progress is not None:
                progress(done, steps)

    metrics: dict[str, Any] = {
        "protocol": protocol,
        "methods": {name: summary(scores) for name, scores in results.items()},
        "skipped": skipped,
        "verdict": verdict(results, DECIDING[protocol]),
        "drop": drop if protocol == "dropout" else None,
        "seeds": len(seed_list),
        "n_cells": cells.counts.shape[0],
        "n_genes": len(vocab),
        "n_entries": round(float(np.mean(n_entries))),
        "data": cells.about,
        "reference": None if others is None else others.about,
        "model": None if checkpoint is None else checkpoint.source,
        "vocab_sha256": vocab.sha256,
    }
    if out is not None:
        folder = Path(out)
        write_metrics(folder / "metrics.json", metrics)
        record = provenance(
            seed=seed_list[0], data_sha256=source.sha256(), vocab_sha256=vocab.sha256, model=metrics["model"]
        )
        write_page(folder / "report.html", metrics, drawings, record, DECIDING[protocol], MODEL)
    return metrics


class _DropoutDraw:
    """One draw of the dropout protocol: what each method is given, and how its answer is scored."""

    def __init__(self, cells: CellCounts, *, seed: int, drop: float) -> None:
        self.seed = seed
        self.draw = drop_entries(cells.counts, drop=drop, seed=seed, rows=cells.rows)
        self.n_entries = self.draw.queries.nnz
        if not self.n_entries:
            raise InputError(
                f"{cells.about['name']}: drop {drop} hid none of {cells.counts.nnz} non-zero entries. "
                "Give more cells, or drop more."
            )

    def baseline(self, name: str, reference: Counts | None) -> dict[str, np.ndarray]:
        return BASELINES[name].run(self.draw.observed, self.draw.queries, reference=reference, seed=self.seed)

    def model(self, predict: Predict, checkpoint: Model) -> np.ndarray:
        return predict(checkpoint, self.draw.observed, self.draw.queries).astype(np.float64)

    def score(self, name: str, answer: np.ndarray, reference: Counts | None, drawings: Drawings) -> dict[str, float]:
        queries = self.draw.queries
        scores = ExpressionScores(queries.shape[1], queries.shape[0])
        scores.update(truth=self.draw.truth, prediction=answer, gene=queries.indices, cell=cells_of(queries))
        drawings.keep(name, self.draw.truth, answer, scores.per_gene())
        return scores.compute()


class _MolecularDraw:
    """One draw of molecular cross-validation, in the same form."""

    def __init__(self, cells: CellCounts, *, seed: int, n_genes: int) -> None:
        self.seed = seed
        split = split_molecules(cells.counts, seed=seed, rows=cells.rows)
        both = np.flatnonzero((totals(split.train) > 0) & (totals(split.test) > 0))
        if not len(both):
            raise InputError(
                f"{cells.about['name']}: none of {len(cells.rows)} cells has molecules in both parts. "
                "Give deeper cells."
            )
        self.train, self.test = sparse.csr_matrix(split.train[both]), sparse.csr_matrix(split.test[both])
        self.wanted = molecular_cv.wanted_entries(self.train, n_genes)
        self.n_entries = self.wanted.nnz

    def baseline(self, name: str, reference: Counts | None) -> dict[str, np.ndarray]:
        return {name: molecular_cv.METHODS[name](self.train, self.wanted, reference=reference, seed=self.seed)}

    def model(self, predict: Predict, checkpoint: Model) -> np.ndarray:
        # Ones, not zeros: an entry that is observed and asked is hidden from its own prediction by what is stored here.
        value = predict(checkpoint, self.train, pattern(self.wanted))
        return molecular_cv.as_share(value, self.train, self.wanted)

    def score(self, name: str, answer: np.ndarray, reference: Counts | None, drawings: Drawings) -> dict[str, float]:
        scores, by_gene = molecular_cv.score_share(
            answer, train=self.train, test=self.test, wanted=self.wanted, reference=reference
        )
        drawings.keep(name, None, None, by_gene)
        return scores


def summary(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each score over the draws, and `..._sd`, the standard deviation (NaN of a single draw)."""
    found: dict[str, float] = {}
    for name in scores[0]:
        values = np.array([s[name] for s in scores], dtype=np.float64)
        found[name] = float(values.mean())
        if name not in ("n", "genes", "cells", "seconds", "genes_undefined", "cells_undefined"):
            found[f"{name}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return found


def verdict(
    scores: Mapping[str, Sequence[Mapping[str, float]]], deciding: Mapping[str, Literal["min", "max"]]
) -> dict[str, str]:
    """Whether the model beats each other method; empty without a model.

    "beaten": better in all deciding scores of all draws; "not beaten": better in none of their means; else "mixed".
    """
    if MODEL not in scores:
        return {}
    sign = {name: 1.0 if direction == "max" else -1.0 for name, direction in deciding.items()}
    said = {}
    for other, theirs in scores.items():
        if other == MODEL:
            continue
        mine = np.array([[sign[s] * draw[s] for s in deciding] for draw in scores[MODEL]])
        its = np.array([[sign[s] * draw[s] for s in deciding] for draw in theirs])
        # Whoever lacks a score (a constant has no correlation) has not shown that it is better; the model first of all.
        gain = np.where(np.isnan(mine), -np.inf, np.where(np.isnan(its), np.inf, mine - its))
        beaten, hopeless = (gain > 0).all(), not (gain.mean(axis=0) > 0).any()
        said[other] = "beaten" if beaten else "not beaten" if hopeless else "mixed"
    return said


def _missing(name: str) -> str | None:
    return BASELINES[name].missing() if name in BASELINES else None


def _loaded(model: str | Path | Model | None) -> Model | None:
    if not isinstance(model, str | Path):
        return model
    from expresser.checkpoint import load  # torch and transformers take seconds to import; baselines need neither

    return load(model)


def _predictor(predict: Predict | None, max_tokens: int, device: str | None) -> Predict:
    if predict is None:
        from expresser.impute import predict_entries

        predict = predict_entries
    return partial(predict, max_tokens=max_tokens, device=device)


def _model_row(draw: _DropoutDraw | _MolecularDraw, predict: Predict, checkpoint: Model) -> dict[str, np.ndarray]:
    return {MODEL: draw.model(predict, checkpoint)}


def _vocabulary(checkpoint: Model | None, vocab: GeneVocab | None, source: Source) -> GeneVocab:
    if checkpoint is None:
        return source.guess_vocab() if vocab is None else vocab
    if vocab is not None and vocab != checkpoint.vocab:
        raise InputError(
            f"the vocabulary given ({len(vocab):,} genes, sha256 {vocab.sha256[:12]}) is not the model's "
            f"({len(checkpoint.vocab):,} genes, {checkpoint.vocab.sha256[:12]}). Leave it out: the model's is used."
        )
    return checkpoint.vocab

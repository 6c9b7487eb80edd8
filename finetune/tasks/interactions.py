"""Which genes, or proteins, interact: pairs told from the vectors of their genes, beside what a pair's degrees alone tell."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64

from expresser.atomic import replaced_together
from expresser.errors import InputError
from expresser.genes import GeneVocab
from expresser.one_writer import one_writer_of_out
from expresser.record import write_metrics
from finetune.embeddings.table import GeneTable
from finetune.heads.fitting import Head, Preset, fit_head, form_of
from finetune.heads.pair_features import Form, pair_features
from finetune.labels import PairLabels
from finetune.memory import peak_mb
from finetune.splits.dealing import numbered
from finetune.splits.degree import degree_scores
from finetune.splits.making import PairSplit, audit, inner_pairs, pair_splits
from finetune.splits.rules import Split
from finetune.state import Store
from finetune.tasks.apply import save_head
from finetune.tasks.inputs import Compared, compare, lacking_pairs
from finetune.tasks.judging import judge, score_frame
from finetune.tasks.report import write_task_page
from finetune.tasks.runs import Fitted, Progress, Row, Steps, TaskResult, fingerprint, open_run, run_rows

SplitChoice = Literal["auto", "all", "gene-disjoint", "semi-disjoint", "random", "shipped"]

DEGREE = "degree"  # the row that knows of a gene only how often it interacts in training
TASK = "interactions"


@one_writer_of_out
def run_pair_task(
    labels: PairLabels,
    tables: Sequence[GeneTable],
    *,
    split: SplitChoice = "auto",
    preset: Preset = "default",
    folds: int = 5,
    repeats: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Progress | None = None,
    save_heads: bool = True,
    vocab: GeneVocab | None = None,
) -> TaskResult:
    """How well each table of gene vectors tells interacting pairs from others.

    All tables are compared on the pairs whose genes all of them hold. The row ``degree`` and the audit of each split
    are always there: where test genes are known from training, a predictor without any vectors may do as well as one
    with, and the result says so.

    Parameters
    ----------
    split
        "auto": the split that the labels ship, else gene-disjoint. "all": every one that the labels allow, the first of
        them the headline; see `pair_splits` for what they mean.
    preset
        Which head (`fit_head`). "paper": the two vectors side by side, boosted trees, and the shipped split, or where
        there is none one random fifth of the pairs held out, which lets genes be known from training: a diagnostic.
    folds, repeats
        Of cross-validation, for all but the shipped split; repeats None: 3 (1 for more than 50,000 pairs).
    out
        Folder for metrics.json, predictions.parquet, report.html and heads/NAME, a head for each model or file (where
        there is none, for each built-in but "random"), fitted on every labelled pair of that table. Without it nothing
        is written. What an interrupted run of the same labels, tables and options left there is used, and a complete
        one is read back.
    vocab
        Names for people, in predictions and heads.

    Raises
    ------
    InputError
        For tables that share no gene, pairs that are lost or of one class, a split that the pairs do not allow.
    """
    compared = compare(tables, vocab, taken=(DEGREE,))
    _check(labels, compared)
    kept = labels.of_genes(compared.genes)
    if repeats is None:
        repeats = 3 if len(kept) <= 50_000 else 1
    kinds = _kinds(kept, split, preset)
    form = form_of(preset)
    config = {
        "split": split,
        "preset": preset,
        "folds": folds,
        "repeats": repeats,
        "seed": seed,
        "save_heads": save_heads,
    }
    marks = {table.name: fingerprint(table.values) for table in tables}
    label_mark = fingerprint(
        labels.name, labels.a, labels.b, labels.label, labels.part if labels.part is not None else ""
    )
    splits = {kind: _splits(kept, kind, preset=preset, folds=folds, repeats=repeats, seed=seed) for kind in kinds}

    folder = None if out is None else Path(out)
    store = Store(None, None)
    if folder is not None:
        store, done = open_run(folder, task=TASK, labels=label_mark, tables=marks, config=config, seed=seed)
        if done is not None:
            return TaskResult(score_frame(done), pd.read_parquet(folder / "predictions.parquet"), done, finished=True)

    rows = _rows(kept, compared, form=form, preset=preset, seed=seed)
    saved = _with_heads(tables) if folder is not None and save_heads else []
    steps = Steps(sum(len(rows) * len(s) for s in splits.values()) + len(saved), progress)
    entries, predictions = {}, []
    for kind, mine in splits.items():
        fitted = run_rows(rows, mine, store, steps)
        entries[kind] = _entry(kept, rows, mine, fitted)
        predictions.append(_predictions(kept, compared, mine, fitted))
    for table in saved:
        _save_head(folder, labels, table, form=form, preset=preset, seed=seed, vocab=vocab)  # type: ignore[arg-type]
        steps.add(f"head of {table.name}")

    metrics: dict[str, Any] = {
        "task": TASK,
        "kind": "binary",
        "target": labels.name,
        **entries[kinds[0]],
        "splits": entries,
        "n_genes": len({*kept.a, *kept.b}),
        "n_pairs": len(kept),
        "positives": int(kept.label.sum()),
        "preset": preset,
        "form": form,
        "folds": folds,
        "repeats": repeats,
        "seed": seed,
        "models": [t.name for t in tables if t.about.get("kind") != "built-in"],
        "lost": compared.account(lacking_pairs(tables, labels.a, labels.b), "pairs_lacking").to_dict("index"),
        "tables": {table.name: table.about | {"dim": table.dim} for table in tables},
        "labels": dict(kept.account),
        "peak_mb": peak_mb(),
    }
    together = pd.concat(predictions, ignore_index=True)
    if folder is not None:
        with replaced_together(folder, last="metrics.json") as part:
            together.to_parquet(part / "predictions.parquet", index=False)
            write_task_page(part / "report.html", metrics, together, run=folder / "run.json")
            write_metrics(part / "metrics.json", metrics)
        store.clear()
    return TaskResult(score_frame(metrics), together, metrics, resumed=store.found)


def _kinds(labels: PairLabels, split: SplitChoice, preset: Preset) -> list[PairSplit]:
    shipped = labels.part is not None
    if split == "auto":
        return ["shipped"] if shipped else ["random"] if preset == "paper" else ["gene-disjoint"]
    if split == "all":
        every: list[PairSplit] = ["gene-disjoint", "semi-disjoint", "random"]
        return ["shipped", *every] if shipped else every
    return [split]


def _splits(labels: PairLabels, kind: PairSplit, *, preset: Preset, folds: int, repeats: int, seed: int) -> list[Split]:
    found = pair_splits(
        labels.a, labels.b, labels.label, kind=kind, part=labels.part, folds=folds, repeats=repeats, seed=seed
    )
    # As published: one random fifth, not five of them.
    return found[:1] if preset == "paper" and kind == "random" else found


def _rows(labels: PairLabels, compared: Compared, *, form: Form, preset: Preset, seed: int) -> list[Row]:
    names, genes = numbered(labels.a, labels.b)
    y = labels.label.astype(np.int64)
    base = fingerprint(labels.a, labels.b, labels.label, form, preset, seed)
    rows = []
    for table in compared.tables:
        vectors = table.rows(names.tolist())
        predict = partial(_fit_and_predict, vectors=vectors, genes=genes, y=y, form=form, preset=preset, seed=seed)
        rows.append(Row(table.name, predict, fingerprint(base, vectors), table.dim))
    rows.append(Row(DEGREE, partial(_degree, genes=genes, y=y), fingerprint(base, DEGREE)))
    return rows


def _fit_and_predict(
    split: Split,
    *,
    vectors: Float32[np.ndarray, "genes dim"],
    genes: Int64[np.ndarray, "pairs 2"],
    y: Int64[np.ndarray, " pairs"],
    form: Form,
    preset: Preset,
    seed: int,
) -> np.ndarray:
    head = _fit(split.rows, split.inner, split.kind, vectors, genes, y, form=form, preset=preset, seed=seed)
    return head.predict(pair_features(vectors, genes[split.test, 0], genes[split.test, 1], form=form))


def _fit(
    rows: Int64[np.ndarray, " rows"],
    inner: list[tuple[np.ndarray, np.ndarray]] | None,
    kind: str,
    vectors: Float32[np.ndarray, "genes dim"],
    genes: Int64[np.ndarray, "pairs 2"],
    y: Int64[np.ndarray, " pairs"],
    *,
    form: Form,
    preset: Preset,
    seed: int,
) -> Head:
    if inner is None and preset != "paper":
        inner = inner_pairs(genes[:, 0], genes[:, 1], rows, kind=kind, seed=seed)  # type: ignore[arg-type]
    x = pair_features(vectors, genes[rows, 0], genes[rows, 1], form=form)
    return fit_head(x, y[rows], kind="binary", preset=preset, inner=inner, seed=seed, form=form)


def _degree(split: Split, *, genes: Int64[np.ndarray, "pairs 2"], y: Int64[np.ndarray, " pairs"]) -> np.ndarray:
    return degree_scores(genes[:, 0], genes[:, 1], y, split.rows, split.test)


def _entry(
    labels: PairLabels, rows: Sequence[Row], splits: Sequence[Split], fitted: Mapping[str, Sequence[Fitted]]
) -> dict[str, Any]:
    found = judge("binary", labels.label.astype(np.int64), splits, fitted)
    for row in rows:
        found["embeddings"][row.name]["dim"] = row.dim
    audits = pd.DataFrame([audit(labels.a, labels.b, labels.label, split) for split in splits])
    sizes = {
        "n_train": round(np.mean([len(s.rows) for s in splits])),
        "n_test": round(np.mean([len(s.test) for s in splits])),
        "unused": round(np.mean([s.unused for s in splits])),
        "fits": len(splits),
    }
    order = ("gene-disjoint", "semi-disjoint", "random")
    strictest = max((split.strictest for split in splits), key=order.index)
    shared = {name: float(value) for name, value in audits.mean().items()}
    return {**found, "split": splits[0].kind, "audit": shared | {"strictest": strictest}, **sizes}


def _predictions(
    labels: PairLabels, compared: Compared, splits: Sequence[Split], fitted: Mapping[str, Sequence[Fitted]]
) -> pd.DataFrame:
    """A row for each test pair of each fold, a column for each table: the probability that the pair interacts."""
    test = np.concatenate([split.test for split in splits])
    sizes = [len(split.test) for split in splits]
    names, genes = numbered(labels.a, labels.b)
    symbols = compared.symbols(names.tolist())
    frame = pd.DataFrame({"split": pd.Categorical([splits[0].kind] * len(test))})
    frame["repeat"] = np.repeat([split.repeat for split in splits], sizes)
    frame["fold"] = np.repeat([split.fold for split in splits], sizes)
    for side, number in (("a", 0), ("b", 1)):
        codes = genes[test, number]
        frame[f"gene_{side}"] = names[codes]
        frame[f"symbol_{side}"] = np.array(symbols, dtype=object)[codes]
    frame["label"] = labels.label[test]
    for name, folds in fitted.items():
        frame[name] = np.concatenate([one.prediction for one in folds])
    return frame


def _with_heads(tables: Sequence[GeneTable]) -> list[GeneTable]:
    """Who gets a head: it costs what a fold costs, minutes for 300,000 pairs, and nobody asked for the baselines'."""
    models = [table for table in tables if table.about.get("kind") != "built-in"]
    return models or [table for table in tables if table.name != "random"]


def _save_head(
    folder: Path,
    labels: PairLabels,
    table: GeneTable,
    *,
    form: Form,
    preset: Preset,
    seed: int,
    vocab: GeneVocab | None,
) -> None:
    """On all labelled pairs of the table, whether or not other tables know them; chosen for genes never seen."""
    target = folder / "heads" / table.name
    if (target / "task.json").is_file():
        return
    own = labels.of_genes(list(table.values.index))
    names, genes = numbered(own.a, own.b)
    y = own.label.astype(np.int64)
    every = np.arange(len(y))
    vectors = table.rows(names.tolist())
    head = _fit(every, None, "gene-disjoint", vectors, genes, y, form=form, preset=preset, seed=seed)
    training = pd.DataFrame({"gene_a": own.a, "gene_b": own.b, "label": own.label})
    about = {"task": TASK, "target": own.name, "preset": preset, "seed": seed, "form": form, "n_training": len(y)}
    save_head(target, head, table=table, items="pairs", training=training, about=about, vocab=vocab)


def _check(labels: PairLabels, compared: Compared) -> None:
    known = set(compared.genes)
    shared = sum(a in known and b in known for a, b in zip(labels.a, labels.b, strict=True))
    if shared < 10:
        raise InputError(
            f"{labels.name}: of {len(labels):,} pairs (of genes such as {', '.join(labels.a[:3])}) {shared} have both "
            f"genes among the {len(compared.genes):,} that all embeddings hold (such as {', '.join(compared.genes[:3])}). "
            "Give --genes, so that symbols and ids become one, or other tables."
        )

"""Properties of genes from their vectors alone: dosage sensitivity, intolerance of loss of function, any label of your own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from expresser.atomic import replaced_together
from expresser.errors import InputError
from expresser.genes import GeneVocab
from expresser.one_writer import one_writer_of_out
from expresser.record import write_metrics
from finetune.embeddings.table import GeneTable
from finetune.heads.fitting import Preset, fit_head
from finetune.labels import GeneLabels
from finetune.memory import peak_mb
from finetune.splits.making import gene_folds, gene_holdout
from finetune.splits.rules import Split
from finetune.state import Store
from finetune.tasks.apply import save_head
from finetune.tasks.covariates import covariate_features, given_covariates, plain_covariates
from finetune.tasks.inputs import Compared, compare, lacking_genes
from finetune.tasks.judging import judge, score_frame
from finetune.tasks.report import write_task_page
from finetune.tasks.runs import Fitted, Progress, Row, Steps, TaskResult, fingerprint, open_run, run_rows

FEW_GENES = 2000  # below this many a single five-fold split is too noisy to rank tables, and a fit costs little


@one_writer_of_out
def run_gene_task(
    labels: GeneLabels,
    tables: Sequence[GeneTable],
    *,
    preset: Preset = "default",
    folds: int = 5,
    repeats: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Progress | None = None,
    save_heads: bool = True,
    vocab: GeneVocab | None = None,
    task: str = "gene",
    companions: Sequence[str] = ("loeuf",),
) -> TaskResult:
    """How well each table of gene vectors tells what is known of genes it was not fitted on.

    All tables are compared on the genes that all of them hold, in the same folds: a gene is on one side only, classes
    (or values) are spread evenly. Where the labels come with covariates, such as the length of the coding sequence,
    each covariate stands among the tables, NAME's correlation is also given with the covariates held constant, and
    ``length+NAME`` says what the vectors add to length.

    Parameters
    ----------
    preset
        Which head (`fit_head`). "paper" is the published protocol instead of folds: one random fifth held out.
    folds, repeats
        Of cross-validation; repeats None: 20 for fewer than 2,000 genes, else 3.
    out
        Folder for metrics.json, predictions.parquet, report.html and heads/NAME, a head for each table but "random",
        fitted on every labelled gene of that table. Without it nothing is written. What an interrupted run of the same
        labels, tables and options left there is used, and a complete one is read back.
    vocab
        Names for people, in predictions and heads.
    task
        What the run is called: lof, dosage, gene.
    companions
        Further targets of the labels to examine too, where they have them.

    Raises
    ------
    InputError
        For tables that share no gene, labels that are lost or of one class, a folder that holds something else.
    """
    labels = plain_covariates(labels)
    covariates = list(labels.covariates.columns)
    taken = [*covariates, *(f"{covariates[0]}+{table.name}" for table in tables if covariates)]
    compared = compare(tables, vocab, taken=taken)
    _check(labels, compared)
    labelled = labels.of_genes(compared.genes)
    known = np.isfinite(labelled.covariates.to_numpy(dtype=np.float64)).all(axis=1)
    without = int((~known).sum())
    if without:
        labelled = labelled.of_genes(list(labelled.values.index[known]))
    if repeats is None:
        repeats = 20 if len(labelled.values) < FEW_GENES else 3
    config: dict[str, Any] = {
        "preset": preset,
        "folds": folds,
        "repeats": repeats,
        "seed": seed,
        "save_heads": save_heads,
        "companions": list(companions),
    }
    marks = {table.name: fingerprint(table.values) for table in tables}
    label_mark = fingerprint(labels.name, labels.kind, labels.values, labels.covariates, labels.companions)

    splits = _splits(labelled.values, labelled.kind, preset=preset, folds=folds, repeats=repeats, seed=seed)
    folder = None if out is None else Path(out)
    store = Store(None, None)
    if folder is not None:
        store, done = open_run(folder, task=task, labels=label_mark, tables=marks, config=config, seed=seed)
        if done is not None:
            predictions = pd.read_parquet(folder / "predictions.parquet").set_index("gene_id")
            return TaskResult(score_frame(done), predictions, done, finished=True)

    targets = [labelled, *_companions(labelled, companions)]
    rows = {target.name: _rows(target, compared, preset=preset, seed=seed) for target in targets}
    saved = [table for table in tables if table.name != "random"] if folder is not None and save_heads else []
    folds_of = {labelled.name: splits}
    for target in targets[1:]:
        folds_of[target.name] = _splits(
            target.values, target.kind, preset=preset, folds=folds, repeats=repeats, seed=seed
        )
    steps = Steps(sum(len(rows[t.name]) * len(folds_of[t.name]) for t in targets) + len(saved), progress)
    entries, predictions = {}, pd.DataFrame()
    for target in targets:
        fitted = run_rows(rows[target.name], folds_of[target.name], store, steps)
        entries[target.name] = _entry(target, rows[target.name], folds_of[target.name], fitted)
        if target is labelled:
            predictions = _predictions(target, compared, splits, fitted)
    for table in saved:
        _save_head(folder, labels, table, preset=preset, seed=seed, vocab=vocab, task=task)  # type: ignore[arg-type]
        steps.add(f"head of {table.name}")

    headline = entries[labelled.name]
    metrics: dict[str, Any] = {
        "task": task,
        "kind": labelled.kind,
        "target": labels.name,
        **headline,
        "n_pairs": None,
        "preset": preset,
        "folds": folds if preset != "paper" else 1,
        "repeats": repeats if preset != "paper" else 1,
        "seed": seed,
        "companions": {target.name: entries[target.name] for target in targets[1:]},
        "covariates": covariates,
        "without_covariates": without,
        "models": [t.name for t in tables if t.about.get("kind") != "built-in"],
        "lost": compared.account(lacking_genes(tables, labels.values.index.tolist()), "labelled_lacking").to_dict(
            "index"
        ),
        "tables": {table.name: table.about | {"dim": table.dim} for table in tables},
        "labels": dict(labelled.account),
        "peak_mb": peak_mb(),
    }
    if folder is not None:
        with replaced_together(folder, last="metrics.json") as part:
            predictions.reset_index().to_parquet(part / "predictions.parquet", index=False)
            write_task_page(part / "report.html", metrics, predictions, run=folder / "run.json")
            write_metrics(part / "metrics.json", metrics)
        store.clear()
    return TaskResult(score_frame(metrics), predictions, metrics, resumed=store.found)


def _rows(labels: GeneLabels, compared: Compared, *, preset: Preset, seed: int) -> list[Row]:
    ids = labels.values.index.tolist()
    inputs = {table.name: table.rows(ids) for table in compared.tables}
    views = {name: covariate_features(labels.covariates[name]) for name in labels.covariates.columns}
    inputs |= views
    added_to = {}
    if views:
        first, features = next(iter(views.items()))
        joined = {f"{first}+{table.name}": np.hstack([features, inputs[table.name]]) for table in compared.tables}
        inputs |= joined
        added_to = dict.fromkeys(joined, first)
    y = labels.values.to_numpy()
    base = fingerprint(y, labels.kind, preset, seed)
    return [
        Row(
            name,
            partial(_fit_and_predict, x=x, y=y, kind=labels.kind, preset=preset, seed=seed),
            fingerprint(base, x),
            x.shape[1],
            added_to.get(name),
        )
        for name, x in inputs.items()
    ]


def _fit_and_predict(split: Split, *, x: np.ndarray, y: np.ndarray, kind: Any, preset: Preset, seed: int) -> np.ndarray:
    head = fit_head(x[split.rows], y[split.rows], kind=kind, preset=preset, seed=seed)
    return head.predict(x[split.test])


def _entry(
    labels: GeneLabels, rows: Sequence[Row], splits: Sequence[Split], fitted: Mapping[str, Sequence[Fitted]]
) -> dict[str, Any]:
    given = [covariate_features(labels.covariates[name]) for name in labels.covariates.columns]
    extra = {}
    if given and labels.kind == "regression":
        extra[f"pearson_given_{labels.covariates.columns[0]}"] = partial(given_covariates, covariates=given[0])
    if len(given) > 1 and labels.kind == "regression":
        extra["pearson_given_covariates"] = partial(given_covariates, covariates=np.hstack(given))
    y = labels.values.to_numpy()
    # A covariate joined to a table asks one thing only: whether the table adds to the covariate.
    plain = [row.name for row in rows if row.added_to is None]
    against = {
        row.name: [row.added_to] if row.added_to else [name for name in plain if name != row.name] for row in rows
    }
    found = judge(labels.kind, y, splits, fitted, extra=extra, against=against)
    for row in rows:
        found["embeddings"][row.name]["dim"] = row.dim
    split = "folds" if len(splits) > 1 else "holdout"
    sizes = {
        "n_train": round(np.mean([len(s.rows) for s in splits])),
        "n_test": round(np.mean([len(s.test) for s in splits])),
    }
    return {**found, "split": split, "n_genes": len(y), **sizes}


def _companions(labels: GeneLabels, wanted: Sequence[str]) -> list[GeneLabels]:
    """The further targets, each as labels of its own over the genes that have it."""
    found = []
    for name in (name for name in labels.companions.columns if name in wanted):
        values = labels.companions[name].astype(np.float64)
        values = values[np.isfinite(values)]
        if len(values) < 10:
            continue
        found.append(
            replace(
                labels,
                name=str(name),
                kind="regression",
                values=values,
                covariates=labels.covariates.loc[values.index],
                companions=labels.companions.loc[values.index, []],
            )
        )
    return found


def _splits(values: pd.Series, kind: str, *, preset: str, folds: int, repeats: int, seed: int) -> list[Split]:
    if preset == "paper":
        return gene_holdout(values, kind=kind, seed=seed)
    return gene_folds(values, kind=kind, folds=folds, repeats=repeats, seed=seed)


def _predictions(
    labels: GeneLabels, compared: Compared, splits: Sequence[Split], fitted: Mapping[str, Sequence[Fitted]]
) -> pd.DataFrame:
    """A row for each test gene of each fold, a column for each table: value, probability of 1, or class."""
    test = np.concatenate([split.test for split in splits])
    sizes = [len(split.test) for split in splits]
    ids = labels.values.index.to_numpy(dtype=object)
    frame = pd.DataFrame(index=pd.Index(ids[test], name="gene_id"))
    frame["symbol"] = np.array(compared.symbols(ids.tolist()), dtype=object)[test]
    frame["split"] = "folds" if len(splits) > 1 else "holdout"
    frame["repeat"] = np.repeat([split.repeat for split in splits], sizes)
    frame["fold"] = np.repeat([split.fold for split in splits], sizes)
    frame["label"] = labels.values.to_numpy()[test]
    classes = sorted(labels.values.unique()) if labels.kind == "multiclass" else None
    for name, folds in fitted.items():
        answer = np.concatenate([one.prediction for one in folds])
        frame[name] = answer if classes is None else np.array(classes, dtype=object)[answer.argmax(axis=1)]
    return frame


def _save_head(
    folder: Path,
    labels: GeneLabels,
    table: GeneTable,
    *,
    preset: Preset,
    seed: int,
    vocab: GeneVocab | None,
    task: str,
) -> None:
    """On all labelled genes of the table, whether or not other tables know them."""
    target = folder / "heads" / table.name
    if (target / "task.json").is_file():
        return
    own = labels.of_genes(list(table.values.index))
    x, y = table.rows(own.values.index.tolist()), own.values.to_numpy()
    head = fit_head(x, y, kind=own.kind, preset=preset, seed=seed)
    training = pd.DataFrame({"gene_id": own.values.index, "label": y})
    about = {"task": task, "target": own.name, "preset": preset, "seed": seed, "form": None, "n_training": len(y)}
    save_head(target, head, table=table, items="genes", training=training, about=about, vocab=vocab)


def _check(labels: GeneLabels, compared: Compared) -> None:
    shared = int(labels.values.index.isin(list(compared.genes)).sum())
    if shared < 10:
        raise InputError(
            f"{labels.name}: of {len(labels.values):,} labelled genes (such as {', '.join(labels.values.index[:3])}) only "
            f"{shared} are among the {len(compared.genes):,} that all embeddings hold (such as "
            f"{', '.join(compared.genes[:3])}). Give --genes, so that symbols and ids become one, or other tables."
        )

"""The imputation task: hidden expression of cells that the model never saw, against baselines that must be beaten."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from expresser import __version__
from expresser.atomic import replaced_together
from expresser.corpus.source import Source, open_source
from expresser.errors import InputError
from expresser.genes import GeneVocab
from expresser.one_writer import one_writer_of_out
from expresser.record import provenance, write_metrics
from finetune.cells import Data, read_cells, read_reference
from finetune.imputation import molecular_cv
from finetune.imputation.baselines import BASELINES
from finetune.imputation.checks import Check, Checks, wanted
from finetune.imputation.parts import MODEL, Comparison
from finetune.imputation.report import write_page
from finetune.imputation.verdicts import DECIDING
from finetune.state import Result, Store, check_folder, counts_sha256, model_sha256

ProtocolName = Literal["dropout", "mcv"]
Predict = Callable[..., np.ndarray]
Progress = Callable[[int, int], None]


@runtime_checkable
class Model(Protocol):
    """What of `expresser.checkpoint.Checkpoint` is used here."""

    @property
    def vocab(self) -> GeneVocab:
        """The genes its tokens stand for."""

    @property
    def source(self) -> str:
        """Folder or hub id."""


@one_writer_of_out
def run_imputation(
    *,
    model: str | Path | Model | None,
    data: Data,
    vocab: GeneVocab | None = None,
    protocol: ProtocolName = "dropout",
    drop: float | Sequence[float] = 0.1,
    seeds: int | Sequence[int] = 3,
    methods: Sequence[str] | None = None,
    reference: Data | None = None,
    reference_cells: int = 5000,
    label: str | None = None,
    checks: Sequence[Check] | None = None,
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
    (`protocols.drop_entries`); everything a method gets, the library size of each cell included, is
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
        Share of non-zero entries hidden (dropout), or several shares: the first is the headline. What is hidden at one
        share is hidden at every greater one. Ignored in "mcv", for which see `split_molecules`.
    seeds
        How many draws (0, 1, …), or which. Scores are means over them, `..._sd` their standard deviation.
    methods
        Names of `BASELINES` ("mcv": of `molecular_cv.METHODS`); None (or none) for all. One whose package is missing
        is named in `skipped` and stands in the table with the reason.
    reference
        Raw counts of further cells, or a corpus folder: at most `reference_cells` random ones are given to each
        baseline, whose scores with them are the rows `..._reference`. Cells of the reference that are also in the
        data are left out.
    label
        Column of the data's obs with known cell types, for the check "clusters".
    checks
        Of what imputation does beyond hidden values, under "dropout": "clusters" (`imputation_clusters`: does it help to
        find cell types? at the headline share) and "coexpression" (`imputation_coexpression`: does it invent ties
        between genes?). None: the latter where there are cells and genes enough, the former where there is a label. For
        clusters a model fills every zero of 2,000 genes, by far its slowest part: a tenth of a second a cell and draw
        on one core.
    out
        Folder for `metrics.json` and `report.html`; None writes nothing. While a run lasts, what is finished stands
        in its folder `state`: the same call after an interruption takes it from there, and removes it at the end.
    max_cells, min_genes
        At most so many random cells of the data; cells with fewer non-zero genes of the vocabulary are left out.
    predict
        For tests: stands for `expresser.impute.predict_entries`.
    progress
        Called with (method runs done, method runs in all).

    Returns
    -------
    What `metrics.json` holds: `methods` {name: {score, score_sd}}, `verdict` {baseline: "beats" | "on a par" | "behind" |
    "undecided"}, `differences` {baseline: {score: {difference, low, high}}}, all at the first share; `drops` {share: the
    same}; `clusters`, `coexpression` (None where not checked), `checks_left_out`, `skipped`, `drop`, `seeds`, `n_cells`,
    `n_genes`, `n_entries` (mean over seeds), `data`, `reference`.

    Raises
    ------
    InputError
        For input that is no raw count matrix or of another species, unknown methods or checks, no cell left, nothing
        dropped, a label that is not there.
    """
    out = None if out is None else Path(out)
    if out is not None:
        check_folder(
            out,
            what="a run of finetune imputation",
            task=None,
            files=("metrics.json", "report.html", "run.json", "state"),
        )
    if protocol not in DECIDING:
        raise InputError(f"protocol is {protocol!r}; there are {', '.join(map(repr, DECIDING))}.")
    known: Mapping[str, object] = BASELINES if protocol == "dropout" else molecular_cv.METHODS
    names = list(dict.fromkeys(methods or known))
    if strange := [name for name in names if name not in known]:
        raise InputError(f"no method {strange[0]!r} in protocol {protocol!r}; there are {', '.join(known)}.")
    seed_list = list(range(seeds)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    if not seed_list or min(seed_list) < 0:
        raise InputError(f"seeds is {seeds!r}; give at least one draw, and no negative seed.")
    shares: list[float | None] = [*_shares(drop)] if protocol == "dropout" else [None]
    asked_for = wanted(checks, protocol, label)
    checkpoint = _loaded(model)
    source = open_source(data, layer=layer)
    vocab = _vocabulary(checkpoint, vocab, source)
    cells = read_cells(source, vocab, max_cells=max_cells, min_genes=min_genes)
    others = None if reference is None else read_reference(reference, vocab, cells.counts, at_most=reference_cells)

    skipped = {name: reason for name in names if (reason := _missing(name))}
    comparison = Comparison(
        cells=cells,
        methods=[name for name in names if name not in skipped],
        asked=None if checkpoint is None else partial(_predictor(predict, max_tokens, device), checkpoint),
        references=[(None, "")] + ([(others.counts, "_reference")] if others is not None else []),
        shares=shares,
        seeds=seed_list,
        mcv_genes=mcv_genes,
        checks=Checks.of(asked_for, checks is not None, label, cells, source),
    )
    store = Store(out, None if out is None else _key(comparison, checkpoint, label))
    found: dict[str, dict[str, Result]] = {}
    total = sum(1 for _ in comparison.parts())
    for done, (name, run) in enumerate(comparison.parts(), 1):
        found[name] = store.result(name, run)
        if progress is not None:
            progress(done, total)

    tables = [comparison.table(found, share, DECIDING[protocol]) for share in shares]
    metrics: dict[str, Any] = {
        "protocol": protocol,
        **tables[0],
        "drops": {f"{share:g}": table for share, table in zip(shares, tables) if share is not None},
        **comparison.checked(found),
        "skipped": skipped,
        "drop": shares[0],
        "seeds": len(seed_list),
        "n_cells": cells.counts.shape[0],
        "n_genes": len(vocab),
        "data": cells.about,
        "reference": None if others is None else others.about,
        "model": None if checkpoint is None else checkpoint.source,
        "vocab_sha256": vocab.sha256,
    }
    if out is not None:
        config = {"protocol": protocol, "drop": shares, "seeds": seed_list, "methods": names, "max_cells": max_cells}
        record = provenance(
            seed=seed_list[0],
            data_sha256=source.sha256(),
            vocab_sha256=vocab.sha256,
            model=metrics["model"],
            weights_sha256=None if checkpoint is None else model_sha256(checkpoint),
            config=config | {"layer": layer, "label": label, "checks": asked_for, "max_tokens": max_tokens},
        )
        with replaced_together(out, last="metrics.json") as part:
            write_metrics(part / "run.json", record)
            write_page(part / "report.html", metrics, comparison.drawings(found), record, DECIDING[protocol], MODEL)
            write_metrics(part / "metrics.json", metrics)
        store.clear()
    return metrics


def _shares(drop: float | Sequence[float]) -> list[float]:
    shares = list(dict.fromkeys(drop if isinstance(drop, Sequence) else [drop]))
    if not shares:
        raise InputError("drop is empty; give at least one share of non-zero entries to hide, say 0.1.")
    if wrong := [share for share in shares if not 0 < share < 1]:
        raise InputError(
            f"drop is {wrong[0]}; it is the share of non-zero entries to hide and lies between 0 and 1, say 0.1."
        )
    return shares


def _key(comparison: Comparison, checkpoint: Model | None, label: str | None) -> dict[str, Any]:
    """All that a part's result depends on, beside what its own name says."""
    labels = comparison.checks.labels
    return {
        "version": __version__,
        "counts": [None if c is None else counts_sha256(c) for c in (comparison.cells.counts, *_given(comparison))],
        "rows": comparison.cells.rows.tolist(),
        "labels": None if labels is None else [label, labels.rows.tolist(), list(labels.types)],
        "mcv_genes": comparison.mcv_genes,
        "shares": comparison.shares[0],  # clusters are those of the first
        "seeds": comparison.seeds[0],  # and figures those of the first draw
        "model": None if checkpoint is None else [checkpoint.source, model_sha256(checkpoint)],
    }


def _given(comparison: Comparison) -> list[Any]:
    return [given for given, _ in comparison.references]


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


def _vocabulary(checkpoint: Model | None, vocab: GeneVocab | None, source: Source) -> GeneVocab:
    if checkpoint is None:
        return source.guess_vocab() if vocab is None else vocab
    if vocab is not None and vocab != checkpoint.vocab:
        raise InputError(
            f"the vocabulary given ({len(vocab):,} genes, sha256 {vocab.sha256[:12]}) is not the model's "
            f"({len(checkpoint.vocab):,} genes, {checkpoint.vocab.sha256[:12]}). Leave it out: the model's is used."
        )
    return checkpoint.vocab

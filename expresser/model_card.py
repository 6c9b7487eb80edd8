"""The README.md of a pretrained model, written from its run record: what it is, how good, from what, and how it is used."""

import json
import math
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from expresser.markdown import plain
from expresser.readable import format_column, format_number

PLACE = "THIS_FOLDER"  # what the card calls the model until a push gives it a name
_MOST_SOURCES = 200
_METRICS = {"mse": ("MSE", "mse"), "mae": ("MAE", "mae"), "pearson": ("Pearson r", "pearsonr")}

_CARD = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
    """---
{{ metadata }}
---
# Expression Transformer{{ ": " ~ plain(recipe) if recipe }}

A masked-expression model of single cells{{ ": " ~ number(genes) ~ " genes, each with an embedding" if genes }}
{{- ", pretrained on a corpus of " ~ number(cells) ~ " cells" if cells }}{{ " from " ~ sources if sources }}.
It is asked for the expression of genes that were hidden, given the other genes of the cell; its token table is what it learnt about
genes.

{% if scores %}
## Validation
{{ held }}

{{ scores }}

{{ verdict }}

{% endif %}
## Use
```
expresser embed {{ place }} cells.h5ad --out embedded.h5ad
expresser impute {{ place }} cells.h5ad --out imputed.h5ad
expresser genes export {{ place }} --out genes.parquet
```
```python
from expresser.checkpoint import load
from expresser.embed import embed, gene_table

model = load("{{ place }}")  # weights, genes and run record; in eval mode
embed(adata, model)  # raw counts in, obsm["X_expresser"] out
genes = gene_table(model)  # a row for each gene, by Ensembl id
```
Input is raw counts. `genes.tsv` says which gene a token is: weights are of no use without it, and it is checked when they are loaded.
Weights are safetensors; nothing in this folder is a pickle.

{% if data %}
## Sources
{{ data }}

{% endif %}
{% if corpus_id %}
The corpus, with its gene vocabulary and the order of its cells, has the id `{{ plain(corpus_id) }}`.

{% endif %}
{% if facts %}
## Training
| | |
|---|---|
{% for name, value in facts.items() %}
| {{ name }} | {{ plain(value) }} |
{% endfor %}

{% endif %}
{% if config %}
<details><summary>Configuration</summary>

```json
{{ config }}
```
</details>

{% endif %}
{% if versions %}
Versions: {{ versions }}.

{% endif %}
`run.json` holds all of this for programs.

## Licence
The licence of the weights is `license` at the head of this page; `unknown` means that who published them has not stated one. The data
they learnt from have terms of their own, which a training run does not know. The software is Apache-2.0.

## Citation
```bibtex
@phdthesis{cao2023deep,
  author = {Cao, Yingxin},
  title = {Deep Representation Learning for Single-cell Sequencing Data Analysis},
  school = {University of California, Irvine},
  year = {2023},
  note = {Chapter 4},
  url = {https://escholarship.org/uc/item/8nd676sz}
}
```
"""
)


def model_card(run: Mapping[str, Any], *, parameters: int | None = None, license: str | None = None) -> str:
    """The README.md of a checkpoint.

    Parameters
    ----------
    run
        Its run record. What it lacks is left out of the card.
    parameters
        Of the network.
    license
        Of the weights, as the hub spells it; None: not stated, which the card says.
    """
    sources = _sources(run)
    provenance = run.get("provenance") or {}
    versions = {name: version for name, version in (provenance.get("versions") or {}).items() if version is not None}
    config = run.get("config")
    return _CARD.render(
        metadata=_metadata(run, license).to_yaml().strip(),
        plain=plain,
        number=format_number,
        place=PLACE,
        recipe=run.get("recipe"),
        genes=run.get("genes"),
        cells=run.get("cells"),
        sources=f"{len(sources):,} sources" if len(sources) > 1 else None,
        held=_held(run),
        scores=_scores(run),
        verdict=_verdict(run),
        data=_data(sources),
        corpus_id=run.get("corpus_id"),
        facts=_facts(run, parameters),
        config=json.dumps(config, indent=1, sort_keys=True) if config else None,
        versions=", ".join(plain(f"{name} {version}") for name, version in versions.items()),
    )


def _metadata(run: Mapping[str, Any], license: str | None) -> ModelCardData:
    """The head of the card, which the hub reads: finite validation scores are its model index."""
    corpus = {"corpus_id": run["corpus_id"]} if run.get("corpus_id") else None
    results = [
        EvalResult(
            task_type="other",
            task_name="masked expression prediction",
            dataset_type="expresser-corpus",
            dataset_name="held-out cells of the pretraining corpus",
            dataset_args=corpus,
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for key, (name, kind) in _METRICS.items()
        if (value := _finite(run.get("valid"), key)) is not None
    ]
    return ModelCardData(
        license=license or "unknown",
        library_name="expresser",
        tags=["single-cell", "scrna-seq", "gene-embeddings", "imputation", "expresser"],
        model_name=f"Expression Transformer {run.get('recipe') or ''}".strip() if results else None,
        eval_results=results or None,
    )


def _finite(scores: Any, key: str) -> float | None:
    value = (scores or {}).get(key)
    return float(value) if value is not None and math.isfinite(value) else None


def _scores(run: Mapping[str, Any]) -> str | None:
    """Model and baseline under one another; None where the run has no score."""
    rows = {"this model": run.get("valid"), "gene + cell additive": run.get("additive")}
    rows = {name: scores for name, scores in rows.items() if any(_finite(scores, key) is not None for key in _METRICS)}
    if "this model" not in rows:
        return None
    columns = [format_column([_finite(scores, key) for scores in rows.values()]) for key in _METRICS]
    lines = [f"| | {' | '.join(name for name, _ in _METRICS.values())} |", "|---|" + "---|" * len(_METRICS)]
    return "\n".join(lines + [f"| {name} | {' | '.join(values)} |" for name, *values in zip(rows, *columns)])


def _held(run: Mapping[str, Any]) -> str:
    """How validation asked: which cells, which entries, in what unit."""
    config = run.get("config") or {}
    data, objective, model = (config.get(part) or {} for part in ("data", "objective", "model"))
    share, by = data.get("valid_share"), data.get("valid_by")
    of_cells = "cells of the corpus" if share is None else f"{format_number(100 * share)} % of the corpus"
    drawn = f", whole groups of {plain(by)}" if by else ""
    masked = objective.get("masked_share")
    hidden = "a share" if masked is None else f"{format_number(100 * masked)} %"
    n = _finite(run.get("valid"), "n")
    asked = f" ({format_number(int(n))} values)" if n else ""
    return (
        f"Cells that training never saw ({of_cells}{drawn}): {hidden} of the genes a cell expresses are hidden and predicted from the "
        f"others{asked}, as log1p({model.get('target_sum', 1e4):g} · count / total)."
        + (" The baseline adds a level of the gene and one of the cell." if run.get("additive") else "")
    )


def _verdict(run: Mapping[str, Any]) -> str:
    """The model against the baseline, whichever is better."""
    own, baseline = _finite(run.get("valid"), "mse"), _finite(run.get("additive"), "mse")
    if own is None or not baseline:
        return "No baseline was measured on these cells."
    share = format_number(abs(100 * (own / baseline - 1)))
    if own < baseline:
        return f"Its mean squared error is {share} % below that of the baseline."
    return f"**It does not beat the baseline**: its mean squared error is {share} % above."


def _sources(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the corpus was built from: with cells and checksums, or of older runs the names alone."""
    return list(run.get("manifest") or [{"name": name} for name in run.get("sources") or []])


def _data(sources: list[dict[str, Any]]) -> str | None:
    if not sources:
        return None
    shown = sources[:_MOST_SOURCES]
    columns = {
        "source": [plain(source["name"]) for source in shown],
        "cells": [format_number(source.get("cells")) for source in shown],
        "sha256": [plain(str(source.get("sha256") or "—")[:12]) for source in shown],
    }
    columns = {name: values for name, values in columns.items() if set(values) != {"—"} or name == "source"}
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(values)} |" for values in zip(*columns.values())]
    if len(sources) > len(shown):
        lines += ["", f"And {len(sources) - len(shown):,} more: `run.json` lists all."]
    return "\n".join(lines)


def _facts(run: Mapping[str, Any], parameters: int | None) -> dict[str, str]:
    """What the table of training says; what is not known is not in it."""
    provenance, best = run.get("provenance") or {}, run.get("best") or {}
    machine = provenance.get("machine") or {}
    seconds = _finite(run, "seconds")
    known = {
        "parameters": parameters,
        "steps": run.get("step"),
        "cells seen": run.get("cells_seen"),
        "seed": run.get("seed"),
        "cells a second": _finite(run, "cells_per_s"),
        "hours": None if seconds is None else seconds / 3600,
    }
    facts = {name: format_number(value) for name, value in known.items() if value is not None}
    if (lowest := _finite(best, "mse")) is not None:
        where = f", at step {format_number(best['step'])}" if best.get("step") is not None else ""
        facts["lowest validation MSE"] = format_number(lowest) + where
    if when := provenance.get("time_utc"):
        facts["begun (UTC)"] = str(when)
    if device := machine.get("accelerator") or machine.get("platform"):
        facts["machine"] = str(device)
    return facts

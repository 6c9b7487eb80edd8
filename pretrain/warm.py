"""Warm starts: a run that begins with the weights of another, on a corpus of its own that may have genes the other did not."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from expresser import checkpoint
from expresser.errors import InputError
from expresser.gene_names import is_ensembl_id
from expresser.genes import GeneVocab
from expresser.model.configuration import ExpresserConfig
from expresser.model.modeling import ExpresserPreTrainedModel

_TOKENS = "gene_tokens.weight"
_GENE_ROWS = (_TOKENS, "head.gene_level.weight")  # the weights with a row for each gene
_ARCHITECTURES = {"expresser": "expresser", "expresser_without_decoder": "without_decoder"}
# What may differ: max_genes (how much of a cell is shown) and dropout (in training alone), which change no weight's meaning.
_FIXED = (
    *("model_type", "d_model", "n_layers", "n_heads", "feed_forward", "n_bins", "norm_first", "decoder_layers"),
    *("decoder_residual", "value_input", "head", "cell_scale", "target_sum"),
)


@dataclass(frozen=True)
class WarmStart:
    """What a run began with: ``warm_start`` of its ``run.json``."""

    source: str
    """The model as it was named: a folder or a hub id."""
    weights_sha256: str
    """Of the source's ``model.safetensors``; the same in all processes, or they do not begin alike."""
    corpus_id: str | None
    """The corpus that the source was trained on."""
    step: int | None
    cells_seen: int | None
    genes_kept: int
    """Genes of this run that the source knew: their rows are the source's."""
    genes_new: int
    genes_dropped: int
    """Genes of the source that this run's corpus does not have."""
    before: dict[str, Any] | None
    """What the source itself began with, if not at random."""

    def to_dict(self) -> dict[str, Any]:
        """For ``run.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Source:
    """A trained model, opened for a run's model and genes: what it gives (`give`) and where it came from (`record`)."""

    record: WarmStart
    weights: dict[str, Tensor]
    rows: Int64[np.ndarray, " vocab"]
    """For each gene of the run its row among the source's, -1 where it has none."""

    @classmethod
    def open(cls, start: str | Path, config: ExpresserConfig, vocab: GeneVocab) -> "Source":
        """Read and check a source.

        Parameters
        ----------
        start
            A model folder, the folder of a run, or a hub id.
        config, vocab
            Of the run that is to begin.

        Raises
        ------
        InputError
            If there is no such model, its shape or the meaning of its weights differs, or it has none of this corpus's genes.
        """
        folder = checkpoint.locate(start)
        source = checkpoint.load(folder)
        _same_function(config, source.model.config, str(start))
        rows = matched_rows(vocab, source.vocab)
        kept = int((rows >= 0).sum())
        if kept == 0:
            raise InputError(
                f"{start}: none of its {len(source.vocab):,} genes ({', '.join(source.vocab.ids[:3])} …) is among this corpus's "
                f"{len(vocab):,} ({', '.join(vocab.ids[:3])} …). Build the corpus with that model's genes.tsv as --genes, or "
                "begin without --start."
            )
        record = WarmStart(
            source=str(start),
            weights_sha256=_sha256(folder / "model.safetensors"),
            corpus_id=source.run.get("corpus_id"),
            step=source.run.get("step"),
            cells_seen=source.run.get("cells_seen"),
            genes_kept=kept,
            genes_new=len(vocab) - kept,
            genes_dropped=len(source.vocab) - kept,
            before=source.run.get("warm_start"),
        )
        return cls(record, source.model.state_dict(), rows)

    def give(self, model: ExpresserPreTrainedModel, factors: Float[Tensor, "vocab d"] | None = None) -> None:
        """Give a freshly built model every weight of the source.

        Rows of genes that the source does not know stay as the model was built: random, their levels those of the corpus. With
        `factors`, what a ridge regression of the learned rows on their genes' factors says of the new genes is added: they begin near
        the genes that they vary with. Factors cannot be added as they are: they are axes of this corpus, not of the learned rows.

        Parameters
        ----------
        model
            Of the run: its gene levels set (`set_gene_means`), its token table still random.
        factors
            Principal axes of the corpus's genes, where the recipe starts the table from them.
        """
        known, taken = torch.from_numpy(self.rows >= 0), torch.from_numpy(self.rows[self.rows >= 0])
        weights, ours = dict(self.weights), model.state_dict()
        if weights.keys() != ours.keys():
            strange = sorted(weights.keys() ^ ours.keys())
            raise InputError(
                f"{self.record.source}: its weights are not those of this model ({', '.join(strange[:5])}). Save it with this version."
            )
        with torch.no_grad():
            if factors is not None:
                learned = weights[_TOKENS][taken].float()
                ours[_TOKENS][~known] += _turned(factors, known, learned).to(ours[_TOKENS].dtype)
            for name, weight in ours.items():
                if name in _GENE_ROWS:
                    weight[known] = weights[name][taken].to(weight.dtype)
                else:
                    weight.copy_(weights[name])


def _turned(
    factors: Float[Tensor, "vocab d"], known: Bool[Tensor, " vocab"], learned: Float[Tensor, "kept d"]
) -> Float[Tensor, "new d"]:
    """What a ridge regression of learned rows on their genes' factors says of the rows of new genes."""
    axes, mean = factors.double(), learned.double().mean(0)
    seen = axes[known]
    # One per cent of the mean eigenvalue: axes of little variance say little of where a gene's row lies.
    ridge = 0.01 * seen.square().mean() * len(seen) * torch.eye(seen.shape[1], dtype=seen.dtype)
    turn = torch.linalg.lstsq(seen.T @ seen + ridge, seen.T @ (learned.double() - mean)).solution
    return mean + axes[~known] @ turn


def recalled(out: Path) -> dict[str, Any] | None:
    """What the run in this folder began with, for a resumed run: its weights are in its checkpoints, and the source may be gone."""
    path = out / "run.json"
    return json.loads(path.read_text()).get("warm_start") if path.is_file() else None


def matched_rows(ours: GeneVocab, theirs: GeneVocab) -> Int64[np.ndarray, " vocab"]:
    """For each gene of one vocabulary its row in another, -1 where that has none; no row is given twice.

    Genes with one key are one. A gene that either side knows by symbol alone is the gene that this name resolves to on the other
    side; where two genes would get one row, neither does.
    """
    row_of = {gene: row for row, gene in enumerate(theirs.ids)}
    rows = np.array([row_of.get(gene, -1) for gene in ours.ids], dtype=np.int64)
    here = [i for i in np.flatnonzero(rows < 0) if not is_ensembl_id(ours.ids[i])]
    there = [j for j in np.setdiff1d(np.arange(len(theirs)), rows) if not is_ensembl_id(theirs.ids[j])]
    pairs = set(zip(here, theirs.resolve(ours.ids[here]).tokens.tolist()))
    pairs |= set(zip(ours.resolve(theirs.ids[there]).tokens.tolist(), there))
    free = set(np.flatnonzero(rows < 0).tolist()), set(range(len(theirs))) - set(rows.tolist())
    pairs = {(i, j) for i, j in pairs if i in free[0] and j in free[1]}
    once = [Counter(side) for side in zip(*pairs)] if pairs else []
    for i, j in pairs:
        if once[0][i] == once[1][j] == 1:
            rows[i] = j
    return rows


def _same_function(ours: ExpresserConfig, theirs: ExpresserConfig, start: str) -> None:
    """Raise InputError where the source's weights would compute something else in this run's model."""
    meaningless = ("decoder_residual", "value_input") if ours.model_type == "expresser_without_decoder" else ()
    differ = [name for name in _FIXED if name not in meaningless and getattr(ours, name) != getattr(theirs, name)]
    if ours.d_ff == theirs.d_ff:  # 0, a multiple of d_model on both sides
        differ = [name for name in differ if name != "feed_forward"]
    if not differ:
        return
    facts = "; ".join(f"{name} {getattr(theirs, name)!r} there, {getattr(ours, name)!r} here" for name in differ)
    options = " ".join(_option(name, getattr(theirs, name)) for name in differ)
    raise InputError(
        f"{start}: its weights are those of another model than this run's ({facts}). A warm start continues the same model: "
        f"say {options}."
    )


def _option(name: str, value: object) -> str:
    """How the command line sets a field of the model to this value."""
    if name == "model_type":
        return f"--model.architecture {_ARCHITECTURES[str(value)]}"
    word = {"feed_forward": "d_ff"}.get(name, name).replace("_", "-")
    if isinstance(value, bool):
        return f"--model.{word}" if value else f"--model.no-{word}"
    return f"--model.{word} {value}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

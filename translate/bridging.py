"""What a network takes from a pretrained Expresser before its first step: weights, and a start."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from expresser.checkpoint import Checkpoint, load, locate
from expresser.corpus.manifest import sha256_file
from expresser.errors import InputError
from expresser.processes import this_process
from translate.bridge import Bridge
from translate.factor_linear import FactorLinear, standardised
from translate.feed import Feed, Inputs, atac_input
from translate.peak_start import gene_places, peak_table, start_peaks
from translate.preprocess import RnaInput
from translate.pretrained_genes import PretrainedGenes
from translate.rna_layer import RnaLayer
from translate.study import Study
from translate.system import System

CELLS = 512  # that are embedded between two words of progress
_ABOUT_FILES = ("transformers_version", "architectures", "dtype")  # in a config.json, which say nothing of shapes


def pretrained(model: str) -> tuple[Checkpoint, dict[str, Any]]:
    """A model, folder or hub id, and what says which it is: its name and the sha256 of its weights."""
    folder = locate(model)
    return load(folder), {"model": model, "sha256": sha256_file(folder / "model.safetensors")}


def with_pretrained(rna: RnaInput, checkpoint: Checkpoint, bridge: Bridge, given: pd.DataFrame) -> RnaInput:
    """The same, which knows which genes are the model's; given: all genes of the file."""
    told = checkpoint.model.config
    config = {k: v for k, v in told.to_diff_dict().items() if k not in _ABOUT_FILES} | {"model_type": told.model_type}
    genes = PretrainedGenes.of(config, checkpoint.vocab, rna.var, given, reads_cells=bridge.reads_cells)
    return replace(rna, pretrained=genes)


def start_from_pretrained(
    system: System, checkpoint: Checkpoint, inputs: Inputs, bridge: Bridge, study: Study, seed: int
) -> dict[str, Any]:
    """Copy and project, in place; returns what was used: genes known, of how many, peaks with a start, weights by way.

    Raises InputError where nothing is found that could be used: no gene known, no peak near a gene.
    """
    table = checkpoint.model.gene_tokens.weight.detach().float().cpu()
    used: dict[str, Any] = {"ways": []}
    rna = inputs.get("rna")
    if isinstance(rna, RnaInput) and rna.pretrained is not None:
        used |= {"genes": _prove_known(rna, bridge), "of_genes": len(rna.var)}
        used["ways"] += _start_rna(system, checkpoint, rna, table, bridge, seed)
    if bridge.peak_start != "fresh":
        if "atac" not in inputs:
            raise InputError(
                f"bridge: peak_start is {bridge.peak_start}, and there is no ATAC among {', '.join(inputs)}. Give ATAC, or leave it "
                "out."
            )
        measured = study.measured.get("rna")
        places = gene_places(checkpoint.vocab.table, None if measured is None else measured.var)
        regions = atac_input(inputs).regions
        embeddings, near = peak_table(regions, places, table.numpy())
        outputs = bridge.peak_start == "both"
        if not start_peaks(system, regions, torch.from_numpy(embeddings), near, outputs=outputs, seed=seed):
            raise ValueError(f"{type(system).__name__} has no layer over these {len(regions)} peaks.")
        used |= {"peaks": int(near.sum()), "of_peaks": len(regions)}
        used["ways"].append("peaks that are read and predicted" if outputs else "peaks that are read")
    if not used["ways"]:
        raise InputError(
            f"bridge: nothing of {bridge.rna_encoder} would be used. Choose a way, or leave rna_encoder out."
        )
    return used


def _start_rna(
    system: System, checkpoint: Checkpoint, rna: RnaInput, table: Float32[Tensor, "vocab d"], bridge: Bridge, seed: int
) -> list[str]:
    """The ways that were gone."""
    assert rna.pretrained is not None
    ways: list[str] = []
    known = torch.from_numpy(np.flatnonzero(rna.pretrained.known))
    rows = table[torch.from_numpy(rna.pretrained.tokens[rna.pretrained.known])]
    generator = torch.Generator().manual_seed(seed)
    layers = [module for module in system.modules() if isinstance(module, RnaLayer)]
    for layer in layers:
        if layer.cells is not None:
            layer.cells.model.load_state_dict(checkpoint.model.state_dict())
        if bridge.rna_start == "genes" and layer.weight is not None:
            layer.start_at_genes(standardised(rows), known, generator)
    outputs = [module for module in system.modules() if isinstance(module, FactorLinear)]
    for output in outputs:
        output.take_table(rows)
    if layers and bridge.rna_start == "genes" and bridge.rna_cells != "replace":
        ways.append("first weights of genes")
    if layers and bridge.reads_cells:
        ways.append(
            "cell embeddings that " + ("join expression" if bridge.rna_cells == "join" else "replace expression")
        )
    if bridge.rna_blocks:
        ways.append(f"{bridge.rna_blocks} blocks that train")
    if outputs:
        ways.append("output weights of genes")
    return ways


def embed_cells(
    system: System,
    feed: Feed,
    train: Int64[np.ndarray, " train"],
    *,
    standardise: bool,
    say: Callable[[int, int, str], None] | None = None,
) -> Feed:
    """The feed with cell embeddings where all of the pretrained model is frozen; `standardise` layers by those of training cells."""
    layers = [module for module in system.modules() if isinstance(module, RnaLayer) and module.cells is not None]
    if not layers or feed.rna_counts is None:
        return feed
    cells, n = layers[0].cells, feed.rna_counts.shape[0]
    assert cells is not None
    at = feed.rows["rna"][train]
    at = at[at >= 0]
    wanted = np.sort(at) if cells.trains else np.arange(n)
    out = np.zeros((n, layers[0].centre.shape[0]), np.float32)
    fastest = this_process().device
    cells.to(fastest)
    with torch.no_grad():
        for start in range(0, len(wanted), CELLS):
            some = wanted[start : start + CELLS]
            rows = feed.whole(some)
            assert rows is not None
            out[some] = cells(rows.to(fastest)).cpu().numpy()
            if say is not None:
                say(start + len(some), len(wanted), "embedding cells")
    cells.cpu()
    for layer in layers if standardise else ():
        layer.standardise(torch.from_numpy(out[at]))
    return feed if cells.trains else feed.embedded(out)


def share_cells(system: System, taken: set[str]) -> None:
    """A layer that a model to start from did not have gets the pretrained network of one that it had."""
    layers = {name: m for name, m in system.named_modules() if isinstance(m, RnaLayer) and m.cells is not None}
    had = [layer for name, layer in layers.items() if f"{name}.centre" in taken]
    for name, layer in layers.items():
        if had and f"{name}.centre" not in taken:
            assert layer.cells is not None
            assert had[0].cells is not None
            layer.cells.load_state_dict(had[0].cells.state_dict())
            layer.centre.copy_(had[0].centre)
            layer.spread.copy_(had[0].spread)


def _prove_known(rna: RnaInput, bridge: Bridge) -> int:
    """How many genes the model knows; InputError where none."""
    assert rna.pretrained is not None
    known = int(rna.pretrained.known.sum())
    if not known:
        raise InputError(
            f"bridge: {bridge.rna_encoder} knows none of {len(rna.var):,} genes (for example "
            f"{', '.join(map(repr, rna.var.index[:3]))}); genes are matched by Ensembl id, by symbol only where a file has no ids. "
            "Give a model of the same species, or a file with ids (--genes)."
        )
    return known

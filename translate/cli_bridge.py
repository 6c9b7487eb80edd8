"""What ``--rna-encoder`` and the options beside it make of a system's configuration, and whether the model named is there."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from expresser.errors import InputError
from translate.bridge import Bridge
from translate.bridge_words import reference_model

NONE = Bridge()
_OF_RNA = ("rna_cells", "rna_blocks", "rna_output")  # ways into a network that reads or predicts RNA


def with_bridge(config: Any, bridge: Bridge, system: str, kind: Any, start: str | None) -> Any:
    """The configuration, what is to be taken from a pretrained Expresser in it; InputError for what the system cannot use.

    Systems that embed have no RNA in their network: they take first weights of peaks, and one that RNA guides its reference.
    """
    if bridge == NONE:
        return config
    if start is not None:
        raise InputError(
            f"--start {start}: the model's configuration is taken, and with it what it took from a pretrained model, if anything: "
            "leave --rna-encoder and the options beside it out, or fit anew without --start."
        )
    if not bridge.rna_blocks and bridge.rna_blocks_lr != NONE.rna_blocks_lr:
        raise InputError(
            f"--rna-blocks-lr {bridge.rna_blocks_lr:g}: no block of the pretrained model is to train. Say how many (--rna-blocks), "
            "or leave it out."
        )
    if kind.embeds:
        return _of_embedder(config, bridge, system)
    ways = ("rna_start", "fresh"), ("rna_cells", "none"), ("rna_output", "own"), ("peak_start", "fresh")
    if all(getattr(bridge, name) == nothing for name, nothing in ways):
        raise InputError(
            f"--rna-encoder {bridge.rna_encoder}: nothing of it would be used. Leave --rna-start fresh out, add --rna-cells, "
            "--rna-output or --peak-start, or leave the model out."
        )
    return replace(config, bridge=bridge)


def _of_embedder(config: Any, bridge: Bridge, system: str) -> Any:
    """The same of a system whose network reads ATAC alone."""
    guided, peaks = hasattr(config, "reference"), bridge.peak_start != NONE.peak_start
    if given := [_option(name) for name in _OF_RNA if getattr(bridge, name) != getattr(NONE, name)]:
        also = ", and --rna-encoder alone names its reference" if guided else ""
        raise InputError(
            f"{', '.join(given)}: {system} has no RNA in its network. Leave {'it' if len(given) == 1 else 'them'} out; "
            f"--peak-start is of use to it{also}."
        )
    if guided:
        reference = f"expresser:{bridge.rna_encoder}"
        if config.reference not in (type(config)().reference, reference):
            raise InputError(
                f"--rna-encoder {bridge.rna_encoder} makes {reference} the reference of {system}, and --config.reference is "
                f"{config.reference}: give one of them."
            )
        config = replace(config, reference=reference)
    elif not peaks:
        raise InputError(
            f"--rna-encoder {bridge.rna_encoder}: {system} reads ATAC alone, and nothing of it would be used. Add --peak-start "
            "encoder (or both), or leave it out."
        )
    return replace(config, bridge=Bridge(bridge.rna_encoder, peak_start=bridge.peak_start)) if peaks else config


def prove_pretrained(configs: Sequence[Any]) -> None:
    """InputError where a pretrained model that one of these names is no model folder or hub id: known before any cell is read."""
    from expresser.checkpoint import locate

    named = [config.bridge.rna_encoder for config in configs]
    named += [reference_model(config.reference) for config in configs if hasattr(config, "reference")]
    for model in dict.fromkeys(named):
        if model is not None:
            locate(model)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"

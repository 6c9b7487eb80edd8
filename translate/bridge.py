"""What a translator takes from a pretrained Expresser."""

from dataclasses import dataclass
from typing import Literal

from expresser.errors import InputError


@dataclass(frozen=True)
class Bridge:
    """Options of the bridge; without `rna_encoder` nothing is taken.

    Raises InputError for options that contradict each other.
    """

    rna_encoder: str | None = None
    """A pretrained Expresser (folder or hub id) that the RNA side starts from. The fitted model does not need it any more."""
    rna_start: Literal["genes", "fresh"] = "genes"
    """genes: the first layer on RNA starts as a projection of the pretrained gene embeddings, matched by Ensembl id; others fresh."""
    rna_cells: Literal["none", "join", "replace"] = "none"
    """Cell embeddings of the pretrained model, frozen, join the expression that the encoder reads, or replace it."""
    rna_blocks: int = 0
    """The last so many blocks of the pretrained model train with the translator; with --rna-cells. On a CPU: small models only."""
    rna_blocks_lr: float = 0.1
    """Learning rate of these blocks, as a share of the translator's."""
    rna_output: Literal["own", "table"] = "own"
    """table: a gene's output weights are its pretrained embedding times a matrix that all genes share."""
    peak_start: Literal["fresh", "encoder", "both"] = "fresh"
    """Peaks start as means of the embeddings of genes nearby, weighted by distance: in the layers that read them, or in those that
    predict them as well."""

    def __post_init__(self) -> None:
        if self.rna_blocks < 0 or not self.rna_blocks_lr >= 0:
            raise InputError(
                f"bridge: rna_blocks {self.rna_blocks} and rna_blocks_lr {self.rna_blocks_lr} must not be negative."
            )
        if self.rna_blocks and self.rna_cells == "none":
            raise InputError(
                f"bridge: {self.rna_blocks} blocks of the pretrained model are to train, but its cell embeddings are not read. Set "
                "rna_cells to join or replace."
            )
        others = Bridge.__dataclass_fields__
        changed = [
            n for n, f in others.items() if n not in ("rna_encoder", "rna_blocks_lr") and getattr(self, n) != f.default
        ]
        if self.rna_encoder is None and changed:
            raise InputError(
                f"bridge: {', '.join(changed)} without a pretrained model. Name one (rna_encoder), or leave them out."
            )

    @property
    def reads_cells(self) -> bool:
        """Whether the pretrained network is part of the translator."""
        return self.rna_cells != "none"

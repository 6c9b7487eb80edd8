"""SAILERX: embeddings of ATAC cells, free of depth and batch, that keep to how the same cells lie in RNA (Cao et al., 2022)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from expresser.errors import InputError
from translate.batches import Batch
from translate.covariates import Reference
from translate.feed import Feed, Inputs
from translate.invariant import Invariant, InvariantConfig
from translate.losses import comparable_pairs, similarity_loss
from translate.phases import Beside, Phase, Terms, Turn
from translate.reference import Cleaning, Weighting, reference_embedding
from translate.study import Study
from translate.system import Published

EVERY = 3  # steps, of which one is followed by one on cells of ATAC alone


@dataclass(frozen=True)
class SailerxConfig(InvariantConfig):
    """Options of SAILERX; presets are in `Sailerx.presets`."""

    positive_weight: float | Literal["ratio"] = 1.0
    """How many times an open peak counts (ω). ratio: closed entries for an open one, in training cells."""
    warmup: int = 5
    """Epochs of reconstruction from the mean alone, before anything is sampled."""
    epochs: int = 100
    """Epochs after the warm-up."""
    cycle: int = 20
    """Epochs in which the weight of both divergences rises from 0 to 1 (first half) and stays there (second half)."""
    latent: int = 50
    """Dimensions of the latent."""
    reference: str = "pca"
    """Where RNA says that cells lie: pca, obsm:KEY (a table of the RNA file) or expresser:MODEL (a pretrained Expresser)."""
    reference_dims: int = 50
    """Components of pca."""
    clean: Cleaning = "matched"
    """What is taken out of the reference: the shift between batches' nearest neighbours, or batches' means (centre), or none."""
    within: str | None = None
    """Column of obs (study, say) whose groups are each compared by themselves."""
    weights: Weighting = "even"
    """depth: cells whose ATAC is poor beside their RNA take more from it. even: all alike."""
    alternating: bool = False
    """Cells of ATAC alone have steps of their own: every third step one more on them, together with paired cells under the next
    batch's label, as in the released code. Otherwise all cells are in the same steps."""
    alignment: float | Literal["elbow"] = 1e6
    """Weight of the alignment, a mean over pairs of cells, beside nats a cell (γ's scaling factor). elbow: chosen by
    short fits, from the point where the alignment no longer improves."""


PAPER = SailerxConfig(
    positive_weight=20.0,
    base_rates=False,
    scaled=False,
    direct=False,
    clean="none",
    weights="depth",
    warmup=10,
    epochs=400,
    cycle=100,
    batch_size=200,
    lr=1e-4,
)


class Sailerx(Invariant):
    r"""SAILER by chromosome, and a pull of the pairwise similarities of cells towards those in an embedding of their RNA.

    .. math:: L = L_{SAILER} + \gamma \sum_{ij} w_i w_j (s^{RNA}_{ij} - s_{ij})^2 / n

    s: cosine similarities of two cells of a step, of their places in the reference and of their posterior means; only inside a
    group, and among cells that have both modalities; n: how many such pairs the step has. Of cells with ATAC alone nothing is
    asked. Weights w are 1 or `translate.reference.depth_weights`. RNA never enters the network: new cells need ATAC alone.

    Relations: `Sailer` without RNA; BABEL and scMOG where RNA itself is to be predicted.
    """

    needs = ("rna", "atac")
    config_class = SailerxConfig
    presets: ClassVar[dict[str, Any]] = {
        "default": SailerxConfig(),
        "paper": PAPER,
        "as_released": replace(
            PAPER,
            alignment=6000.0,
            sd_is_variance=True,
            weighs_all=True,
            summed=True,
            anneals_by_epoch=True,
            alternating=True,
        ),
    }
    published = Published(
        name="SAILERX",
        reference="Cao, Fu, Hou, Nie, Xie. Integrated analysis of multimodal single-cell data with structural similarity. "
        "Nucleic Acids Research 50 (2022).",
        doi="10.1093/nar/gkac781",
        pairing="paired cells, and cells of ATAC alone",
        directions=(("atac", "atac"),),
        choose="Paired RNA and ATAC (cells of ATAC alone may join): the embedding of scATAC guided by RNA; ATAC alone embeds.",
        deviations=(
            "The default is not the paper's recipe (preset paper): the reference is cleaned of batch first (as it is), cells "
            "are pulled alike (by the ratio of their depths), open peaks counted once (20 times), output layers that start at "
            "base rates and that depth and batch reach directly (neither), open peaks weighted to one depth (unweighted), "
            "learning rate 1e-3 (1e-4), batches of 128 (200), 105 epochs with shorter cycles (410).",
            "The alignment is a mean over the pairs of a step, beside nats a cell: its factor does not depend on the size of "
            "a batch. The paper names no factor; the release has 6000 on sums (preset as_released).",
            "One σ in sampling and in both divergences; ω on open entries only, in all phases; annealing at every step "
            "(as_released: the variance as σ, ω on every entry after the warm-up, steps of an epoch, sums in place of means).",
            "Cells of ATAC alone are in the same batches as the others, without the alignment. The release takes, every third "
            "step, a step more on them together with paired cells under the other batch's label (as_released; there that step "
            "has Adam's moments of its own, and of more than two batches the label is the next one's).",
            "Components, highly variable genes, shifts of batches and the ends of the weights' scale are those of the "
            "training cells.",
            "Depth of ATAC is the number of open peaks, of RNA the sum of counts.",
        ),
    )

    def __init__(self, config: SailerxConfig, inputs: Inputs) -> None:
        if config.alignment == "elbow":
            raise InputError(
                "sailerx: alignment is still to be chosen. translate.elbow.choose_alignment gives a configuration with a number."
            )
        super().__init__(config, inputs)
        self.config: SailerxConfig
        self.has_alone = False  # training cells with ATAC alone

    def prepare(self, feed: Feed, cells: Int64[np.ndarray, " train"]) -> None:
        super().prepare(feed, cells)
        self.has_alone = bool((feed.has("atac") & ~feed.has("rna"))[cells].any())

    def phases(self) -> tuple[Phase, ...]:
        if not (self.config.alternating and self.has_alone):
            return super().phases()
        alone = Beside(("atac",), lacks=("rna",), watched=False)
        return tuple(
            replace(
                phase,
                players=(*phase.players, replace(phase.players[0], name="alone", every=EVERY)),
                among=("rna",),
                beside=(alone,),
            )
            for phase in super().phases()
        )

    def losses(self, batch: Batch, turn: Turn) -> Terms:
        if turn.player != "alone":
            return super().losses(batch, turn)
        (others,) = batch.beside
        mixed = (others, replace(batch, batch_codes=(batch.sources + 1) % max(self.n_batches, 1)))
        warm, share = turn.phase == "warmup", sum(part.share for part in mixed)
        posteriors = [self.encoder(part.atac) for part in mixed]
        terms: Terms = {"reconstruction": torch.zeros((), device=posteriors[0][0].device)}
        for part, (mean, log_var) in zip(mixed, posteriors):
            part = replace(part, share=share)
            latent = mean if warm else self.sampled(mean, log_var, part, turn)
            terms["reconstruction"] = terms["reconstruction"] + self.reconstruction(
                part, latent, self.confounders(part), warm=warm
            )
        if warm:
            return terms
        mean, log_var = (torch.cat(of) for of in zip(*posteriors))
        return terms | self.divergences(mean, log_var, replace(batch, share=share), self.annealed(turn))

    def reference(self, study: Study, train: Int64[np.ndarray, " train"]) -> Reference | None:
        c = self.config
        return reference_embedding(
            c.reference,
            study,
            train,
            dims=c.reference_dims,
            batches=c.batch,
            clean=c.clean,
            weights=c.weights,
            within=c.within,
        )

    def more(self, batch: Batch, mean: Float32[Tensor, "cells latent"], turn: Turn) -> Terms:
        """The alignment of posterior means, from the warm-up on: a mean over the step's pairs that can be compared (a sum, where
        sums are asked), so that cells of ATAC alone do not weaken the pull of the others."""
        known = batch.reference
        apart = similarity_loss(mean, known.values, weight=known.weight, group=known.group).sum()
        pairs = 1 if self.config.summed else comparable_pairs(known.weight, known.group)
        return {"alignment": apart * (float(self.config.alignment) / pairs)}

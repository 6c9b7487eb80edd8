"""SAILER: embeddings of scATAC cells that depth and batch do not move (Cao et al., Bioinformatics 2021)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from translate.invariant import Invariant, InvariantConfig
from translate.system import Published


@dataclass(frozen=True)
class SailerConfig(InvariantConfig):
    """Options of SAILER; presets are in `Sailer.presets`."""

    positive_weight: float | Literal["ratio"] = 1.0
    """How many times an open peak counts (ω). ratio: closed entries for an open one, in training cells."""
    warmup: int = 5
    """Epochs of reconstruction from the mean alone, before anything is sampled."""
    epochs: int = 40
    """Epochs after the warm-up, at most."""
    cycle: int = 20
    """Epochs in which the weight of both divergences rises from 0 to 1 (first half) and stays there (second half)."""
    patience: int | None = 10
    """Epochs without a better validation loss after which to stop with the best weights. None: all epochs, the last weights."""


PAPER = SailerConfig(
    network="dense",
    hidden=(1000, 100),
    positive_weight="ratio",
    most_positive_weight=1e4,
    base_rates=False,
    scaled=False,
    direct=False,
    warmup=10,
    epochs=390,
    cycle=100,
    patience=None,
    batch_size=100,
)


class Sailer(Invariant):
    r"""A variational autoencoder whose latent is kept from knowing depth and batch, which the decoder is told.

    .. math:: L = KL(q(z|x) \,\|\, p(z)) + \lambda \, KL(q(z|x) \,\|\, q(z)) - (1 + \lambda) \, E \log p(x | z, c)

    in nats a cell. The first two terms and the likelihood bound the evidence; with λ more of the likelihood, the second bounds
    :math:`I(z, c)`. It is taken over all pairs of a step, in closed form. A warm-up reconstructs from the posterior's mean alone;
    then the weight of both divergences rises in cycles.

    Relations: SAILERX adds an RNA embedding of the same cells. LSI with depth and batch regressed out of its components is the
    linear baseline.
    """

    config_class = SailerConfig
    presets: ClassVar[dict[str, Any]] = {
        "default": SailerConfig(),
        "paper": PAPER,
        "as_released": replace(
            PAPER, positive_weight=30.0, sd_is_variance=True, weighs_all=True, summed=True, anneals_by_epoch=True
        ),
    }
    published = Published(
        name="SAILER",
        reference="Cao, Fu, Wu, Peng, Nie, Zhang, Xie. SAILER: scalable and accurate invariant representation learning for "
        "single-cell ATAC-seq processing and integration. Bioinformatics 37 (2021).",
        doi="10.1093/bioinformatics/btab303",
        pairing="ATAC alone",
        directions=(("atac", "atac"),),
        choose="scATAC alone: an embedding free of depth and batch, and peaks imputed at one depth and in one batch.",
        deviations=(
            "The default is what did best on simulated cells of known type, not the paper's recipe (preset paper): a network by "
            "chromosome of 64 and 32 units (all peaks, 1000 and 100), open peaks counted once (by the ratio of closed to open "
            "ones), output layers that start at base rates (at random), open peaks weighted to one depth for the encoder (not), "
            "depth and batch given to each peak's output too (to the first hidden layer only), fewer epochs and shorter cycles, "
            "the weights of the best validation loss (the last).",
            "Preset paper keeps the last weights and does not hold the ratio of closed to open peaks; preset as_released "
            "restores what the released code does otherwise where training changes: samples with the variance for the standard "
            "deviation, ω = 30 on open peaks in the warm-up and on every entry after it, reconstruction and prior divergence "
            "summed over a batch while pairs are averaged, annealing once an epoch.",
            "Batches are one-hot, any number of them (released: one number, 0 or 1). Imputation is at the training cells' mean "
            "depth (released: log depth that is not standardised) and undoes ω, so that it gives probabilities: above "
            "1 / (1 + ω) the weighted network would have said more than one half.",
            "Pairs are those of the whole step, over all processes; noise is a function of seed, epoch and cell.",
        ),
    )

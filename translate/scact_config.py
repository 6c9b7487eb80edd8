"""What scACT can be told, as its authors had it and as it does best, and where it comes from."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from translate.bridge import Bridge
from translate.covariates import BatchColumn, LabelColumn
from translate.preprocess import AtacRecipe, RnaRecipe
from translate.system import Published


@dataclass(frozen=True)
class ScactConfig:
    """Options of scACT; presets are in `Scact.presets`."""

    rna: RnaRecipe = field(default_factory=RnaRecipe)
    atac: AtacRecipe = field(default_factory=AtacRecipe)
    batch: BatchColumn = field(default_factory=BatchColumn)
    label: LabelColumn = field(default_factory=LabelColumn)
    matching: Literal["labels", "ot", "mmd"] = "labels"
    """What makes translated cells lie where measured ones do. labels: discriminators of each label; ot: transport by the activity
    of genes, which `anchor` weighs; mmd: the maximum mean discrepancy, of the step's cells as a whole. The last two need no labels."""
    bridge: Annotated[Bridge, tyro.conf.Suppress] = field(default_factory=Bridge)
    """What is taken from a pretrained Expresser."""
    latent: int = 20
    """Dimensions of each latent."""
    rna_hidden: tuple[int, int] = (256, 128)
    """Sizes of the RNA encoder's layers; the decoder has them the other way round."""
    atac_hidden: tuple[int, int] = (32, 16)
    """Sizes of each chromosome's layers, peaks first."""
    confounder: float = 0.0
    """Weight of the information that latents may have about cells beside what decoders are told (λ), nats a feature; above 0
    the encoders are Gaussian."""
    masked: bool = False
    """ATAC is judged by open peaks and as many closed ones, drawn anew each time, and those that are right weigh less."""
    base_rates: bool = True
    """Output layers start at the mean of each gene and peak."""
    scaled: bool = True
    """Open peaks are weighted so that every cell has the total of a median one."""
    direct: bool = True
    """Depth and batch reach each peak's output directly, too, by weights of its own."""
    raw_depth: bool = False
    """The decoder is told the number of open peaks as it is, not its standardised logarithm."""
    input_dropout: float = 0.5
    """Share of the non-zero input that is hidden in training, anew in each epoch."""
    prior: float | None = 0.7
    """How far expression and log-odds are expected to depart from their mean (SD of a Gaussian prior on output weights)."""
    calibrated: bool = True
    """Probabilities of ATAC's reconstruction are fitted to validation cells; translated ones are brought to the base rate."""
    experts: int = 9
    """Affine maps that each step of f and of g mixes (K)."""
    residual: bool = True
    """Maps start as one affine map, of standardised latents; without it, as nine of entries from a standard Gaussian."""
    anchor: float = 1.0
    """Weight of the pull of translated latents towards where the activity of genes says that they lie; 0: none."""
    cycle: float = 1.0
    """Weight of the difference of latents from themselves after the way there and back (γ of the grid is on this)."""
    cycle_squared: bool = False
    """Squared differences, as in the paper, not absolute ones."""
    feature_cycle: float = 0.0
    """Weight of the loss of cells that are decoded from the latents after the way there and back."""
    adversarial: float = 0.1
    """Weight of the discriminators' verdict on translated latents."""
    mmd: float = 1.0
    """Weight of the discrepancy, where matching is mmd."""
    discriminator_dropout: float = 0.1
    """Share of the discriminators' hidden units left out in training."""
    foreign_labels: bool = False
    """Discriminators learn what is translated from cells under labels of the other batch's cells, as in the released code."""
    lr: float = 1e-3
    """Learning rate of the autoencoders (Adam)."""
    weight_decay: float = 0.0
    """Of the autoencoders' weights."""
    batch_size: int = 128
    """Cells of a step."""
    epochs: int = 300
    """Of each autoencoder, at most."""
    patience: int | None = 20
    """Epochs of an autoencoder without a better validation loss after which to stop with the best weights. None: all epochs."""
    joint_lr: float = 1e-3
    """Learning rate of maps and discriminators."""
    joint_epochs: int = 200
    """Of the maps, at most."""
    joint_steps: int | None = 1000
    """Steps of the maps after which no epoch more is begun. None: all epochs."""
    average: float | None = 0.99
    """How much of the running mean of the maps' weights stays at each step; it is the mean that is kept. None: the last weights."""


PAPER = ScactConfig(
    rna=RnaRecipe(min_genes=0, max_genes=None, scale=False, clip=0.0, n_top_genes=3000),
    atac=AtacRecipe(max_share=1.0, n_top_peaks=100_000),
    rna_hidden=(640, 320),
    atac_hidden=(64, 32),
    base_rates=False,
    scaled=False,
    direct=False,
    input_dropout=0.0,
    prior=None,
    calibrated=False,
    residual=False,
    anchor=0.0,
    adversarial=1.0,
    cycle_squared=True,
    feature_cycle=0.0,  # the paper's cycles are of embeddings (its equation 8)
    lr=1e-4,
    weight_decay=1e-4,
    epochs=200,
    patience=None,
    joint_lr=1e-4,
    joint_steps=None,
    average=None,
)


PRESETS: dict[str, ScactConfig] = {
    "default": ScactConfig(),
    "label_free": ScactConfig(matching="ot"),
    "paper": PAPER,
    "as_released": replace(
        PAPER, raw_depth=True, masked=True, cycle_squared=False, feature_cycle=1.0, foreign_labels=True
    ),
}

PUBLISHED = Published(
    name="scACT",
    reference="Xu, Liu, Zhang. scACT: Accurate Cross-modality Translation via Cycle-consistent Training from Unpaired "
    "Single-cell Data. CIKM (2024).",
    doi="10.1145/3627673.3679576",
    pairing="none; cell types of both modalities, or neither",
    directions=(("rna", "atac"), ("atac", "rna")),
    choose="RNA and ATAC of different cells, no pair at all: both directions, by cell types or by the activity of genes.",
    deviations=(
        "The default is what did best on simulated cells whose pairs were hidden, not the paper's recipe (preset paper). Gene "
        "activity, which the paper does not use, tells where each cell lies among those of the other modality (entropic "
        "transport, within labels where there are some); maps start at the affine map to there and are held to it, beside "
        "cycles and discriminators, whose verdict weighs a tenth (one). With labels alone, simulated cells of a type were found "
        "but not which of them; where peaks say little of the genes around them the default has little more to go by.",
        "Preset label_free, ours, has the same transport without labels and no discriminators. matching mmd asks only that "
        "the latents be alike as a whole: without the anchor it found no cell on simulated data (FOSCTTM 0.46, chance 0.5).",
        "Also in the default: smaller layers (RNA 256 and 128, not 640 and 320; a chromosome 32 and 16, not 64 and 32), "
        "output layers that start at base rates and have a Gaussian prior (neither), half of the input hidden in training "
        "(none), open peaks weighted to one depth for the encoder (unweighted), depth and batch given to each peak's output too "
        "(to the first layer only), standardised latents and maps that start near one affine map (unscaled Gaussian entries), "
        "autoencoders with the best validation loss (the last), the running mean of the maps' weights (the last), learning "
        "rate 1e-3 (1e-4).",
        "Preset paper takes layers and steps from the released code where the paper names others; preset as_released also its "
        "raw depth, balanced focal loss of peaks, absolute and feature cycles, and discriminators that learn what is "
        "translated under labels of unrelated cells. Its modes that cannot run (variational, end-to-end) are not restored, "
        "nor that frozen parts kept moving their batch statistics.",
        "Cycles of the paper are of embeddings: mean squares of RNA's and a cross-entropy of ATAC's, which values below 0 and "
        "beyond 1 do not have. Preset paper has mean squares of both.",
        "The confounder penalty is 0 in every preset, as in the released code; the paper searched its weight from 0.1 to 2 and names "
        "none. Asked for (confounder), it is the bound that SAILER uses, in nats a feature.",
        "Translated peaks are at the mean depth of training cells with ATAC and their mix of batches (released: 6,000 open peaks). "
        "Without pairs their probabilities cannot be calibrated: the slope is that of ATAC's own reconstruction, the shift "
        "brings their mean to the base rate of training cells.",
        "Types that one modality lacks are judged by no discriminator and held to no place in it.",
    ),
)

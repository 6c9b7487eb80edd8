"""What Polarbear can be told, as its authors had it and as it does best, and where it comes from."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from translate.beta_vae import MapKind
from translate.bridge import Bridge
from translate.covariates import BatchColumn
from translate.preprocess import AtacRecipe, RnaRecipe
from translate.system import Published


@dataclass(frozen=True)
class PolarbearConfig:
    """Options of Polarbear; presets are in `Polarbear.presets`."""

    rna: RnaRecipe = field(default_factory=RnaRecipe)
    atac: AtacRecipe = field(default_factory=AtacRecipe)
    batch: BatchColumn = field(default_factory=BatchColumn)
    unknown_batch: str | None = None
    """Batch that cells are taken for whose own no training cell had: its name, or "reference", in each modality the largest. None:
    such cells are refused, those that validate and test too."""
    coassay_only: bool = False
    """The autoencoders, too, learn from cells of both assays alone (the paper's ablation)."""
    bridge: Annotated[Bridge, tyro.conf.Suppress] = field(default_factory=Bridge)
    """What is taken from a pretrained Expresser."""
    latent: int = 25
    """Dimensions of each latent."""
    layers: int = 2
    """Hidden layers of each encoder and decoder."""
    rna_hidden: int | None = None
    """Units of a hidden layer of RNA. None: half the geometric mean of inputs and latent."""
    atac_hidden: int | None = 32
    """The same of each chromosome. None: half the geometric mean of its inputs and the latent."""
    counts_in: bool = False
    """The RNA encoder reads raw counts, not what the recipe makes of them."""
    beta: float = 0.2
    """Weight of the divergence from the prior (β)."""
    dropout: float = 0.1
    """Share of hidden units left out in training."""
    input_dropout: float = 0.25
    """Share of the non-zero input that is hidden in training, anew in each epoch."""
    link: Literal["rate", "product"] = "rate"
    """Probability of being open: 1 - exp(-depth x rate), or the released p x depth / 1000."""
    zero_inflated: bool = False
    """Predicted expression is the mean of counts, less those lost to dropout. False: what they would be without (the paper's)."""
    base_rates: bool = True
    """Output layers start at the mean of each gene and peak."""
    scaled: bool = True
    """Open peaks are weighted so that every cell has the total of a median one; without it depth reaches the latent."""
    prior: float | None = 0.7
    """How far genes' log shares and peaks' log rates are expected to depart from their mean (SD of a Gaussian prior on output
    weights). None: no prior."""
    calibrated: bool = True
    """Probabilities of open chromatin are fitted (slope and shift) to validation cells."""
    map: MapKind = "linear"
    """Between the latents: a line, or with one or two hidden layers beside it."""
    closed_form: bool = True
    """Maps start at the ridge regression of one latent mean on the other."""
    sampled_maps: bool = False
    """Maps learn from draws of the source's latent, not from its mean."""
    relearns_dispersion: bool = False
    """The map to RNA learns a dispersion of its own, as in the released code; predictions do not depend on it."""
    depth: Literal["predicted", "median"] = "predicted"
    """Number of open peaks that predicted cells are given where none is asked for: what RNA foretells of each cell (its own, where
    peaks were measured), by which measured cells can be judged, or that of a median training cell, by which cells can be compared."""
    atac_lr: float = 2e-3
    """Learning rate of ATAC's autoencoder (Adam)."""
    rna_lr: float = 2e-3
    """The same of RNA's."""
    map_lr: float = 2e-3
    """The same of the maps."""
    atac_eps: float = 1e-8
    """Adam's ε for ATAC's autoencoder."""
    rna_eps: float = 1e-8
    """The same for RNA's."""
    batch_size: int = 256
    """Cells of a step."""
    fewest_steps: int = 16
    """Of an epoch: where there are few cells, steps have fewer, though not below 32."""
    epochs: int = 300
    """Of each autoencoder, at most."""
    atac_ramp: int = 20
    """Epochs in which the weight of the divergence of ATAC's latent rises from 0 to β."""
    rna_ramp: int = 20
    """Epochs in which the weight of the divergence of RNA's latent rises from 0 to β."""
    patience: int = 20
    """Epochs of an autoencoder without a better validation figure after which to stop with the best weights."""
    monitor: Literal["loss", "reconstruction"] = "loss"
    """What autoencoders are stopped by: the bound on the evidence of validation cells, or their reconstruction alone."""
    map_batch_size: int = 32
    """Paired cells of a step of the maps."""
    map_epochs: int = 200
    """Of each map, at most."""
    map_patience: int = 10
    """Of the maps."""
    clip_norm: float | None = 100.0
    """Gradients longer than this are cut to it. None: they are not."""


PAPER = PolarbearConfig(
    beta=1.0,
    rna=RnaRecipe(min_genes=50, max_genes=None, log=False, scale=False, clip=0.0),
    atac_hidden=None,
    counts_in=True,
    input_dropout=0.0,
    base_rates=False,
    scaled=False,
    prior=None,
    calibrated=False,
    closed_form=False,
    sampled_maps=True,
    atac_eps=1e-5,
    rna_eps=0.01,
    atac_lr=1e-4,
    rna_lr=1e-3,
    map_lr=1e-3,
    batch_size=16,
    epochs=500,
    atac_ramp=80,
    rna_ramp=400,
    patience=45,
    map_batch_size=16,
    map_epochs=100,
    map_patience=45,
    clip_norm=None,
)


PRESETS: dict[str, PolarbearConfig] = {
    "default": PolarbearConfig(),
    "paper": PAPER,
    "as_released": replace(PAPER, link="product", relearns_dispersion=True, monitor="reconstruction"),
    "coassay_only": PolarbearConfig(coassay_only=True),
}

PUBLISHED = Published(
    name="Polarbear",
    reference="Zhang, Meng-Papaxanthos, Vert, Noble. Semi-supervised single-cell cross-modality translation using "
    "Polarbear. Journal of Computational Biology 29 (2022).",
    doi="10.1089/cmb.2022.0264",
    pairing="some paired cells, and any number of unpaired ones",
    directions=(("rna", "atac"), ("atac", "rna")),
    choose="Few paired cells and many of RNA or ATAC alone: both assays' own cells shape the latents.",
    deviations=(
        "The default is what did best on simulated cells, few of them paired, not the paper's recipe (preset paper): RNA is read "
        "log-standardised (raw counts), open peaks weighted to one depth (not), a divergence that weighs a fifth (β of 0, 0.5, 1 "
        "or 2 by validation), 32 units a chromosome (half the geometric mean of its peaks and the latent), a quarter of the "
        "input hidden in training (none), output layers that start at base rates and have a Gaussian prior (neither), learning "
        "rate 2e-3 (1e-4 and 1e-3), steps of 32 to 256 cells (16), maps that start at the regression of one latent mean on the "
        "other (at random) and learn from means (draws), probabilities calibrated on validation cells (not).",
        "Depth multiplies a rate: a peak is open with probability 1 - exp(-depth x rate). The released product of probability and "
        "depth / 1000 exceeds 1 in deep cells, where nothing is learnt; preset as_released has it.",
        "Autoencoders stop at the best bound on the evidence of validation cells of their modality, paired or not, at full β "
        "whatever the ramp. Preset "
        "as_released stops by reconstruction, which picks weights of a low β, and learns a dispersion anew with the map to RNA. "
        "Both presets keep the released ramps of 80 and 400 epochs.",
        "Not restored by any preset, as mistakes: the ATAC encoder that was to see the batch sees the last peaks twice, dropout "
        "and sampling in predictions, dropout in frozen parts while maps learn, the empty batch at the end of an epoch, "
        "chromosomes fixed at 22, layers beyond the second that share weights. A dispersion ends at 1,000 (e^15), beyond which "
        "float32 says nothing.",
        "Depth of missing ATAC is regressed, in logs, on RNA's latent mean, log library and batch (on all counts), with the "
        "paper's penalties, judged leaving out one cell; it is held to the range of training cells.",
        "A batch without training cells of a modality has no weights there: its cells are read from, and decoded to, that modality "
        "as those of the largest batch that has some (released: by weights that nothing trained).",
        "Protein-coding genes are not picked out; give these genes alone if that is wanted.",
    ),
)

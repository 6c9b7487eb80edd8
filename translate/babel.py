"""BABEL: two encoders and two decoders that meet in one latent (Wu et al., PNAS 2021), and proteins from that latent."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import tyro
from jaxtyping import Float, Float32
from torch import Tensor, nn

from translate.batches import Batch, SparseRows
from translate.blocks import (
    BatchNorm,
    ChromosomeLinear,
    Dense,
    PReLU,
    SparseDense,
    SparseLinear,
)
from translate.bridge import Bridge
from translate.feed import Inputs, peak_bounds, rna_input
from translate.heads import CountHead, LevelHead, OpenHead
from translate.phases import Optimizer, Phase, Player, Terms, Turn
from translate.preprocess import AtacRecipe, RnaInput, RnaRecipe
from translate.rna_layer import RnaLayer, shared_output
from translate.schedules import Plateau
from translate.study import Modality
from translate.system import Published, System

HIDDEN = 64
PEAKS_TO, CHROMOSOME = 32, 16  # sizes of a chromosome's two layers


@dataclass(frozen=True)
class BabelConfig:
    """Options of BABEL; presets are in `Babel.presets`."""

    rna: RnaRecipe = field(default_factory=RnaRecipe)
    atac: AtacRecipe = field(default_factory=AtacRecipe)
    bridge: Annotated[Bridge, tyro.conf.Suppress] = field(default_factory=Bridge)
    """What is taken from a pretrained Expresser."""
    latent: int = 32
    """Dimensions of the latent."""
    shared: bool = True
    """False: each of the four paths has an encoder and a decoder of its own (the paper's ablation)."""
    beta: float = 1.33
    """Weight of the two ATAC losses."""
    base_rates: bool = True
    """Output layers start at the mean of each gene and peak."""
    scaled: bool = True
    """Open peaks are weighted so that every cell has the total of a median one; without it depth reaches the latent."""
    input_dropout: float = 0.5
    """Share of the non-zero input that is hidden in training, anew in each epoch."""
    calibrated: bool = True
    """Probabilities of open chromatin are fitted (slope and shift) to validation cells: hidden input makes them too high."""
    prior: float | None = 0.7
    """How far genes' log means and peaks' log-odds are expected to depart from their mean (SD of a Gaussian prior on output
    weights). None: no prior."""
    lr: float = 1e-3
    """Learning rate (Adam)."""
    batch_size: int = 128
    """Cells of a step."""
    epochs: int = 500
    """At most."""
    patience: int = 25
    """Epochs without a better validation loss after which to stop with the best weights."""
    plateau: Plateau = field(default_factory=lambda: Plateau(patience=10))
    clip_norm: float = 5.0
    """Gradients longer than this are cut to it."""
    protein_lr: float = 1e-3
    """Learning rate of the decoder of proteins."""
    protein_epochs: int = 600
    """The same of that decoder: at most."""
    protein_patience: int = 15
    """The same of that decoder."""
    protein_plateau: Plateau = field(default_factory=lambda: Plateau(patience=5))


PAPER = BabelConfig(
    latent=16,
    base_rates=False,
    scaled=False,
    input_dropout=0.0,
    lr=0.01,
    protein_lr=1e-4,
    calibrated=False,
    prior=None,
    batch_size=512,
    patience=25,
)


class AtacEncoder(nn.Module):
    """Peaks of each chromosome → 32 → 16, then all chromosomes → latent."""

    def __init__(self, bounds: tuple[int, ...], latent: int, *, scaled: bool) -> None:
        super().__init__()
        n = len(bounds) - 1
        self.first, self.second = (
            SparseLinear(bounds, PEAKS_TO, scaled=scaled),
            ChromosomeLinear(n, PEAKS_TO, CHROMOSOME),
        )
        self.norm1, self.act1 = BatchNorm(n, PEAKS_TO), PReLU(n)
        self.norm2, self.act2 = BatchNorm(n, CHROMOSOME), PReLU(n)
        self.latent = Dense(n * CHROMOSOME, latent)

    def forward(self, rows: SparseRows) -> Float[Tensor, "cells latent"]:
        x = self.act1(self.norm1(self.first(rows)))
        return self.latent(self.act2(self.norm2(self.second(x))).flatten(1))


class AtacDecoder(nn.Module):
    """Latent → 16 a chromosome → 32 → the log-odds of its peaks."""

    def __init__(self, bounds: tuple[int, ...], latent: int) -> None:
        super().__init__()
        self.n = len(bounds) - 1
        self.latent, self.second = Dense(latent, self.n * CHROMOSOME), ChromosomeLinear(self.n, CHROMOSOME, PEAKS_TO)
        self.norm, self.act = BatchNorm(self.n, PEAKS_TO), PReLU(self.n)
        self.head = OpenHead(bounds, PEAKS_TO, per_block=True)

    def forward(self, latent: Float[Tensor, "cells latent"]) -> Float[Tensor, "cells chromosomes size"]:
        x = self.latent(latent).view(len(latent), self.n, CHROMOSOME)
        return self.act(self.norm(self.second(x)))


class RnaDecoder(nn.Module):
    """Latent → 64 → mean and dispersion of each gene."""

    def __init__(self, rna: RnaInput, latent: int, bridge: Bridge) -> None:
        super().__init__()
        self.hidden = Dense(latent, HIDDEN)
        self.head = CountHead(HIDDEN, len(rna.var), mean=shared_output(rna, HIDDEN, bridge))

    def forward(self, latent: Float[Tensor, "cells latent"]) -> Float[Tensor, "cells size"]:
        return self.hidden(latent)


class Babel(System):
    r"""Every encoder works with every decoder, because all four paths are trained at once.

    .. math:: L = L_{R \to R} + L_{A \to R} + \beta\,(L_{A \to A} + L_{R \to A})

    RNA: negative binomial of size-normalised counts, mean over cells and genes (nats). ATAC: Bernoulli, mean over cells and
    peaks. With RNA alone the first path remains; with proteins, a decoder (64, L1 loss on centred log-ratios) is trained
    afterwards on the frozen RNA latent.

    Relations: `Scmog` trains each direction by itself; Polarbear adds cells measured in one modality only.
    """

    config_class = BabelConfig
    presets: ClassVar[dict[str, Any]] = {
        "default": BabelConfig(),
        "paper": PAPER,
        "as_released": replace(PAPER, atac=AtacRecipe(share_of="commonest_peak"), plateau=Plateau(watches="train")),
        "independent": replace(PAPER, shared=False),
    }
    published = Published(
        name="BABEL",
        reference="Wu, Yost, Chang, Zou. BABEL enables cross-modality translation between multiomic profiles at "
        "single-cell resolution. PNAS 118 (2021).",
        doi="10.1073/pnas.2023070118",
        pairing="paired cells",
        directions=(("rna", "atac"), ("atac", "rna"), ("rna", "protein"), ("atac", "protein")),
        choose="Paired RNA and ATAC, both directions and one shared embedding from one model; the lightest of all.",
        deviations=(
            "The default is what scored best on genes and peaks of held-out cells, not the paper's recipe (preset paper): latent "
            "of 32 (16), output layers that start at base rates and have a Gaussian prior (neither), open peaks weighted to one "
            "depth (unweighted), half of the input hidden in training (none), learning rate 1e-3 (0.01), batches of 128 (512), "
            "probabilities calibrated on validation cells (not), learning rate for proteins 1e-3 (1e-4).",
            "Medians, means, SDs and clip bounds are those of the training cells, saved with the model; the released code "
            "computes them anew from each query file.",
            "Correlations are over all entries, not 100,000 random ones.",
            "Two unused output layers for ATAC and one for RNA in the released code do not exist here; the others' "
            "parameters and losses are the same.",
            "Proteins from ATAC are decoded from the shared latent, not through predicted RNA.",
        ),
    )

    def __init__(self, config: BabelConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.config: BabelConfig
        self.measured: tuple[Modality, ...] = tuple(m for m in ("rna", "atac") if m in inputs)
        for name, part in self._parts().items():
            self.add_module(name, part)
        if "protein" in inputs:
            n = len(inputs["protein"].var)
            self.protein_decoder = nn.Sequential(Dense(config.latent, HIDDEN), LevelHead(HIDDEN, n))

    def _parts(self) -> dict[str, nn.Module]:
        """Encoders and decoders by the names that `_path` gives."""
        found: dict[str, nn.Module] = {}
        for source in self.measured:
            for to in self.measured:
                encoder, decoder = self._path(source, to)
                if encoder not in found:
                    found[encoder] = self._encoder(source)
                if decoder not in found:
                    found[decoder] = self._decoder(to)
        return dict(sorted(found.items()))

    def _encoder(self, source: Modality) -> nn.Module:
        if source == "atac":
            return AtacEncoder(peak_bounds(self.inputs), self.config.latent, scaled=self.config.scaled)
        return SparseDense(RnaLayer(rna_input(self.inputs), HIDDEN, self.config.bridge), self.config.latent)

    def _decoder(self, to: Modality) -> nn.Module:
        if to == "atac":
            return AtacDecoder(peak_bounds(self.inputs), self.config.latent)
        return RnaDecoder(rna_input(self.inputs), self.config.latent, self.config.bridge)

    def _path(self, source: Modality, to: Modality) -> tuple[str, str]:
        """Names of the encoder and the decoder of a path."""
        if to == "protein":
            return self._path(source, "rna")[0], "protein_decoder"
        if self.config.shared:
            return f"{source}_encoder", f"{to}_decoder"
        return f"{source}_encoder_to_{to}", f"{to}_decoder_from_{source}"

    def phases(self) -> tuple[Phase, ...]:
        c = self.config
        parts = tuple(name for name, _ in self.named_children() if name != "protein_decoder")
        optimizer = Optimizer(lr=c.lr)
        found = [
            Phase(
                name="translate",
                players=(Player("all", parts, optimizer, clip_norm=c.clip_norm),),
                modalities=self.measured,
                epochs=c.epochs,
                batch_size=c.batch_size,
                patience=c.patience,
                plateau=c.plateau,
            )
        ]
        if "protein" in self.inputs:
            found.append(
                Phase(
                    name="protein",
                    players=(Player("protein", ("protein_decoder",), Optimizer(lr=c.protein_lr)),),
                    modalities=("rna", "protein"),
                    epochs=c.protein_epochs,
                    batch_size=c.batch_size,
                    patience=c.protein_patience,
                    plateau=c.protein_plateau,
                )
            )
        return tuple(found)

    def losses(self, batch: Batch, turn: Turn) -> Terms:
        if turn.phase == "protein":
            predicted = self.protein_decoder(self.encode(batch, source="rna", to="protein"))
            error = (predicted.float() - batch.protein).abs().sum()
            return {"rna_to_protein": error / (batch.share * batch.protein.shape[1])}
        terms: Terms = {}
        latents: dict[str, Tensor] = {}  # of each encoder, once
        heads: list[tuple[Any, float]] = []
        seen = batch if turn.player is None else batch.with_dropout(self.config.input_dropout, turn.key)
        for source in self.measured:
            for to in self.measured:
                encoder, decoder = self._path(source, to)
                if encoder not in latents:
                    latents[encoder] = self.encode(seen, source=source, to=to)
                part: Any = self.get_submodule(decoder)
                target = batch.rna.targets if to == "rna" else batch.atac
                weight = (self.config.beta if to == "atac" else 1.0) / target.n_features
                terms[f"{source}_to_{to}"] = part.head.loss(part(latents[encoder]), target) / batch.share * weight
                heads.append((part.head, weight))
        return self.with_prior(terms, heads, batch, turn)

    def directions(self) -> tuple[tuple[Modality, Modality], ...]:
        there: list[tuple[Modality, Modality]] = [(source, to) for source in self.measured for to in self.measured]
        if "protein" in self.inputs:
            # Proteins are learnt from RNA's latent, which is ATAC's too where it is shared.
            there += [(source, "protein") for source in self.measured if source == "rna" or self.config.shared]
        return tuple(there)

    def encode(self, batch: Batch, *, source: Modality, to: Modality) -> Float[Tensor, "cells latent"]:
        encoder = self.get_submodule(self._path(source, to)[0])
        return encoder(batch.rna if source == "rna" else batch.atac)

    def log_odds(
        self, latent: Float[Tensor, "cells latent"], *, source: Modality, peaks: slice
    ) -> Float32[Tensor, "cells peaks"]:
        part: Any = self.get_submodule(self._path(source, "atac")[1])
        return part.head.logits(part(latent), peaks)

    def decode(
        self, latent: Float[Tensor, "cells latent"], *, source: Modality, to: Modality, features: slice
    ) -> Float32[Tensor, "cells features"]:
        if to == "atac":
            return self.probability(latent, source=source, peaks=features)
        part: Any = self.get_submodule(self._path(source, to)[1])
        return part.head.predict(part(latent), features).log1p() if to == "rna" else part(latent)[:, features]

    def spaces(self) -> tuple[Modality, ...]:
        return ("rna",) if self.config.shared and len(self.measured) == 2 else ()

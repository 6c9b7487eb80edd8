"""scMOG: one generator for each direction, pre-trained against a critic, then trained on pairs (Lan et al., Adv. Sci. 2023)."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from jaxtyping import Float, Float32
from torch import Tensor, nn

from translate.batches import Batch, SparseRows
from translate.blocks import Dense, SparseDense, SparseLinear, xavier_linear
from translate.bridge import Bridge
from translate.feed import Inputs, peak_bounds, rna_input
from translate.heads import CountHead, Focal, LevelHead, OpenHead
from translate.phases import Optimizer, Phase, Player, Terms, Turn
from translate.preprocess import AtacRecipe, RnaInput, RnaRecipe
from translate.rna_layer import RnaLayer, shared_output
from translate.study import Modality
from translate.system import Published, System

SLOPE = 0.2
OPEN_BIAS = -2.0  # of the ATAC output layer at the start: most peaks are closed


@dataclass(frozen=True)
class ScmogConfig:
    """Options of scMOG; presets are in `Scmog.presets`."""

    rna: RnaRecipe = field(default_factory=RnaRecipe)
    atac: AtacRecipe = field(default_factory=AtacRecipe)
    bridge: Annotated[Bridge, tyro.conf.Suppress] = field(default_factory=Bridge)
    """What is taken from a pretrained Expresser."""
    latent: int = 16
    """Dimensions of each generator's narrowest layer."""
    adversarial: bool = True
    """False: no pre-training (the paper's No_pretrain)."""
    adversarial_epochs: int = 8
    """Epochs of pre-training against the critic."""
    critic_lr: float = 1e-4
    """Learning rate of both in pre-training (RMSprop)."""
    critic_turns: int = 5
    """The generator moves on every so many batches, the critic on all."""
    clip_weights: float = 0.01
    """The critic's weights are held between minus this and this."""
    base_rates: bool = True
    """Output layers start at the mean of each gene and peak."""
    scaled: bool = True
    """Open peaks are weighted so that every cell has the total of a median one; without it depth reaches the latent."""
    to_rna_dropout: float = 0.5
    """Share of the non-zero ATAC input that is hidden in training towards RNA, anew in each epoch."""
    to_atac_dropout: float = 0.3
    """Share of the non-zero RNA input that is hidden in training towards ATAC."""
    loss: Literal["bce", "focal"] = "bce"
    """Of peaks: Bernoulli, or the paper's focal loss."""
    focal: Focal = field(default_factory=Focal)
    calibrated: bool = True
    """Probabilities of open chromatin are fitted (slope and shift) to validation cells; neither focal loss nor hidden input
    gives probabilities."""
    prior: float | None = 0.7
    """How far genes' log means and peaks' log-odds are expected to depart from their mean (SD of a Gaussian prior on output
    weights). None: no prior."""
    average: float | None = 0.98
    """Share of the running mean of weights that stays at each step; the mean is what is kept. None: the last weights are."""
    lr: float = 1e-3
    """Learning rate of the generators."""
    beta1: float = 0.5
    """Adam's first moment: how much of it stays at each step."""
    to_rna_batch_size: int = 64
    """Cells of a step towards RNA."""
    to_atac_batch_size: int = 128
    """Cells of a step towards ATAC."""
    to_rna_epochs: int = 200
    """At most, towards RNA."""
    to_atac_epochs: int = 500
    """At most, towards ATAC."""
    to_protein_epochs: int = 200
    """At most, towards proteins."""
    patience: int = 15
    """Epochs without a better validation loss after which to stop with the best weights."""


PAPER = ScmogConfig(
    to_atac_batch_size=256,
    to_rna_epochs=60,
    patience=7,
    base_rates=False,
    scaled=False,
    to_rna_dropout=0.0,
    to_atac_dropout=0.0,
    prior=None,
    average=None,
    lr=1e-4,
    loss="focal",
)


class RnaDecoder(nn.Module):
    """16 → 64 → 256 → mean and dispersion of each gene."""

    def __init__(self, rna: RnaInput, latent: int, bridge: Bridge) -> None:
        super().__init__()
        self.hidden = Dense(latent, 64, 256, slope=SLOPE)
        self.head = CountHead(256, len(rna.var), mean=shared_output(rna, 256, bridge))

    def forward(self, latent: Float[Tensor, "cells latent"]) -> Float[Tensor, "cells size"]:
        return self.hidden(latent)


class AtacDecoder(nn.Module):
    """16 → 64 → 512 → log-odds of each peak."""

    def __init__(self, latent: int, bounds: tuple[int, ...], config: ScmogConfig) -> None:
        super().__init__()
        self.hidden = Dense(latent, 64, 512, slope=SLOPE)
        block_loss = config.focal.block() if config.loss == "focal" else None
        self.head = OpenHead(bounds, 512, per_block=False, bias=OPEN_BIAS, loss=block_loss)

    def forward(self, latent: Float[Tensor, "cells latent"]) -> Float[Tensor, "cells size"]:
        return self.hidden(latent)


class Critic(nn.Module):
    """Features → 1024 → 256 → 64 → 16 → a score, high for what was measured. Measured cells come sparse, others dense."""

    def __init__(self, n_features: int, *sizes: int) -> None:
        super().__init__()
        self.first = SparseLinear((0, n_features), sizes[0], joint=True)
        layers: list[nn.Module] = [nn.LeakyReLU(SLOPE)]
        for n_in, n_out in zip(sizes, (*sizes[1:], 1)):
            layers += [xavier_linear(n_in, n_out), nn.LeakyReLU(SLOPE)]
        self.others = nn.Sequential(*layers[:-1])

    def forward(self, x: SparseRows | Tensor) -> Float[Tensor, " cells"]:
        first = self.first(x) if isinstance(x, SparseRows) else self.first.dense(x)
        return self.others(first.squeeze(1)).squeeze(1).float()


class Scmog(System):
    r"""Source → 16 → target, each direction by itself.

    Before training on pairs the generator G learns to please a critic D (a Wasserstein GAN): D minimises
    :math:`E\,D(G(x)) - E\,D(y)`, its weights clipped, and G minimises :math:`-E\,D(G(x))`. Then G minimises the negative
    binomial loss (mean over cells and genes) towards RNA, and towards ATAC the Bernoulli loss (default) or the focal loss of
    the paper (both sums over peaks, means over cells). Towards proteins: mean squared error of centred log-ratios.

    Relations: `Babel` shares one latent and a sixteenth of the parameters.
    """

    config_class = ScmogConfig
    presets: ClassVar[dict[str, Any]] = {
        "default": ScmogConfig(),
        "paper": replace(PAPER, lr=0.01, beta1=0.9, to_rna_batch_size=256),
        "as_released": replace(
            PAPER,
            rna=RnaRecipe(log=False, scale=False, clip=0.0),
            atac=AtacRecipe(share_of="commonest_peak"),
            focal=Focal(gamma=2.0, positive_weight=0.07, negative_weight=0.93),
        ),
        "no_pretrain": replace(PAPER, lr=0.01, beta1=0.9, to_rna_batch_size=256, adversarial=False),
    }
    published = Published(
        name="scMOG",
        reference="Lan, Zhang, Gao. Efficient generation of paired single-cell multiomics profiles by deep learning. "
        "Advanced Science (2023).",
        doi="10.1002/advs.202301169",
        pairing="paired cells",
        directions=(("rna", "atac"), ("atac", "rna"), ("rna", "protein")),
        choose="Paired cells and one direction that matters more than a shared embedding; larger and slower than BABEL.",
        deviations=(
            "The default is what scored best on genes and peaks of held-out cells, not the paper's recipe (preset paper): "
            "Bernoulli loss towards ATAC (focal), output layers that start at base rates and have a Gaussian prior (neither), "
            "open peaks weighted to one depth (unweighted), half of ATAC and 0.3 of RNA hidden in training (nothing), learning "
            "rate 1e-3 (0.01; 1e-4 as released), batches of 64 and 128 (256), a running mean of weights watched and kept (the "
            "weights), patience 15 (7). Probabilities are calibrated on validation cells in all presets.",
            "The paper's focal loss weighs open entries by 0.93 and closed ones by 0.07; the released code does the reverse, and "
            "so does preset as_released, less a constant of 1e-5 inside its logarithms.",
            "Input is standardised ln(1 + counts) as the paper says; the released code feeds linear counts (as_released).",
            "Pre-training lasts 8 epochs, which is where the released stopping rule, that watches the critic's opinion, ends.",
            "The best validation weights are restored; the released code goes on from the last.",
            "In a critic's turn the generator is in eval mode: only who plays moves, batch statistics included.",
        ),
    )

    def __init__(self, config: ScmogConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.config: ScmogConfig
        sizes = {modality: len(found.var) for modality, found in inputs.items()}
        bounds = peak_bounds(inputs) if "atac" in inputs else ()
        for source, to in self.directions():
            if source == "rna":
                first: SparseLinear = RnaLayer(rna_input(inputs), 256, config.bridge)
            else:
                first = SparseLinear(bounds, 512, joint=True, scaled=config.scaled)
            encoder = SparseDense(first, 64, config.latent, slope=SLOPE)
            decoder: nn.Module
            if to == "rna":
                decoder = RnaDecoder(rna_input(inputs), config.latent, config.bridge)
            elif to == "atac":
                decoder = AtacDecoder(config.latent, bounds, config)
            else:
                decoder = nn.Sequential(Dense(config.latent, 64, slope=SLOPE), LevelHead(64, sizes["protein"]))
            self.add_module(f"{source}_encoder_to_{to}", encoder)
            self.add_module(f"{to}_decoder", decoder)
            if config.adversarial:
                hidden = (256, 64) if to == "protein" else (1024, 256, 64, 16)
                self.add_module(f"{to}_critic", Critic(sizes[to], *hidden))

    def directions(self) -> tuple[tuple[Modality, Modality], ...]:
        return tuple((s, t) for s, t in self.published.directions if s in self.inputs and t in self.inputs)

    def phases(self) -> tuple[Phase, ...]:
        c = self.config
        size: dict[Modality, int] = {
            "rna": c.to_rna_batch_size,
            "atac": c.to_atac_batch_size,
            "protein": c.to_rna_batch_size,
        }
        epochs: dict[Modality, int] = {"rna": c.to_rna_epochs, "atac": c.to_atac_epochs, "protein": c.to_protein_epochs}
        found = []
        if c.adversarial:
            move = Optimizer(kind="rmsprop", lr=c.critic_lr)
            for source, to in self.directions():
                critic = Player("critic", (f"{to}_critic",), move, clip_weights=c.clip_weights)
                generator = Player("generator", self._generator(source, to), move, every=c.critic_turns)
                name = f"please_critic_{source}_to_{to}"
                found.append(
                    Phase(
                        name,
                        (critic, generator),
                        (source, to),
                        c.adversarial_epochs,
                        size[to],
                        monitor=f"{source}_to_{to}",
                    )
                )
        adam = Optimizer(lr=c.lr, betas=(c.beta1, 0.999))
        for source, to in self.directions():
            player = Player("generator", self._generator(source, to), adam)
            found.append(
                Phase(
                    f"{source}_to_{to}",
                    (player,),
                    (source, to),
                    epochs[to],
                    size[to],
                    patience=c.patience,
                    average=c.average,
                )
            )
        return tuple(found)

    def _generator(self, source: Modality, to: Modality) -> tuple[str, str]:
        return f"{source}_encoder_to_{to}", f"{to}_decoder"

    def _direction(self, phase: str) -> tuple[Modality, Modality]:
        return next((s, t) for s, t in self.directions() if phase.endswith(f"{s}_to_{t}"))

    def losses(self, batch: Batch, turn: Turn) -> Terms:
        source, to = self._direction(turn.phase)
        decoder: Any = self.get_submodule(f"{to}_decoder")
        seen = batch if turn.player is None else batch.with_dropout(self._dropout(to), turn.key)
        hidden = decoder(self.encode(seen, source=source, to=to))
        if turn.phase.startswith("please_critic_") and turn.player is not None:
            critic = self.get_submodule(f"{to}_critic")
            generated = critic(self._generated(hidden, to)).sum() / batch.share
            if turn.player == "generator":
                return {"opinion": -generated}
            return {"generated": generated, "measured": -critic(self._measured(batch, to)).sum() / batch.share}
        if to == "protein":
            return {f"{source}_to_protein": ((hidden.float() - batch.protein) ** 2).mean(dim=1).sum() / batch.share}
        target = batch.rna.targets if to == "rna" else batch.atac
        weight = 1 / target.n_features if to == "rna" else 1.0  # a mean over genes, a sum over peaks
        terms = {f"{source}_to_{to}": decoder.head.loss(hidden, target) / batch.share * weight}
        return self.with_prior(terms, [(decoder.head, weight)], batch, turn)

    def _dropout(self, to: Modality) -> float:
        return self.config.to_rna_dropout if to == "rna" else self.config.to_atac_dropout if to == "atac" else 0.0

    def _generated(self, hidden: Tensor, to: Modality) -> Float[Tensor, "cells features"]:
        """What the critic sees: linear expression, probabilities, centred log-ratios."""
        decoder: Any = self.get_submodule(f"{to}_decoder")
        if to == "rna":
            return decoder.head.predict(hidden, slice(None))
        return torch.sigmoid(decoder.head.logits(hidden, slice(None))) if to == "atac" else hidden

    def _measured(self, batch: Batch, to: Modality) -> SparseRows | Tensor:
        return batch.rna.targets if to == "rna" else batch.atac if to == "atac" else batch.protein

    def encode(self, batch: Batch, *, source: Modality, to: Modality) -> Float[Tensor, "cells latent"]:
        encoder = self.get_submodule(f"{source}_encoder_to_{to}")
        return encoder(batch.rna if source == "rna" else batch.atac)

    def log_odds(
        self, latent: Float[Tensor, "cells latent"], *, source: Modality, peaks: slice
    ) -> Float32[Tensor, "cells peaks"]:
        decoder: Any = self.get_submodule("atac_decoder")
        return decoder.head.logits(decoder(latent), peaks)

    def decode(
        self, latent: Float[Tensor, "cells latent"], *, source: Modality, to: Modality, features: slice
    ) -> Float32[Tensor, "cells features"]:
        if to == "atac":
            return self.probability(latent, source=source, peaks=features)
        decoder: Any = self.get_submodule(f"{to}_decoder")
        hidden = decoder(latent)
        return decoder.head.predict(hidden, features).log1p() if to == "rna" else hidden[:, features]

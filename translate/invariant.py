"""The invariant variational autoencoder of open chromatin that SAILER and SAILERX share: a latent that is told what confounds
it, and made to say no more about a cell than the cells around it do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor
from torch.nn import functional

from expresser.errors import InputError
from translate.batches import Batch
from translate.bridge import Bridge
from translate.conditional import LEAST_SPREAD, ConditionalDecoder, GaussianEncoder
from translate.covariates import BatchColumn
from translate.feed import Feed, Inputs, peak_bounds
from translate.losses import gaussian_kl, mutual_information_bound, sample_latent
from translate.phases import Optimizer, Phase, Player, Terms, Turn
from translate.preprocess import AtacRecipe
from translate.study import Modality
from translate.system import System


@dataclass(frozen=True)
class InvariantConfig:
    """Options that systems with an invariant latent of open chromatin share."""

    atac: AtacRecipe = field(
        default_factory=lambda: AtacRecipe(autosomes=False, min_cells=1, min_share=0.01, max_share=0.9)
    )
    batch: BatchColumn = field(default_factory=BatchColumn)
    best_batch: str | None = None
    """The batch whose profile imputed cells have. None: that of the highest median depth."""
    network: Literal["dense", "chromosome"] = "chromosome"
    """All peaks into one layer, or each chromosome into its own."""
    hidden: tuple[int, int] = (64, 32)
    """Sizes of the two hidden layers, peaks first; of each chromosome where the network is by chromosome."""
    bridge: Annotated[Bridge, tyro.conf.Suppress] = field(default_factory=Bridge)
    """What is taken from a pretrained Expresser."""
    latent: int = 10
    """Dimensions of the latent."""
    lam: float = 1.0
    """Weight of the information that the latent may not have (λ)."""
    positive_weight: float | Literal["ratio"] = "ratio"
    """How many times an open peak counts (ω). ratio: closed entries for an open one, in training cells."""
    most_positive_weight: float = 30.0
    """The ratio is held to this, and to one over it."""
    base_rates: bool = True
    """The output layer starts at the share of cells in which each peak is open."""
    scaled: bool = True
    """Open peaks are weighted so that every cell has the total of a median one."""
    direct: bool = True
    """Depth and batch reach each peak's output directly, too, by weights of its own."""
    input_dropout: float = 0.0
    """Share of the open peaks that is hidden from the encoder in training, anew in each epoch."""
    prior: float | None = None
    """How far log-odds of peaks are expected to depart from their mean (SD of a Gaussian prior on output weights)."""
    calibrated: bool = False
    """Fit slope and shift of imputed probabilities to validation cells."""
    warmup: int = 10
    """Epochs of reconstruction from the mean alone, before anything is sampled."""
    epochs: int = 100
    """Epochs after the warm-up."""
    cycle: int = 100
    """Epochs in which the weight of both divergences rises from 0 to 1 (first half) and stays there (second half)."""
    patience: int | None = None
    """Epochs without a better validation loss after which to stop with the best weights. None: all epochs, the last weights."""
    batch_size: int = 128
    """Cells of a step."""
    lr: float = 1e-3
    """Learning rate (Adam)."""
    decay: float = 0.995
    """What the learning rate is multiplied by after each epoch."""
    weight_decay: float = 5e-4
    """Of all weights (Adam's L2)."""
    sd_is_variance: bool = False
    """Sample with the variance for the standard deviation, as the released code does."""
    weighs_all: bool = False
    """After the warm-up ω multiplies every entry, not only the open ones, as in the released code."""
    summed: bool = False
    """Reconstruction and the divergence from the prior are sums over a batch, that of pairs a mean, as in the released code:
    λ is then smaller by the size of a batch."""
    anneals_by_epoch: bool = False
    """The weight of the divergences changes once an epoch, not at every step."""


class Invariant(System):
    r"""An encoder to a Gaussian, and a decoder that is told depth and batch.

    .. math:: L = KL(q(z|x) \,\|\, p(z)) + \lambda \, KL(q(z|x) \,\|\, q(z)) - (1 + \lambda) \, E \log p(x | z, c)

    nats a cell; c: log depth, standardised over training cells, and batch, one-hot. A subclass adds its terms in `more`.
    """

    reads = ("atac",)
    needs: ClassVar[tuple[Modality, ...]] = ("atac",)
    embeds = True
    depth_mean: Tensor
    depth_sd: Tensor
    omega: Tensor
    best: Tensor

    def __init__(self, config: Any, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.config: Any
        bounds, c = peak_bounds(inputs), config
        self.n_batches = c.batch.size if c.batch.size > 1 else 0
        self.encoder = GaussianEncoder(bounds, c.hidden, c.latent, network=c.network, scaled=c.scaled)
        self.decoder = ConditionalDecoder(
            bounds, c.hidden, c.latent, 1 + self.n_batches, network=c.network, direct=c.direct
        )
        self.register_buffer("depth_mean", torch.zeros(()))
        self.register_buffer("depth_sd", torch.ones(()))
        self.register_buffer("omega", torch.ones(()))
        self.register_buffer("best", torch.zeros((), dtype=torch.int64))  # number of the batch that is imputed

    def prepare(self, feed: Feed, cells: Int64[np.ndarray, " train"]) -> None:
        """Depths, batches and the ratio of closed to open entries of the training cells, and where the output layer starts."""
        super().prepare(feed, cells)
        cells = cells[feed.rows["atac"][cells] >= 0]
        depth = np.log(np.maximum(open_peaks(feed, cells), 1))
        self.depth_mean.fill_(depth.mean())
        self.depth_sd.fill_(max(depth.std(), LEAST_SPREAD))
        self.best.fill_(self._best_batch(depth, feed, cells))
        share = float(feed.open_share(cells).mean())
        c = self.config
        most = c.most_positive_weight
        omega = min(max((1 - share) / max(share, 1e-9), 1 / most), most)
        self.omega.fill_(omega if c.positive_weight == "ratio" else c.positive_weight)
        if c.base_rates:
            with torch.no_grad():
                # Where open entries count ω times, the best constant has ω times their odds.
                self.decoder.head.bias.add_(self.omega.log())
            self.decoder.start_at_depth(float(self.depth_sd))

    def _best_batch(self, depth: Float[np.ndarray, " cells"], feed: Feed, cells: Int64[np.ndarray, " cells"]) -> int:
        names, wanted = self.config.batch.names, self.config.best_batch
        if wanted is not None and wanted not in names:
            there = f"training cells have {', '.join(map(repr, names))}" if names else "name their column with --batch"
            raise InputError(f"best_batch: no batch {wanted!r}; {there}.")
        if not self.n_batches or feed.batch_codes is None:
            return 0
        if wanted is not None:
            return names.index(wanted)
        codes = feed.batch_codes[cells]
        # A batch all of whose cells lack ATAC has no depth.
        medians = [np.median(depth[codes == i]) if (codes == i).any() else -np.inf for i in range(len(names))]
        return int(np.argmax(medians))

    def phases(self) -> tuple[Phase, ...]:
        c = self.config

        def phase(name: str, epochs: int, before: int, patience: int | None) -> Phase:
            optimizer = Optimizer(lr=c.lr * c.decay**before, weight_decay=c.weight_decay)
            player = Player("all", ("encoder", "decoder"), optimizer)
            return Phase(name, (player,), self.trains_on(), epochs, c.batch_size, patience=patience, decay=c.decay)

        warmup = (phase("warmup", c.warmup, 0, None),) if c.warmup else ()
        return (*warmup, phase("anneal", c.epochs, c.warmup, c.patience))

    def trains_on(self) -> tuple[Modality, ...]:
        """Modalities that a training cell must have."""
        return ("atac",)

    def annealed(self, turn: Turn) -> float:
        """Weight of the divergences: 0 → 1 over the first half of each cycle, then 1; 1 where cells are judged."""
        if turn.player is None:
            return 1.0
        passed = float(turn.epoch) if self.config.anneals_by_epoch else turn.passed
        return min(2 * (passed % self.config.cycle) / self.config.cycle, 1.0)

    def losses(self, batch: Batch, turn: Turn) -> Terms:
        c = self.config
        seen = batch if turn.player is None else batch.with_dropout(c.input_dropout, turn.key)
        mean, log_var = self.encoder(seen.atac)
        warm = turn.phase == "warmup"
        latent = mean if warm else self.sampled(mean, log_var, batch, turn)
        terms: Terms = {"reconstruction": self.reconstruction(batch, latent, self.confounders(batch), warm=warm)}
        if not warm:
            terms |= self.divergences(mean, log_var, batch, self.annealed(turn))
        terms |= self.more(batch, mean, turn)
        return self.with_prior(terms, [(self.decoder, (1 + c.lam) * self._cells(batch))], batch, turn)

    def more(self, batch: Batch, mean: Float32[Tensor, "cells latent"], turn: Turn) -> Terms:
        """Terms of a subclass, in the warm-up too; `mean` is that of the cells' posteriors."""
        return {}

    def sampled(
        self, mean: Float32[Tensor, "cells latent"], log_var: Float32[Tensor, "cells latent"], batch: Batch, turn: Turn
    ) -> Float32[Tensor, "cells latent"]:
        """One draw from each posterior."""
        return sample_latent(mean, log_var, batch.rows, turn.key, sd_is_variance=self.config.sd_is_variance)

    def reconstruction(
        self,
        batch: Batch,
        latent: Float[Tensor, "cells latent"],
        confounders: Float[Tensor, "cells confounders"],
        *,
        warm: bool,
    ) -> Float32[Tensor, ""]:
        r"""(1 + λ) times minus the log-likelihood of the peaks, open ones weighted by ω."""
        c, hidden = self.config, self.decoder(latent, confounders)
        if c.weighs_all and not warm:
            nats = self.decoder.head.loss(hidden, batch.atac) * self.omega
        else:
            nats = self.decoder.head.loss(hidden, batch.atac, positive_weight=self.omega)
        return nats * ((1 + c.lam) * self._cells(batch) / batch.share)

    def divergences(
        self,
        mean: Float32[Tensor, "cells latent"],
        log_var: Float32[Tensor, "cells latent"],
        batch: Batch,
        weight: float,
    ) -> Terms:
        """Both divergences, that of pairs times λ, by their weight."""
        prior = gaussian_kl(mean, log_var).sum() * (weight * self._cells(batch) / batch.share)
        if not self.config.lam:
            return {"prior_kl": prior}
        pairs = mutual_information_bound(mean, log_var).sum() * (weight * self.config.lam / batch.share)
        return {"prior_kl": prior, "marginal_kl": pairs}

    def _cells(self, batch: Batch) -> float:
        """What a mean over cells is multiplied by: their number where the released code sums."""
        return float(batch.share) if self.config.summed else 1.0

    def confounders(self, batch: Batch) -> Float32[Tensor, "cells confounders"]:
        """Standardised log depth, then the batches, one-hot where there are several."""
        depth = batch.atac.totals().clamp_min(1.0).log()
        return self.conditions(depth, batch.sources if self.n_batches else None)

    def conditions(
        self, depth: Float32[Tensor, " cells"], batches: Int[Tensor, " cells"] | None
    ) -> Float32[Tensor, "cells confounders"]:
        """The same from log numbers of open peaks and batch numbers; a batch not known (-1) is taken for the best."""
        columns = [((depth - self.depth_mean) / self.depth_sd)[:, None]]
        if self.n_batches:
            given = self.best.expand(len(depth)) if batches is None else torch.where(batches < 0, self.best, batches)
            columns.append(functional.one_hot(given, self.n_batches).float())
        return torch.cat(columns, dim=1)

    def directions(self) -> tuple[tuple[Modality, Modality], ...]:
        return (("atac", "atac"),)

    def encode(self, batch: Batch, *, source: Modality, to: Modality) -> Float[Tensor, "cells latent"]:
        """Means of the posteriors."""
        return self.encoder(batch.atac)[0]

    def imputed(
        self,
        latent: Float[Tensor, "cells latent"],
        peaks: slice,
        *,
        depth: float | None = None,
        batch: str | None = None,
    ) -> Float32[Tensor, "cells peaks"]:
        """Log-odds of these peaks being open in cells of this log number of open peaks and this batch.

        Default: the mean of training cells, and the best batch. ω is undone: where open peaks counted ω times, the network's
        own log-odds are higher by its logarithm, and above 0 where these are above ``-log ω`` (`open_above`).
        """
        at = self.depth_mean if depth is None else torch.as_tensor(depth, dtype=torch.float32, device=latent.device)
        names: Sequence[str] = self.config.batch.names
        if batch is not None and batch not in names:
            raise InputError(f"no batch {batch!r}; the model knows {', '.join(map(repr, names)) or 'none'}.")
        batches = None if batch is None else torch.full((len(latent),), names.index(batch), device=latent.device)
        hidden = self.decoder(latent, self.conditions(at.expand(len(latent)), batches))
        return self.decoder.head.logits(hidden, peaks) + math.log(self.open_above / (1 - self.open_above))

    @property
    def open_above(self) -> float:
        """The probability above which the weighted likelihood calls a peak open: 1 / (1 + ω)."""
        return 0.5 if self.config.weighs_all else 1 / (1 + float(self.omega))

    def log_odds(
        self, latent: Float[Tensor, "cells latent"], *, source: Modality, peaks: slice
    ) -> Float32[Tensor, "cells peaks"]:
        return self.imputed(latent, peaks)

    def decode(
        self, latent: Float[Tensor, "cells latent"], *, source: Modality, to: Modality, features: slice
    ) -> Float32[Tensor, "cells features"]:
        """Imputation: probabilities at the mean depth and the best batch."""
        return self.probability(latent, source=source, peaks=features)


def open_peaks(feed: Feed, cells: Int64[np.ndarray, " cells"]) -> Int64[np.ndarray, " cells"]:
    """Number of the model's peaks that are open in each of these cells, which have ATAC."""
    if feed.atac_open is None:
        raise ValueError("no ATAC was read.")
    return feed.atac_open.lengths()[feed.rows["atac"][cells]]

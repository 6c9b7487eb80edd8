"""scACT: RNA and ATAC of different cells, by two autoencoders and maps between their latents there and back (Xu et al., 2024)."""

import warnings
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from torch.nn import functional

from expresser.errors import InputError
from expresser.model.keyed import splitmix64
from translate.autoencoders import Encoder, ExpressionDecoder, balanced_block
from translate.base_rate import shift_to_base_rate
from translate.batches import Batch, within
from translate.blocks import SparseDense
from translate.conditional import LEAST_SPREAD, ByChromosome, ConditionalDecoder
from translate.cyclic import Discriminators, LatentMap, apart, judged_as
from translate.feed import Feed, Inputs, peak_bounds, rna_input
from translate.heads import blockwise
from translate.invariant import open_peaks
from translate.label_free import SIDES, Side, affine, discrepancy, sent_by_genes
from translate.losses import gathered, mutual_information_bound, sample_latent
from translate.phases import Beside, Optimizer, Phase, Player, Terms, Turn
from translate.rna_layer import RnaLayer, shared_output
from translate.scact_config import PRESETS, PUBLISHED, ScactConfig
from translate.study import DataWarning, Modality
from translate.system import System

EVERY = 5  # steps of the maps, of which one is followed by one of the discriminators
CELLS = 512  # encoded at once
LABELLED = (
    "Name a column of obs that cells of both modalities have (--labels COLUMN, config.label), bring labels from RNA to ATAC with "
    "expresser translate label, or fit without any: --preset label_free."
)


class Scact(System):
    r"""Two autoencoders that are frozen, and maps f and g between their latents that undo each other.

    .. math:: L = \gamma \left( |z_R - g f z_R| + |z_A - f g z_A| \right) + \lambda_3 \sum_k -\log D_k
        + \lambda_2 \left( MSE(x_R, g f z_R) + BCE(x_A, f g z_A) \right) + \alpha \left( |f z_R - t_R|^2 + |g z_A - t_A|^2 \right)

    Absolute differences are means over the latent; :math:`D_k` is the probability, by the discriminator of a cell's own label, that
    its translated latent is measured. t: where `translate.label_free.Coupling` sends a cell. No two measurements are ever taken to
    be of one cell: RNA cells of a step and ATAC cells beside them are drawn by themselves.

    Relations: `Babel` where cells are paired; Polarbear where some are.
    """

    needs: ClassVar[tuple[Modality, ...]] = ("rna", "atac")
    reads = ("rna", "atac")
    config_class = ScactConfig
    presets: ClassVar[dict[str, Any]] = PRESETS
    published = PUBLISHED

    depth_mean: Tensor
    depth_sd: Tensor
    noise: Tensor
    shared: Tensor

    def __init__(self, config: ScactConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.config: ScactConfig
        c, bounds, rna = config, peak_bounds(inputs), rna_input(inputs)
        d, gaussian, n = c.latent, c.confounder > 0, len(bounds) - 1
        self.n_batches = c.batch.size if c.batch.size > 1 else 0
        narrow = tuple(reversed(c.rna_hidden))
        dense = SparseDense(RnaLayer(rna, c.rna_hidden[0], c.bridge), *c.rna_hidden[1:])
        self.rna_encoder = Encoder(dense, c.rna_hidden[1], d, gaussian=gaussian, normalised=False)
        self.rna_decoder = ExpressionDecoder(
            d, self.n_batches, narrow, len(rna.var), output=shared_output(rna, narrow[-1], c.bridge)
        )
        by_chromosome = ByChromosome(bounds, c.atac_hidden, scaled=c.scaled)
        self.atac_encoder = Encoder(by_chromosome, c.atac_hidden[1] * n, d, gaussian=gaussian, normalised=True)
        self.atac_decoder = ConditionalDecoder(
            bounds, c.atac_hidden, d, 1 + self.n_batches, network="chromosome", direct=c.direct
        )
        self.to_atac, self.to_rna = (LatentMap(d, c.experts, residual=c.residual) for _ in range(2))
        labels = max(len(c.label.names), 1)
        if c.matching == "labels":
            self.rna_judges, self.atac_judges = (
                Discriminators(d, labels, dropout=c.discriminator_dropout) for _ in range(2)
            )
        self.register_buffer("depth_mean", torch.zeros(()))
        self.register_buffer("depth_sd", torch.ones(()))
        self.register_buffer("noise", torch.ones(()))  # mean variance of genes' logged expression
        self.register_buffer("shared", torch.zeros(labels, dtype=torch.bool))  # labels of both modalities
        for side in SIDES:
            shares = torch.full((max(self.n_batches, 1),), 1 / max(self.n_batches, 1))
            self.register_buffer(f"batch_share_{side}", shares)  # of training cells that have the modality
            self.register_buffer(f"centre_{side}", torch.zeros(d))
            self.register_buffer(f"spread_{side}", torch.ones(d))
        self.joint_epochs = c.joint_epochs
        self.n_of: dict[Side, int] = dict.fromkeys(SIDES, 1)  # training cells
        self.at: dict[Side, Tensor] = {}  # latents of all cells, from when the joint phase begins
        self.sent: dict[Side, Tensor] = {}  # where they are drawn in the other latent

    # ---- what training cells decide ----------------------------------------------------------------------------------

    def prepare(self, feed: Feed, cells: Int64[np.ndarray, " train"]) -> None:
        """Depths, labels that both modalities have, shares of batches, and where the output layers start."""
        super().prepare(feed, cells)
        c = self.config
        rna, atac = (cells[feed.has(side)[cells]] for side in SIDES)
        self.n_of = {"rna": max(len(rna), 1), "atac": max(len(atac), 1)}
        if len(rna) and c.joint_steps is not None:
            per_epoch = max(round(len(rna) / c.batch_size), 1)
            self.joint_epochs = min(c.joint_epochs, max(-(-c.joint_steps // per_epoch), 1)) if c.joint_steps else 0
        if c.matching == "labels":
            self.shared.copy_(torch.from_numpy(self._shared_labels(feed, rna, atac)))
        if self.n_batches and feed.batch_codes is not None:
            for side, some in zip(SIDES, (rna, atac)):
                counts = np.bincount(feed.batch_codes[some], minlength=self.n_batches)
                self.get_buffer(f"batch_share_{side}").copy_(torch.from_numpy(counts / max(counts.sum(), 1)))
        if len(atac):
            depth = open_peaks(feed, atac).astype(np.float64)
            depth = depth if c.raw_depth else np.log(np.maximum(depth, 1))
            self.depth_mean.fill_(depth.mean())
            if not c.raw_depth:
                self.depth_sd.fill_(max(depth.std(), LEAST_SPREAD))
                self.atac_decoder.start_at_depth(float(self.depth_sd) if c.base_rates else 0.0)
        if len(rna):
            mean, variance = _moments(feed, rna)
            self.noise.fill_(float(variance.mean()))
            if c.base_rates:
                self.rna_decoder.head.start_at(torch.from_numpy(mean))

    def _shared_labels(self, feed: Feed, rna: np.ndarray, atac: np.ndarray) -> np.ndarray:
        """Which labels training cells of both modalities have; InputError where there is none, a warning where some are of one."""
        label = self.config.label
        if label.key is None or feed.label_codes is None:
            raise InputError(
                f"scact: the discriminators need cell types of RNA and of ATAC cells, and none are given. {LABELLED}"
            )
        n = len(label.names)
        counts = [
            np.bincount(codes[codes >= 0], minlength=n) for codes in (feed.label_codes[rna], feed.label_codes[atac])
        ]
        for side, some, count in zip(("RNA", "ATAC"), (rna, atac), counts):
            if len(some) and not count.any():
                raise InputError(
                    f"scact: none of {len(some):,} training cells with {side} has a {label.key!r}. {LABELLED}"
                )
        there = np.all(counts, axis=0) if n else np.zeros(1, bool)
        names = [[label.names[i] for i in np.flatnonzero(count)] for count in counts]
        if not there.any():
            raise InputError(
                f"scact: RNA and ATAC cells share no {label.key!r}: RNA has {_listed(names[0])}; ATAC has {_listed(names[1])}. Give "
                f"the same type the same name in both. {LABELLED}"
            )
        for side, other, found in zip(("RNA", "ATAC"), ("ATAC", "RNA"), names):
            if alone := [name for name in found if not there[label.names.index(name)]]:
                warnings.warn(
                    f"scact: {_listed(alone)} ({label.key!r}) are types of {side} cells alone: no discriminator is asked about them, "
                    f"and where they lie in {other} is not known.",
                    DataWarning,
                    stacklevel=4,
                )
        return there

    def phases(self) -> tuple[Phase, ...]:
        c = self.config
        optimizer = Optimizer(lr=c.lr, weight_decay=c.weight_decay)

        def alone(side: Side) -> Phase:
            player = Player("all", (f"{side}_encoder", f"{side}_decoder"), optimizer)
            return Phase(side, (player,), (side,), c.epochs, c.batch_size, patience=c.patience)

        players = [Player("maps", ("to_atac", "to_rna"), Optimizer(lr=c.joint_lr))]
        if c.matching == "labels" and c.adversarial:
            adam = Optimizer(lr=c.joint_lr, betas=(0.5, 0.999))
            players.append(Player("discriminators", ("rna_judges", "atac_judges"), adam, every=EVERY))
        # Latents are worked out before; cells themselves are read only where they are to be decoded again.
        reads = bool(c.feature_cycle)
        beside = Beside(("atac",) if reads else (), among=() if reads else ("atac",))
        joint = Phase(
            "joint",
            tuple(players),
            ("rna",) if reads else (),
            self.joint_epochs,
            c.batch_size,
            average=c.average,
            among=() if reads else ("rna",),
            beside=(beside,),
        )
        return (alone("rna"), alone("atac"), joint) if self.joint_epochs else (alone("rna"), alone("atac"))

    def begin(self, phase: Phase, feed: Feed, train: Int64[np.ndarray, " train"], *, fresh: bool) -> None:
        """Before the maps: latents of all cells, once; how they are standardised; where cells are drawn; the maps' start."""
        if phase.name != "joint":
            return
        c = self.config
        self.at = {side: self._latents(feed, side) for side in SIDES}
        for side in SIDES:
            if fresh and c.residual:
                own = self.at[side][torch.from_numpy(train[feed.has(side)[train]]).to(self.at[side].device)]
                self.get_buffer(f"centre_{side}").copy_(own.mean(dim=0))
                self.get_buffer(f"spread_{side}").copy_(own.std(dim=0).clamp_min(1e-6))
            self.at[side] = self.standardised(self.at[side], side)
        self.sent = {}
        if not (c.anchor or c.residual):
            return
        self._send(feed, train)
        if fresh and c.residual:
            self._start(feed, train)

    def _latents(self, feed: Feed, side: Side) -> Float32[Tensor, "cells latent"]:
        """Of all cells of the feed; 0 where they lack the modality."""
        device = self.get_buffer(f"centre_{side}").device
        found = torch.zeros(feed.n_cells, self.config.latent, device=device)
        cells = np.flatnonzero(feed.has(side)).astype(np.int64)
        cuts = [cells[start : start + CELLS] for start in range(0, len(cells), CELLS)]
        for batch in feed.batches(cuts, (side,), shares=[len(cut) for cut in cuts]):
            found[torch.from_numpy(batch.rows).to(device)] = self._encoded(batch.to(device), side)[0]
        return found

    def _send(self, feed: Feed, train: Int64[np.ndarray, " train"]) -> None:
        """Where the activity of genes sends each cell; nowhere, with a warning, where places of genes are not known."""
        c = self.config
        if not c.anchor:
            return
        labels = feed.label_codes if c.matching == "labels" else None
        codes = np.full(feed.n_cells, -1, np.int64) if labels is None else labels
        latents = {side: self.at[side].cpu().numpy().astype(np.float64) for side in SIDES}
        sent = sent_by_genes(feed, train, latents, codes)
        if sent is None:
            said = (
                "scact: no peak lies near a gene of known place, so that gene activity cannot tell where cells lie. Give places of "
                "genes of the peaks' genome build (--genes)"
            )
            if c.matching == "ot":
                raise InputError(f"{said}, or labels of cells (--labels, --preset default).")
            warnings.warn(f"{said}; fitted without.", DataWarning, stacklevel=2)
            return
        self.sent = {side: torch.from_numpy(sent[side]).float().to(self.at[side].device) for side in SIDES}

    def _start(self, feed: Feed, train: Int64[np.ndarray, " train"]) -> None:
        """Both maps at the affine map that fits best: to where cells are sent, else between means of labels, else none."""
        own = {side: train[feed.has(side)[train]] for side in SIDES}
        for side, to in zip(SIDES, reversed(SIDES)):
            if self.sent:
                some = torch.from_numpy(own[side])
                if self.config.matching == "labels" and feed.label_codes is not None:
                    some = some[self._placed(torch.from_numpy(feed.label_codes[own[side]]))]
                x, y = (t[side][some].cpu().numpy() for t in (self.at, self.sent))
            elif self.config.matching == "labels" and feed.label_codes is not None:
                means = {s: self._means(feed.label_codes, own[s], s) for s in SIDES}
                weight = np.bincount(feed.label_codes[own[side]] + 1, minlength=len(self.shared) + 1)[1:]
                times = np.repeat(np.flatnonzero(self.shared.cpu().numpy()), weight[self.shared.cpu().numpy()])
                x, y = means[side][times], means[to][times]
            else:
                continue
            weight, shift = affine(x.astype(np.float64), y.astype(np.float64))
            part: Any = self.get_submodule(f"to_{to}")
            part.start_at(torch.from_numpy(weight).float(), torch.from_numpy(shift).float())

    def _placed(self, codes: Int64[Tensor, " cells"]) -> Bool[Tensor, " cells"]:
        """Which cells, by their labels, can lie somewhere in the other latent: not those of a type that it lacks."""
        shared = self.shared.to(codes.device)
        return (codes < 0) | shared[codes.clamp_min(0)]

    def _means(self, codes: np.ndarray, cells: np.ndarray, side: Side) -> Float[np.ndarray, "labels latent"]:
        """Mean latent of each label's cells; 0 for labels that none has."""
        found = np.zeros((len(self.shared), self.config.latent))
        own = self.at[side].cpu().numpy()
        for label in np.unique(codes[cells][codes[cells] >= 0]):
            found[label] = own[cells[codes[cells] == label]].mean(axis=0)
        return found

    # ---- losses ------------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch, turn: Turn) -> Terms:
        if turn.phase != "joint":
            side: Side = "rna" if turn.phase == "rna" else "atac"
            return self._of_one(batch, turn, side)
        (beside,) = batch.beside
        cells: dict[Side, Batch] = {"rna": batch, "atac": beside}
        own: dict[Side, Tensor] = {
            side: self.at[side][torch.from_numpy(cells[side].rows).to(self.at[side].device)] for side in SIDES
        }
        crossed: dict[Side, Tensor] = {
            "atac": self.to_atac(own["rna"]),
            "rna": self.to_rna(own["atac"]),
        }  # by where they are
        if turn.player == "discriminators":
            return self._told_apart(cells, own, crossed, turn)
        return self._mapped(cells, own, crossed, turn)

    def _of_one(self, batch: Batch, turn: Turn, side: Side) -> Terms:
        """Reconstruction of one modality, a mean over cells and features."""
        c = self.config
        seen = batch if turn.player is None else batch.with_dropout(c.input_dropout, turn.key)
        latent, log_var = self._encoded(seen, side)
        n = self._target(batch, side).n_features
        terms: Terms = {}
        if log_var is not None:
            bound = mutual_information_bound(latent, log_var).sum() * (c.confounder / (n * batch.share))
            terms["information"] = bound
            latent = sample_latent(latent, log_var, batch.rows, turn.key)
        terms["reconstruction"] = self._reconstruction(batch, latent, side, turn)
        head: Any = self.rna_decoder.head if side == "rna" else self.atac_decoder
        # Squared differences are 2 σ² times what a Gaussian of variance σ² costs.
        self.n_train = self.n_of[side]
        weight = 2 * float(self.noise) / n if side == "rna" else 1 / n
        return self.with_prior(terms, [(head, weight)], batch, turn)

    def _reconstruction(self, batch: Batch, latent: Tensor, side: Side, turn: Turn) -> Float32[Tensor, ""]:
        """Loss of cells decoded from raw latents."""
        target = self._target(batch, side)
        if side == "rna":
            hidden = self.rna_decoder(latent, self._batches(batch, len(latent), "rna"))
            return self.rna_decoder.head.loss(hidden, target) / (batch.share * target.n_features)
        head, hidden = self.atac_decoder.head, self.atac_decoder(latent, self._confounders(batch))
        if not self.config.masked:
            return head.loss(hidden, target) / (batch.share * target.n_features)
        # Both are numbers of the whole step, so that what is drawn does not depend on how many processes share it.
        counts = torch.tensor([[len(target.indices), target.n_cells * target.n_features]], device=latent.device)
        opened, entries = gathered(counts).sum(dim=0).tolist()
        keys = splitmix64(torch.from_numpy(batch.rows).to(latent.device) + turn.key)
        loss = partial(balanced_block, keys=keys, share=opened / max(entries - opened, 1))
        parents = within(target.bounds, head.bounds)
        total = blockwise(loss, target, hidden, head.weight, head.bias, parents=parents)
        return total / max(2 * opened, 1)

    def _mapped(
        self, cells: dict[Side, Batch], own: dict[Side, Tensor], crossed: dict[Side, Tensor], turn: Turn
    ) -> Terms:
        """What the maps minimise."""
        c, share = self.config, cells["rna"].share
        back: dict[Side, Tensor] = {"rna": self.to_rna(crossed["atac"]), "atac": self.to_atac(crossed["rna"])}
        terms: Terms = {}
        for side, to in zip(SIDES, reversed(SIDES)):
            terms[f"cycle_{side}"] = apart(back[side], own[side], squared=c.cycle_squared).sum() * (c.cycle / share)
            if c.feature_cycle:
                raw = self.raw(back[side], side)
                terms[f"feature_cycle_{side}"] = self._reconstruction(cells[side], raw, side, turn) * c.feature_cycle
            if side in self.sent:
                there = self.sent[side][torch.from_numpy(cells[side].rows).to(own[side].device)]
                far = apart(crossed[to], there, squared=True)
                if c.matching == "labels":
                    far = torch.where(self._placed(cells[side].labels), far, 0.0)
                terms[f"anchor_{side}"] = far.sum() * (c.anchor / share)
        if c.matching == "mmd":
            for side in SIDES:
                parts = discrepancy(crossed[side], own[side])
                terms[f"mmd_{side}"] = torch.stack([part.sum() for part in parts]).sum() * (c.mmd / share)
        if c.matching == "labels" and c.adversarial:
            for side, to in zip(SIDES, reversed(SIDES)):
                label = cells[side].labels
                fooled = self._judged(crossed[to], label, to, real=True) + self._judged(
                    back[side], label, side, real=True
                )
                terms[f"adversarial_{side}"] = fooled.sum() * (c.adversarial / share)
        return terms

    def _told_apart(
        self, cells: dict[Side, Batch], own: dict[Side, Tensor], crossed: dict[Side, Tensor], turn: Turn
    ) -> Terms:
        """What the discriminators minimise: measured latents are real, translated ones are not, under their own cells' labels."""
        terms: Terms = {}
        for side, other in zip(SIDES, reversed(SIDES)):
            given = side if self.config.foreign_labels else other
            real = self._judged(own[side], cells[side].labels, side, real=True, cells=cells[side], turn=turn)
            fake = self._judged(crossed[side], cells[given].labels, side, real=False, cells=cells[other], turn=turn)
            terms[f"real_{side}"] = real.sum() / cells[side].share
            terms[f"translated_{side}"] = fake.sum() / cells[side].share
        return terms

    def _judged(
        self,
        latent: Tensor,
        label: Tensor,
        side: Side,
        *,
        real: bool,
        cells: Batch | None = None,
        turn: Turn | None = None,
    ) -> Float32[Tensor, " cells"]:
        """Of latents of a side being called real or not; cells and turn: of the dropout, where the discriminators learn."""
        keys = torch.zeros(len(latent), dtype=torch.int64, device=latent.device)
        if cells is not None and turn is not None:
            keys = splitmix64(torch.from_numpy(cells.rows).to(latent.device) + turn.key) + real
        judges: Any = self.get_submodule(f"{side}_judges")
        return judged_as(judges(latent, keys), label, self.shared, real=real)

    # ---- encoders and decoders ---------------------------------------------------------------------------------------

    def _encoded(self, batch: Batch, side: Side) -> tuple[Tensor, Tensor | None]:
        """Raw mean and log variance."""
        return self.rna_encoder(batch.rna) if side == "rna" else self.atac_encoder(batch.atac)

    def _target(self, batch: Batch, side: Side) -> Any:
        return batch.rna.targets if side == "rna" else batch.atac

    def standardised(self, raw: Float[Tensor, "cells latent"], side: Side) -> Float32[Tensor, "cells latent"]:
        """What an encoder gives as maps and embeddings have it."""
        return (raw.float() - self.get_buffer(f"centre_{side}")) / self.get_buffer(f"spread_{side}")

    def raw(self, latent: Float[Tensor, "cells latent"], side: Side) -> Float32[Tensor, "cells latent"]:
        """The same as a decoder takes it."""
        return latent.float() * self.get_buffer(f"spread_{side}") + self.get_buffer(f"centre_{side}")

    def _batches(self, batch: Batch | None, n: int, side: Side) -> Float32[Tensor, "cells batches"]:
        """The batch of each cell, one-hot, as a decoder is told it.

        That of no cell, one not known, and one without training cells of the modality is the mix of those that have it.
        """
        share = self.get_buffer(f"batch_share_{side}")
        if not self.n_batches:
            return torch.zeros(n, 0, device=share.device)
        mix = share.expand(n, -1)
        if batch is None:
            return mix
        codes = batch.sources.clamp_min(0)
        learnt = (batch.sources >= 0) & (share[codes] > 0)
        return torch.where(learnt[:, None], functional.one_hot(codes, self.n_batches).float(), mix)

    def _confounders(self, batch: Batch) -> Float32[Tensor, "cells confounders"]:
        """Depth, then the batches, of measured cells."""
        depth = batch.atac.totals()
        depth = depth if self.config.raw_depth else (depth.clamp_min(1.0).log() - self.depth_mean) / self.depth_sd
        return torch.cat([depth[:, None], self._batches(batch, len(batch), "atac")], dim=1)

    def directions(self) -> tuple[tuple[Modality, Modality], ...]:
        return (("rna", "rna"), ("rna", "atac"), ("atac", "rna"), ("atac", "atac"))

    def spaces(self) -> tuple[Modality, ...]:
        return SIDES

    def encode(self, batch: Batch, *, source: Modality, to: Modality) -> Float[Tensor, "cells latent"]:
        side: Side = "rna" if source == "rna" else "atac"
        latent = self.standardised(self._encoded(batch, side)[0], side)
        if source == to:
            return latent
        return self.to_atac(latent) if to == "atac" else self.to_rna(latent)

    def log_odds(
        self, latent: Float[Tensor, "cells latent"], *, source: Modality, peaks: slice
    ) -> Float32[Tensor, "cells peaks"]:
        """At the mean depth of training cells and their mix of batches."""
        n = len(latent)
        depth = self.depth_mean if self.config.raw_depth else torch.zeros_like(self.depth_mean)
        told = torch.cat([depth.expand(n, 1), self._batches(None, n, "atac")], dim=1)
        return self.atac_decoder.head.logits(self.atac_decoder(self.raw(latent, "atac"), told), peaks)

    def decode(
        self, latent: Float[Tensor, "cells latent"], *, source: Modality, to: Modality, features: slice
    ) -> Float32[Tensor, "cells features"]:
        if to == "atac":
            return self.probability(latent, source=source, peaks=features)
        hidden = self.rna_decoder(self.raw(latent, "rna"), self._batches(None, len(latent), "rna"))
        return self.rna_decoder.head.predict(hidden, features)

    def finish(self, feed: Feed, train: Int64[np.ndarray, " train"]) -> None:
        """Translated peaks are as often open as measured ones: without pairs there is no more to fit probabilities to.

        The slope is that of ATAC's own reconstruction; the shift makes the mean probability that of the training cells.
        """
        if not self.config.calibrated:
            return
        slope = float(self.get_buffer("calibration_atac")[0])
        shift = shift_to_base_rate(self, feed, train, slope)
        if shift is not None:
            self.get_buffer("calibration_rna").copy_(torch.tensor([slope, shift]))


def _moments(feed: Feed, cells: Int64[np.ndarray, " cells"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each gene's logged expression over these cells, which have RNA."""
    if feed.rna_counts is None:
        raise ValueError("no RNA was read.")
    found, rows = rna_input(feed.inputs), feed.rows["rna"][cells]
    sums = np.zeros((2, feed.rna_counts.shape[1]))
    for start in range(0, len(rows), 4096):
        logged = found.targets(feed.rna_counts[rows[start : start + 4096]]).log1p()
        sums += np.stack([np.asarray(of.sum(axis=0)).ravel() for of in (logged, logged.multiply(logged))])
    mean, square = sums / len(rows)
    return mean.astype(np.float32), np.maximum(square - mean**2, 0)


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

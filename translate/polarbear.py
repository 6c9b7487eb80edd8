"""Polarbear: two variational autoencoders that also learn from cells of one assay, and maps between their latents that learn from
the cells of both (Zhang et al., J. Comput. Biol. 2022)."""

import math
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Int64
from sklearn.linear_model import RidgeCV
from torch import Tensor
from torch.nn import functional

from expresser.errors import InputError
from translate.batches import Batch
from translate.beta_vae import (
    AtacDecoder,
    AtacEncoder,
    Dropout,
    LatentMap,
    RnaDecoder,
    RnaEncoder,
    width,
)
from translate.feed import Feed, Inputs, peak_bounds, rna_input
from translate.heads import RATE_RANGE, depth_block, log_expm1, product_block, product_probability
from translate.losses import gaussian_kl, sample_latent
from translate.phases import Optimizer, Phase, Player, Terms, Turn
from translate.polarbear_config import PRESETS, PUBLISHED, PolarbearConfig
from translate.rna_layer import RnaLayer, shared_output
from translate.study import Modality
from translate.system import System

PENALTIES = tuple(10.0**k for k in range(-2, 6))
RELEASED_DEPTH = 1000.0  # open peaks at which the released link is the sigmoid itself
CELLS = 512  # encoded at once
FEWEST = 32  # cells of a step, unless fewer are asked for
SIDES: tuple[Modality, Modality] = ("rna", "atac")
REFERENCE = -2  # of a cell's batch: in each modality the largest; -1 is not known
MAPS: dict[str, tuple[Modality, Modality]] = {"atac_to_rna": ("atac", "rna"), "rna_to_atac": ("rna", "atac")}


class Polarbear(System):
    r"""An autoencoder of RNA and one of ATAC, each over all cells that have it; then, with both frozen, a map each way.

    .. math:: L_m = -E_{q(z_m|x_m, b)} \log p(x_m | z_m, b, d_m) + \beta \, KL(q(z_m|x_m, b) \,\|\, N(0, 1)), \qquad
              L_{m \to n} = -\log p(x_n | t_{mn}(z_m), b, d_n)

    nats a cell. RNA: zero-inflated negative binomial counts, a share of each gene times the library, dispersion by gene and batch.
    ATAC: Bernoulli, by a rate times the number of open peaks. Latents of queries are means. A latent is in the space of
    the modality that it is decoded to.

    A batch of which no cell of a modality trained an autoencoder has no weights there: its cells are read from, and decoded to,
    that modality as those of the largest batch that did.

    Relations: `Babel` learns from paired cells alone, and one latent for both; with enough pairs it is the lighter one.
    """

    config_class = PolarbearConfig
    presets: ClassVar[dict[str, Any]] = PRESETS
    reads = ("rna", "atac")
    needs: ClassVar[tuple[Modality, ...]] = ("rna", "atac")
    judges_counts = True
    tells_depth = True
    published = PUBLISHED
    depth: Tensor
    unknown: Tensor
    batch_cells: Tensor
    reference_batch: Tensor
    depth_weight: Tensor
    depth_bias: Tensor
    depth_range: Tensor

    def __init__(self, config: PolarbearConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.config: PolarbearConfig
        c, bounds, rna = config, peak_bounds(inputs), rna_input(inputs)
        b = self.n_batches = c.batch.size if c.batch.size > 1 else 0
        genes = len(rna.var)
        h = c.rna_hidden or width(genes, b, c.latent)
        widths = [c.atac_hidden or width(n, b, c.latent) for n in np.diff(bounds).tolist()]
        self.raw_inputs = c.counts_in
        self.atac_encoder = AtacEncoder(bounds, b, widths, c.layers, c.latent, scaled=c.scaled)
        self.atac_decoder = AtacDecoder(bounds, b, widths, c.layers, c.latent)
        first = RnaLayer(rna, h, c.bridge, standardised=not c.counts_in)
        self.rna_encoder = RnaEncoder(first, b, c.layers, c.latent)
        self.rna_decoder = RnaDecoder(genes, b, h, c.layers, c.latent, scale=shared_output(rna, h, c.bridge))
        self.atac_to_rna, self.rna_to_atac = LatentMap(c.latent, c.map), LatentMap(c.latent, c.map)
        if c.relearns_dispersion:
            self.other_dispersion = torch.nn.ParameterList([torch.zeros(max(b, 1), genes)])
        self.register_buffer("depth", torch.ones(()))  # open peaks of a median training cell
        # Training cells of each batch in each autoencoder, RNA first; and the batch that has most.
        self.register_buffer("batch_cells", torch.ones(2, max(b, 1), dtype=torch.int64))
        self.register_buffer("reference_batch", torch.zeros(2, dtype=torch.int64))
        # Log depth of a cell from its RNA: latent mean, log library, batch.
        self.register_buffer("depth_weight", torch.zeros(c.latent + 1 + b))
        self.register_buffer("depth_bias", torch.zeros(()))
        self.register_buffer("depth_range", torch.zeros(2))
        self.cells_of: dict[str, int] = {}  # training cells of each autoencoder
        self._known: dict[
            str, tuple[Tensor, Tensor]
        ] = {}  # latent means and log variances of paired cells, by modality
        self._place = torch.zeros(0, dtype=torch.int64)  # of each cell of the study among these

    # ---- training ------------------------------------------------------------------------------------------------

    def prepare(self, feed: Feed, cells: Int64[np.ndarray, " train"]) -> None:
        super().prepare(feed, cells)
        c, codes = self.config, feed.batch_codes
        if codes is not None and (codes < 0).any() and self._batch_number(c.unknown_batch) is None:
            raise InputError(
                f"batch: {int((codes < 0).sum()):,} of {len(codes):,} cells of the study, none of which trains, are of batches that "
                f"no training cell has; there are {', '.join(map(repr, c.batch.names))}. Say which they are to be taken for "
                "(--config.unknown-batch NAME, or reference: the largest), or leave --batch out."
            )
        self.depth.fill_(feed.median_open(cells))
        both = feed.has("rna")[cells] & feed.has("atac")[cells]
        for number, modality in enumerate(SIDES):
            own = both if c.coassay_only else feed.has(modality)[cells]
            self.cells_of[modality] = int(own.sum())
            if codes is not None and self.n_batches:
                counts = np.bincount(codes[cells[own]], minlength=self.n_batches)
                self.batch_cells[number] = torch.from_numpy(counts)
                self.reference_batch[number] = int(counts.argmax())
        if c.base_rates:
            self.rna_decoder.head.start_at(torch.from_numpy(feed.mean_expression(cells)))
            if c.link == "product":
                share = torch.from_numpy(feed.open_share(cells)) * (RELEASED_DEPTH / self.depth)
                self.atac_decoder.head.bias.data.copy_(share.clamp(1e-4, 0.99).logit())

    def phases(self) -> tuple[Phase, ...]:
        c = self.config

        def vae(name: Modality, other: Modality, lr: float, eps: float) -> Phase:
            parts = (f"{name}_encoder", f"{name}_decoder")
            player = Player("all", parts, Optimizer(lr=lr, eps=eps), clip_norm=c.clip_norm)
            among = (other,) if c.coassay_only else ()
            size = min(c.batch_size, max(self.cells_of[name] // c.fewest_steps, FEWEST))
            return Phase(name, (player,), (name,), c.epochs, size, monitor=c.monitor, patience=c.patience, among=among)

        def translator(name: str) -> Phase:
            source, to = MAPS[name]
            parts = (name, "other_dispersion") if c.relearns_dispersion and to == "rna" else (name,)
            player = Player("all", parts, Optimizer(lr=c.map_lr))
            # The source is not read: its latents are known.
            return Phase(
                name, (player,), (to,), c.map_epochs, c.map_batch_size, patience=c.map_patience, among=(source,)
            )

        return (
            vae("atac", "rna", c.atac_lr, c.atac_eps),
            vae("rna", "atac", c.rna_lr, c.rna_eps),
            translator("atac_to_rna"),
            translator("rna_to_atac"),
        )

    def begin(self, phase: Phase, feed: Feed, train: Int64[np.ndarray, " train"], *, fresh: bool) -> None:
        """Of a map: latents of paired cells, worked out once; where it is new, the regressions that it starts from."""
        if phase.name not in MAPS:
            self._known = {}
            return
        source, to = MAPS[phase.name]
        paired = np.flatnonzero(feed.has("rna") & feed.has("atac"))
        self._place = torch.full((feed.n_cells,), -1)
        self._place[torch.from_numpy(paired)] = torch.arange(len(paired))
        for modality in (source, to) if fresh else (source,):
            if modality not in self._known:
                self._known[modality] = self._posteriors(feed, paired, modality)
        if not fresh:
            return
        taught = train[feed.has("rna")[train] & feed.has("atac")[train]]
        at = self._place[torch.from_numpy(taught)]
        x, y = (self._known[m][0].cpu()[at].double().numpy() for m in (source, to))
        if self.config.closed_form:
            self.get_submodule(phase.name).start_at(*ridge(x, y))  # type: ignore[operator]
        if to == "atac":
            self._learn_depth(feed, taught, x)

    def _posteriors(self, feed: Feed, cells: Int64[np.ndarray, " cells"], modality: Modality) -> tuple[Tensor, Tensor]:
        device, parts = self.depth.device, []
        cuts = [cells[a : a + CELLS] for a in range(0, len(cells), CELLS)]
        for batch in feed.batches(cuts, (modality,), shares=[CELLS] * len(cuts)):
            parts.append(self._posterior(batch.to(device), modality, None))
        return torch.cat([mean for mean, _ in parts]), torch.cat([log_var for _, log_var in parts])

    def _learn_depth(
        self, feed: Feed, cells: Int64[np.ndarray, " taught"], latent: Float[np.ndarray, "taught latent"]
    ) -> None:
        """Regress log numbers of open peaks on RNA; penalties are judged by leaving out one cell at a time."""
        parts, depths = [], []
        for a in range(0, len(cells), CELLS):
            some = cells[a : a + CELLS]
            batch = feed.batch(some, ("rna", "atac"), share=len(some)).to(self.depth.device)
            means = torch.from_numpy(latent[a : a + CELLS]).float().to(self.depth.device)
            parts.append(self._depth_features(batch, means).cpu().double().numpy())
            depths.append(batch.atac.totals().clamp_min(1.0).log().cpu().double().numpy())
        x, y = np.concatenate(parts), np.concatenate(depths)
        weight, bias = ridge(x, y[:, None])
        self.depth_weight.copy_(torch.from_numpy(weight[0]))
        self.depth_bias.fill_(float(bias[0]))
        self.depth_range.copy_(torch.tensor([y.min(), y.max()]))

    def _depth_features(
        self, batch: Batch, latent: Float32[Tensor, "cells latent"]
    ) -> Float32[Tensor, "cells features"]:
        library = batch.rna.library.clamp_min(1.0).log()[:, None]
        return torch.cat([latent, library, self._one_hot(self._codes(batch, "atac"))], dim=1)

    def losses(self, batch: Batch, turn: Turn) -> Terms:
        c = self.config
        rows = torch.from_numpy(batch.rows.astype(np.int64)).to(self.depth.device)
        if turn.phase in MAPS:
            source, to = MAPS[turn.phase]
            mean, log_var = (known[self._place[batch.rows].to(known.device)] for known in self._known[source])
            if c.sampled_maps and turn.player is not None:
                mean = sample_latent(mean, log_var, batch.rows, turn.key)
            latent = self.get_submodule(turn.phase)(mean)
            table = self.other_dispersion[0] if c.relearns_dispersion and to == "rna" else None
            return {"translation": self._cost(batch, latent, to, None, dispersion=table) / batch.share}
        modality: Modality = "rna" if turn.phase == "rna" else "atac"
        lost = Dropout(c.dropout, rows, turn.key) if turn.player is not None else None
        seen = batch.with_dropout(c.input_dropout, turn.key) if turn.player is not None else batch
        mean, log_var = self._posterior(seen, modality, lost)
        latent = sample_latent(mean, log_var, batch.rows, turn.key)
        epochs = c.rna_ramp if modality == "rna" else c.atac_ramp
        ramp = 1.0 if turn.player is None or not epochs else min(turn.passed / epochs, 1.0)
        terms: Terms = {
            "reconstruction": self._cost(batch, latent, modality, lost) / batch.share,
            "kl": gaussian_kl(mean, log_var).sum() / batch.share * (c.beta * ramp),
        }
        head = (self.rna_decoder if modality == "rna" else self.atac_decoder).head
        # The prior counts once for the cells that this autoencoder learns from, not for all.
        return self.with_prior(terms, [(head, self.n_train / max(self.cells_of[modality], 1))], batch, turn)

    def _cost(
        self,
        batch: Batch,
        latent: Float[Tensor, "cells latent"],
        to: Modality,
        lost: Dropout | None,
        *,
        dispersion: Float[Tensor, "batches genes"] | None = None,
    ) -> Float32[Tensor, ""]:
        """Minus the log-likelihood, summed over cells and features."""
        codes = self._codes(batch, to)
        if to == "rna":
            hidden = self.rna_decoder(latent, self._one_hot(codes), lost)
            targets, library = batch.rna.targets, batch.rna.library
            return self.rna_decoder.head.loss(hidden, targets, library=library, codes=codes, dispersion=dispersion)
        depth = batch.atac.totals()
        if self.config.link == "product":
            judged: Any = partial(product_block, depth=depth / RELEASED_DEPTH)
        else:
            judged = partial(depth_block, log_depth=(depth.clamp_min(1.0) / self.depth).log())
        hidden = self.atac_decoder(latent, self._one_hot(codes), lost)
        return self.atac_decoder.head.loss(hidden, batch.atac, block_loss=judged)

    # ---- cells of a query ----------------------------------------------------------------------------------------

    def batch_codes(self, obs: pd.DataFrame, unknown: str | None = None) -> Int64[np.ndarray, " cells"] | None:
        column = self.config.batch
        if column.key is None:
            if unknown is not None:
                raise InputError("this model was fitted without batches: leave --batch (unknown_batch) out.")
            return column.codes(obs)
        return column.asked(obs, unknown=self._batch_number(unknown or self.config.unknown_batch), where="batch")

    def _batch_number(self, name: str | None) -> int | None:
        """Of a batch, or `REFERENCE`; InputError for a name that training did not have."""
        names = self.config.batch.names
        if name is None:
            return None
        if name == "reference":
            return REFERENCE
        if name not in names:
            raise InputError(
                f"--batch (in a fit --config.unknown-batch): no training cell is of batch {name!r}; there are "
                f"{', '.join(map(repr, names))}, and 'reference' for the largest."
            )
        return names.index(name)

    def _codes(self, batch: Batch, side: Modality) -> Int64[Tensor, " cells"]:
        """Number of each cell's batch in one modality, those not known taken for the one that the configuration names.

        A batch of which no cell trained this modality is the largest that did.
        """
        if batch.batch_codes is None:
            return torch.zeros(len(batch), dtype=torch.int64, device=self.depth.device)
        codes, number = batch.sources, SIDES.index(side)
        if (named := self._batch_number(self.config.unknown_batch)) is not None:
            codes = torch.where(codes == -1, named, codes)
        learnt = (codes >= 0) & (self.batch_cells[number][codes.clamp_min(0)] > 0)
        return torch.where(learnt, codes, self.reference_batch[number])

    def _one_hot(self, codes: Tensor) -> Float32[Tensor, "cells batches"]:
        if not self.n_batches:
            return torch.zeros(len(codes), 0, device=codes.device)
        return functional.one_hot(codes, self.n_batches).float()

    def _posterior(
        self, batch: Batch, modality: Modality, lost: Dropout | None
    ) -> tuple[Float32[Tensor, "cells latent"], Float32[Tensor, "cells latent"]]:
        codes = self._one_hot(self._codes(batch, modality))
        if modality == "atac":
            return self.atac_encoder(batch.atac, codes, lost)
        return self.rna_encoder(batch.rna, codes, lost)

    def directions(self) -> tuple[tuple[Modality, Modality], ...]:
        return (("rna", "rna"), ("rna", "atac"), ("atac", "rna"), ("atac", "atac"))

    def spaces(self) -> tuple[Modality, ...]:
        """Both latents: cells of either assay can be compared in each."""
        return ("rna", "atac")

    def encode(self, batch: Batch, *, source: Modality, to: Modality) -> Float[Tensor, "cells latent"]:
        """Latent means in the space of `to`."""
        mean = self._posterior(batch, source, None)[0]
        return mean if source == to else self.get_submodule(f"{source}_to_{to}")(mean)

    def context(
        self, batch: Batch, *, source: Modality, to: Modality, depth: float | str | None = None
    ) -> Float32[Tensor, "cells 2"]:
        """Number of each cell's batch in the modality decoded to, and its log depth less that of a median training cell.

        Expression is always predicted at the median library.
        """
        codes, asked = self._codes(batch, to), depth if depth is not None else self.config.depth
        if depth is not None and to == "rna":
            raise InputError(
                f"depth {depth!r} is a number of open peaks; expression is predicted at the median library."
            )
        if isinstance(asked, str) and asked not in ("median", "predicted"):
            raise InputError(f'depth {asked!r}: give a number of open peaks, "median" or "predicted".')
        most = len(self.inputs["atac"].var)
        if not isinstance(asked, str) and not 0 < asked < most:
            raise InputError(f"depth {asked:g}: give how many of the model's {most:,} peaks are open in a cell.")
        log_depth = torch.zeros(len(batch), device=self.depth.device)
        if to == "atac" and asked == "predicted":
            if source == "atac":
                found = batch.atac.totals().clamp_min(1.0).log()
            else:
                found = self._depth_features(batch, self._posterior(batch, "rna", None)[0]) @ self.depth_weight
                found = (found + self.depth_bias).clamp(self.depth_range[0], self.depth_range[1])
            log_depth = found - self.depth.log()
        elif to == "atac" and not isinstance(asked, str):
            log_depth = log_depth + math.log(asked) - self.depth.log()
        return torch.stack([codes.float(), log_depth.float()], dim=1)

    def _told(
        self, latent: Float[Tensor, "cells latent"], context: Float32[Tensor, "cells 2"] | None, to: Modality
    ) -> tuple[Tensor, Tensor]:
        """Batch, one-hot, and log depth; without a context the largest batch of the modality and the median depth."""
        if context is None:
            codes = self.reference_batch[SIDES.index(to)].expand(len(latent))
            return self._one_hot(codes), torch.zeros(len(latent), device=latent.device)
        return self._one_hot(context[:, 0].long()), context[:, 1]

    def log_odds(
        self,
        latent: Float[Tensor, "cells latent"],
        *,
        source: Modality,
        peaks: slice,
        context: Float32[Tensor, "cells 2"] | None = None,
    ) -> Float32[Tensor, "cells peaks"]:
        """At the depth and in the batch of the context; without one in the largest batch, at the median depth."""
        codes, log_depth = self._told(latent, context, "atac")
        logits = self.atac_decoder.head.logits(self.atac_decoder(latent, codes, None), peaks)
        if self.config.link == "product":
            return product_probability(logits, log_depth.exp() * self.depth / RELEASED_DEPTH).logit()
        return log_expm1((logits + log_depth[:, None]).clamp(*RATE_RANGE).exp())

    def decode(
        self,
        latent: Float[Tensor, "cells latent"],
        *,
        source: Modality,
        to: Modality,
        features: slice,
        context: Float32[Tensor, "cells 2"] | None = None,
    ) -> Float32[Tensor, "cells features"]:
        if to == "atac":
            return self.as_probability(
                self.log_odds(latent, source=source, peaks=features, context=context), source=source
            )
        hidden = self.rna_decoder(latent, self._told(latent, context, "rna")[0], None)
        library, inflated = rna_input(self.inputs).median_library, self.config.zero_inflated
        return self.rna_decoder.head.predict(hidden, features, library=library, inflated=inflated).log1p()


def ridge(
    x: Float[np.ndarray, "cells inputs"], y: Float[np.ndarray, "cells outputs"]
) -> tuple[Float[np.ndarray, "outputs inputs"], Float[np.ndarray, " outputs"]]:
    """Weight and bias of the ridge regression of y on x, standardised; of `PENALTIES` the one that does best leaving out one cell."""
    mean, sd = x.mean(axis=0), x.std(axis=0)
    sd = np.where(sd > 1e-6, sd, 1.0)
    found = RidgeCV(alphas=PENALTIES).fit((x - mean) / sd, y)
    weight = np.atleast_2d(found.coef_) / sd
    return weight, np.atleast_1d(found.intercept_) - weight @ mean

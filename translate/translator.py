"""A fitted system: AnnData in, AnnData out."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Float32

from expresser.errors import InputError
from expresser.notebook import Part, card, lines
from expresser.record import provenance, storable
from translate import saving
from translate.batches import Batch
from translate.data import read_one
from translate.feed import Feed, Inputs
from translate.imputed import Imputed
from translate.opening import Joint, modalities_in, open_mudata
from translate.predicted import Chosen, Decoded
from translate.reading import guess_modality
from translate.study import Measured, Modality
from translate.system import System

CELLS = 512  # cells encoded at once


@dataclass(frozen=True, eq=False, repr=False)
class Translator:
    """A network and all it needs to take raw counts of any file: one cell gives what it gives among thousands."""

    name: str
    system: System
    inputs: Inputs
    run: dict[str, Any]

    @classmethod
    def load(cls, model: str | Path) -> "Translator":
        """From a folder (of a model, or of a fit) or a hub id."""
        return cls(*saving.load(model))

    def save(self, folder: str | Path) -> Path:
        """Into one folder, whole or absent."""
        return saving.save(Path(folder), self.name, self.system, self.inputs, self.run)

    def facts(self) -> dict[str, Any]:
        """What a reader wants to know of it, by name; None: not known."""
        run, config = self.run, self.system.config
        cells, mix = run.get("cells") or {}, run.get("trained_on") or {}
        paired = f", {mix['paired']:,} of them with every modality" if "paired" in mix else ""
        return self.system.facts() | {
            "latent": getattr(config, "latent", None),
            "trained on": f"{cells['train']:,} cells{paired}" if "train" in cells else None,
            "held out": f"{cells['test']:,} test and {cells['valid']:,} validation cells" if "test" in cells else None,
            "split": run.get("split"),
            "preset": run.get("preset"),
            "pretrained": (run.get("pretrained") or {}).get("model"),
            "seed": run.get("seed"),
            "made (UTC)": (run.get("provenance") or {}).get("time_utc"),
        }

    def __repr__(self) -> str:
        return lines(f"{type(self).__name__} {self.name}", self.facts())

    def _repr_html_(self) -> str:
        parts: dict[str, Part] = {
            "when to choose it": self.system.published.choose,
            "where it departs from the paper": self.system.published.deviations,
            "configuration": json.dumps(asdict(self.system.config), indent=1, default=str),
        }
        return card(f"{type(self).__name__} {self.name}", self.facts(), parts)

    @property
    def directions(self) -> tuple[tuple[Modality, Modality], ...]:
        """(source, target) pairs it predicts."""
        return self.system.directions()

    def var(self, modality: Modality) -> pd.DataFrame:
        """The features predicted in a modality, in their order."""
        return self.inputs[modality].var

    def latents(
        self, measured: Measured, *, source: Modality, to: Modality | None = None, unknown_batch: str | None = None
    ) -> Float32[np.ndarray, "cells latent"]:
        """Latents of cells measured in `source`, as the path to `to` has them (default: the first path from there).

        unknown_batch: of a system that tells batches apart, which of them ("reference": the largest) cells are taken for whose own
        no training cell had; without it they are refused.
        """
        to = self.target(source, to)
        feed = self.feed_of(measured, source, unknown_batch)
        return self.latents_of(feed, np.arange(feed.n_cells), source=source, to=to)

    def feed_of(self, measured: Measured, source: Modality, unknown_batch: str | None = None) -> Feed:
        """Cells of a query as the network reads them; unknown_batch: as in `latents`."""
        codes, feed = self.system.batch_codes(measured.obs, unknown_batch), Feed.of_one(measured, source, self.inputs)
        return replace(feed, batch_codes=codes, raw_inputs=self.system.raw_inputs)

    @torch.no_grad()
    def latents_of(
        self, feed: Feed, cells: np.ndarray, *, source: Modality, to: Modality | None = None
    ) -> Float32[np.ndarray, "cells latent"]:
        """The same for cells of a feed."""
        to = self.target(source, to)
        device = next(self.system.parameters()).device
        parts = []
        for batch in self._batches(feed, cells, source):
            parts.append(self.system.encode(batch.to(device), source=source, to=to).float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    def _batches(self, feed: Feed, cells: np.ndarray, source: Modality) -> Iterator[Batch]:
        cuts = [cells[start : start + CELLS] for start in range(0, len(cells), CELLS)]
        return feed.batches(cuts, (source,), shares=[CELLS] * len(cuts))

    @torch.no_grad()
    def predict(
        self,
        measured: Measured,
        *,
        source: Modality,
        to: Modality,
        depth: float | str | None = None,
        unknown_batch: str | None = None,
    ) -> Decoded:
        """Predictions of `to`, made block by block when they are asked for; only this path runs.

        depth: of a system that knows depth, the number of open peaks that cells are given: a number, "median" (of training cells:
        cells can then be compared) or "predicted" (what each cell's own would have been); None: as its configuration says.
        unknown_batch: as in `latents`.
        """
        if depth is not None and not self.system.tells_depth:
            raise InputError(f"this {self.name} predicts at no depth of its own: leave depth {depth!r} out.")
        self.target(source, to)
        feed, device = self.feed_of(measured, source, unknown_batch), next(self.system.parameters()).device
        latents, contexts = [], []
        for batch in self._batches(feed, np.arange(feed.n_cells), source):
            there = batch.to(device)
            latents.append(self.system.encode(there, source=source, to=to).float().cpu().numpy())
            if (context := self.system.context(there, source=source, to=to, depth=depth)) is not None:
                contexts.append(context.float().cpu().numpy())
        latent = np.concatenate(latents) if latents else np.zeros((0, 0), np.float32)
        known = np.concatenate(contexts) if contexts else None
        return Decoded(self.system, latent, source, to, len(self.inputs[to].var), known)

    def impute(self, measured: Measured, *, depth: float | None = None, batch: str | None = None) -> Imputed:
        """Peaks of cells as if each had this number of open peaks and came from this batch, of a system that embeds.

        Default: the mean depth of training cells, and the batch of the deepest; that is also what `predict` gives.
        """
        self.target("atac", "atac")
        return Imputed(self.system, self.latents(measured, source="atac"), len(self.inputs["atac"].var), depth, batch)

    def translate(
        self,
        adata: AnnData | Joint | str | Path,
        to: Modality,
        *,
        source: Modality | None = None,
        layer: str | None = None,
        features: Sequence[str] | None = None,
        depth: float | str | None = None,
        unknown_batch: str | None = None,
    ) -> AnnData:
        """Predict another modality of the cells of an AnnData or a MuData; of a system that embeds, the same one, imputed.

        Parameters
        ----------
        adata
            Raw counts (RNA), counts or 0/1 (ATAC): an AnnData, a MuData, or a file of either. Genes and peaks need not be those
            of training: genes are matched, peaks re-pooled.
        source
            What is translated. By default what the features look like; of several modalities, that which leads to `to`.
        features
            Only these (names of `var(to)`); peaks may also be asked by chromosome, "chr1". Others are not computed.
        depth, unknown_batch
            As in `predict`.

        Returns
        -------
        A new AnnData with the input's obs, X dense float32: RNA ln(1 + size-normalised expression), ATAC probabilities,
        protein centred log-ratios. For outputs larger than memory use `translate.writing.write_predictions`.

        Raises
        ------
        InputError
            If the model does not predict `to` from there, if too few features are known, or a feature is not.
        """
        found = self.source_of(adata, to) if source is None else source
        measured = self.read(adata, source=found, layer=layer)
        predicted = self.predict(measured, source=found, to=to, depth=depth, unknown_batch=unknown_batch)
        columns = self.features(to, features)
        return AnnData(
            X=Chosen(predicted, columns).values(),
            obs=adata.obs.copy() if isinstance(adata, AnnData) else measured.obs.copy(),
            var=self.var(to).iloc[columns].copy(),
            uns={"expresser": self.trace(found, to)},
        )

    def embed(
        self,
        adata: AnnData | Joint,
        *,
        source: Modality | None = None,
        layer: str | None = None,
        unknown_batch: str | None = None,
    ) -> None:
        """Write the latent of each cell into ``obsm["X_<system>"]``, in place: ``sc.pp.neighbors(adata, use_rep=...)`` takes it.

        Of a MuData, that of each modality (or of `source` alone) that the system reads, into the modality's own obsm.
        """
        if not isinstance(adata, AnnData):
            parts = open_mudata(adata)[0]
            known = {s for s, _ in self.directions} & set(parts) if source is None else {source}
            if not known or not known <= set(parts):
                raise InputError(
                    f"this {self.name} reads {', '.join(dict.fromkeys(s for s, _ in self.directions))}, and the MuData holds "
                    f"{', '.join(parts)}{'' if source is None else f'; {source} was asked for'}."
                )
            latents = {m: self._embedded(adata, m, layer, unknown_batch) for m in parts if m in known}
            for m, latent in latents.items():  # none of them before all are known
                self._put(parts[m], latent, m)
            return
        found = self.source_of(adata) if source is None else source
        self._put(adata, self._embedded(adata, found, layer, unknown_batch), found)

    def _embedded(
        self, data: Any, source: Modality, layer: str | None, unknown_batch: str | None
    ) -> Float32[np.ndarray, "cells latent"]:
        return self.latents(self.read(data, source=source, layer=layer), source=source, unknown_batch=unknown_batch)

    def _put(self, adata: AnnData, latent: Float32[np.ndarray, "cells latent"], source: Modality) -> None:
        adata.obsm[f"X_{self.name}"] = latent
        adata.uns["expresser"] = dict(adata.uns.get("expresser", {})) | {f"X_{self.name}": self.trace(source, None)}

    def read(self, data: Any, *, source: Modality | None = None, layer: str | None = None) -> Measured:
        """A file, an AnnData or a MuData as `Measured`; InputError where it holds no cells."""
        measured = read_one(data, self.source_of(data) if source is None else source, layer=layer)
        if not measured.n_cells:
            raise InputError(f"{measured.name}: has no cells. Give one at least.")
        return measured

    def source_of(self, data: Any, to: Modality | None = None) -> Modality:
        """What a file or AnnData holds, judged by the names of its features; of several modalities the one that leads to `to`."""
        held = modalities_in(data)
        ways = {s for s, t in self.directions if s in held and to in (t, None)} if len(held) > 1 else set()
        known = ways - {to} or ways
        return known.pop() if len(known) == 1 else guess_modality(data)  # which refuses what holds several

    def features(self, to: Modality, names: Sequence[str] | None) -> np.ndarray:
        """Numbers of the named features, in the order asked."""
        var = self.var(to)
        if names is None:
            return np.arange(len(var))
        found: list[int] = []
        unknown: list[str] = []
        for name in names:
            if name in var.index:
                found.append(int(np.flatnonzero(var.index == name)[0]))
            elif to == "atac" and (var["chrom"] == name).any():
                found += np.flatnonzero((var["chrom"] == name).to_numpy()).tolist()
            elif (
                to == "rna"
                and (hits := np.flatnonzero(((var["symbol"] == name) | (var["ensembl_id"] == name)).to_numpy())).size
            ):
                found += hits.tolist()
            else:
                unknown.append(name)
        if unknown:
            raise InputError(
                f"{len(unknown)} of {len(names)} features are not among the {len(var):,} that this model predicts in {to} "
                f"({', '.join(map(repr, unknown[:5]))}; it has, for example, {', '.join(map(repr, var.index[:3]))})."
            )
        return np.array(found)

    def trace(self, source: Modality, to: Modality | None) -> dict[str, Any]:
        """What `uns["expresser"]` says of predictions."""
        return {
            "system": self.name,
            "source": source,
            "to": to or "latent",
            "provenance": storable(provenance(seed=self.run.get("seed"))),
        }

    def target(self, source: Modality, to: Modality | None = None) -> Modality:
        """`to`, or the first modality it goes to from `source`; InputError where it does not go there."""
        targets = [t for s, t in self.directions if s == source]
        if to is None and targets:
            return targets[0]
        if to is None or to not in targets:
            shown = ", ".join(f"{s} to {t}" for s, t in self.directions)
            raise InputError(f"this {self.name} does not go from {source} to {to}; it has {shown}.")
        return to

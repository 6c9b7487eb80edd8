"""A fitted system: AnnData in, AnnData out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Float32

from expresser.errors import InputError
from expresser.record import provenance
from translate import saving
from translate.batches import Batch
from translate.feed import Feed, Inputs
from translate.imputed import Imputed
from translate.predicted import Chosen, Decoded
from translate.reading import read_measured
from translate.study import Measured, Modality
from translate.system import System

CELLS = 512  # cells encoded at once


@dataclass(frozen=True, eq=False)
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
        adata: AnnData,
        to: Modality,
        *,
        source: Modality | None = None,
        layer: str | None = None,
        features: Sequence[str] | None = None,
        depth: float | str | None = None,
        unknown_batch: str | None = None,
    ) -> AnnData:
        """Predict another modality of the cells of an AnnData; of a system that embeds, the same one, imputed.

        Parameters
        ----------
        adata
            Raw counts (RNA), counts or 0/1 (ATAC). Genes and peaks need not be those of training: genes are matched, peaks
            re-pooled.
        source
            What the AnnData holds; by default what its features look like.
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
        measured = self.read(adata, source=source, layer=layer)
        found = self.source_of(adata) if source is None else source
        predicted = self.predict(measured, source=found, to=to, depth=depth, unknown_batch=unknown_batch)
        columns = self.features(to, features)
        return AnnData(
            X=Chosen(predicted, columns).values(),
            obs=adata.obs.copy(),
            var=self.var(to).iloc[columns].copy(),
            uns={"expresser": self.trace(found, to)},
        )

    def embed(
        self,
        adata: AnnData,
        *,
        source: Modality | None = None,
        layer: str | None = None,
        unknown_batch: str | None = None,
    ) -> None:
        """Write the latent of each cell into ``obsm["X_<system>"]``, in place: ``sc.pp.neighbors(adata, use_rep=...)`` takes it."""
        found = self.source_of(adata) if source is None else source
        measured = self.read(adata, source=found, layer=layer)
        adata.obsm[f"X_{self.name}"] = self.latents(measured, source=found, unknown_batch=unknown_batch)
        adata.uns["expresser"] = dict(adata.uns.get("expresser", {})) | {f"X_{self.name}": self.trace(found, None)}

    def read(self, data: Any, *, source: Modality | None = None, layer: str | None = None) -> Measured:
        """A file or an AnnData as `Measured`."""
        return read_measured(data, self.source_of(data) if source is None else source, layer=layer)

    def source_of(self, data: Any) -> Modality:
        """What a file or AnnData holds, judged by the names of its features."""
        from translate.reading import guess_modality

        return guess_modality(data)

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
            "provenance": provenance(seed=self.run.get("seed")),
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

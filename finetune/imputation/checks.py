"""The checks beside the hidden values: cut into parts of a comparison, and put together as `metrics.json` holds them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, get_args

import numpy as np

from expresser.corpus.source import Source
from expresser.errors import InputError
from finetune.cells import CellCounts
from finetune.imputation.baselines import Counts
from finetune.imputation.clusters import ClusterCheck, Labels
from finetune.imputation.coexpression import RISE, STRONG, CoexpressionCheck, impossible, said
from finetune.imputation.fill import Asked
from finetune.imputation.verdicts import summary
from finetune.state import Result

Check = Literal["clusters", "coexpression"]
CHECKS: tuple[Check, ...] = get_args(Check)

UNDROPPED, BEFORE = "undropped", "no_imputation"  # rows that are no methods

Part = tuple[str, Callable[[], dict[str, Result]]]  # the name a part is kept under, and what finds it
Found = Mapping[str, Mapping[str, Result]]  # part -> row of a table -> what was found


@dataclass(frozen=True, eq=False)
class Checks:
    """Which checks are made, and why another is not. `labels`: for clusters; None without."""

    labels: Labels | None
    coexpression: bool
    left_out: Mapping[str, str]

    @classmethod
    def of(
        cls, wanted: Sequence[Check], explicit: bool, label: str | None, cells: CellCounts, source: Source
    ) -> "Checks":
        """For these cells; a check that they do not allow is refused where it was asked for, else left out."""
        labels = None
        if "clusters" in wanted and label is not None:
            labels = Labels.read(source.obs, label, cells.rows, where=source.label)
        reason = impossible(cells.counts) if "coexpression" in wanted else None
        if reason is not None and explicit:
            raise InputError(f"{source.label}: no check of co-expression: {reason}. Give more cells, or leave it out.")
        left_out = {} if reason is None else {"coexpression": reason}
        return cls(labels, "coexpression" in wanted and reason is None, left_out)

    def cluster_parts(
        self, check: Callable[[], ClusterCheck], seed: int, methods: Mapping[str, str | Asked]
    ) -> Iterator[Part]:
        """Clusters of one draw: of all counts, of those left, and after each method as a user would use it."""
        if self.labels is None:
            return
        yield _cluster_part(seed, UNDROPPED), lambda: {UNDROPPED: Result(check().undropped())}
        yield _cluster_part(seed, BEFORE), lambda: {BEFORE: Result(check().observed())}
        for name, method in methods.items():
            yield _cluster_part(seed, name), partial(_filled, check, name, method)

    def coexpression_parts(self, counts: Counts, seed: int, methods: Mapping[str, str | Asked]) -> Iterator[Part]:
        """Co-expression of one shuffling before and after each method."""
        if not self.coexpression:
            return
        shuffling = _Shuffling(counts, seed)
        yield (
            _coexpression_part(seed, BEFORE),
            lambda: {BEFORE: Result(shuffling.check.observed(), {"about": shuffling.check.about()})},
        )
        for name, method in methods.items():
            yield _coexpression_part(seed, name), partial(_filled, lambda: shuffling.check, name, method)

    def metrics(
        self,
        found: Found,
        seeds: Sequence[int],
        methods: Sequence[str],
        completed: Mapping[str, Sequence[dict[str, Any]]],
    ) -> dict[str, Any]:
        """What `metrics.json` holds of them. `completed`: scores of clusters by row and draw, from the main parts."""
        return {
            "clusters": None if self.labels is None else self._clusters(found, seeds, methods, completed),
            "coexpression": self._coexpression(found, seeds, methods) if self.coexpression else None,
            "checks_left_out": dict(self.left_out),
        }

    def _clusters(
        self,
        found: Found,
        seeds: Sequence[int],
        methods: Sequence[str],
        completed: Mapping[str, Sequence[dict[str, Any]]],
    ) -> dict[str, Any]:
        if self.labels is None:
            return {}
        whole = {
            name: [found[_cluster_part(seed, name)][name].facts for seed in seeds]
            for name in (UNDROPPED, BEFORE, *methods)
        }
        before = whole[BEFORE]
        table = {name: summary(whole[name]) for name in (UNDROPPED, BEFORE)}
        words = {}
        for name in dict.fromkeys([*completed, *methods]):
            row: dict[str, float] = {}
            word: dict[str, str] = {}
            if name in completed:
                row |= summary(completed[name])
                word["completed"] = _helps(completed[name], before)
            if name in whole:
                row |= {_whole(score): value for score, value in summary(whole[name]).items()}
                word["whole"] = _helps(whole[name], before)
            table[name], words[name] = row, word
        return {
            "label": self.labels.column,
            "types": len(set(self.labels.types)),
            "cells": len(self.labels.rows),
            "methods": table,
            "said": words,
        }

    def _coexpression(self, found: Found, seeds: Sequence[int], methods: Sequence[str]) -> dict[str, Any]:
        scores = {
            name: [found[_coexpression_part(seed, name)][name].facts for seed in seeds] for name in (BEFORE, *methods)
        }
        table = {name: summary(of) for name, of in scores.items()}
        first = found[_coexpression_part(seeds[0], BEFORE)][BEFORE].arrays["about"].tolist()
        return {
            **dict(zip(("cells", "genes", "shuffled", "pairs"), first, strict=True)),
            "strong": STRONG,
            "rise": RISE,
            "methods": table,
            "said": said(table, BEFORE),
        }


def wanted(checks: Sequence[str] | None, protocol: str, label: str | None) -> tuple[Check, ...]:
    """The checks asked for, or those that the arguments allow; InputError where they do not fit together."""
    if strange := [name for name in checks or () if name not in CHECKS]:
        raise InputError(f"no check {strange[0]!r}; there are {', '.join(CHECKS)}.")
    if protocol != "dropout" and (checks or label is not None):
        raise InputError(
            f"protocol {protocol!r} has no checks and needs no label: they go with protocol 'dropout'. Leave them out."
        )
    if checks is not None:
        if "clusters" in checks and label is None:
            raise InputError(
                "the check 'clusters' compares with known cell types: name their column of obs with --label."
            )
        return tuple(check for check in CHECKS if check in checks)
    if protocol != "dropout":
        return ()
    return ("coexpression",) if label is None else ("clusters", "coexpression")


class _Shuffling:
    """The shuffled counts of one seed, made when they are first needed."""

    def __init__(self, counts: Counts, seed: int) -> None:
        self._counts, self._seed = counts, seed

    @cached_property
    def check(self) -> CoexpressionCheck:
        return CoexpressionCheck.of(self._counts, seed=self._seed)


def _filled(check: Callable[[], ClusterCheck | CoexpressionCheck], name: str, method: str | Asked) -> dict[str, Result]:
    return {name: Result(check().filled(method))}


def _cluster_part(seed: int, name: str) -> str:
    return f"clusters-seed-{seed}-{name}"


def _coexpression_part(seed: int, name: str) -> str:
    return f"coexpression-seed-{seed}-{name}"


def _whole(score: str) -> str:
    """`ari_sd` -> `ari_whole_sd`."""
    return f"{score.removesuffix('_sd')}_whole{'_sd' if score.endswith('_sd') else ''}"


def _helps(after: Sequence[Mapping[str, float]], before: Sequence[Mapping[str, float]]) -> str:
    """In every draw, of which there are two at least: ARI and NMI both higher, or both lower; else nothing is said."""
    gain = np.array([[a[s] - b[s] for s in ("ari", "nmi")] for a, b in zip(after, before, strict=True)])
    if len(gain) < 2 or not ((gain > 0).all() or (gain < 0).all()):
        return "unclear"
    return "helps" if (gain > 0).all() else "hurts"

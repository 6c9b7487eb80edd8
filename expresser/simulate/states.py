r"""Cell states that several modalities share: a type, the activities of continuous programs, a donor.

A feature's log rate is a sum over *factors* of the cell, so that cells x features is never more than a product of two
narrow matrices. The factors are the cell's type and donor (one column each) and, of every program with activity a,

* *linear*: a,
* *gated*: a in half of the types, zero in the others,
* *transient*: :math:`e^{-a^2}`, a bump, on half way along a trajectory,
* *switch*: :math:`\tanh(3 (a - \tfrac12))`, on beyond a threshold,

each brought to variance one. A feature that answers a program with weight w takes :math:`w \sqrt{1 - \nu}` of the
linear factor and :math:`w \sqrt{\nu}` of one of the other three, its *response*; :math:`\nu` is the nonlinearity. At
zero, log rates are linear in the activities; above, what a program does to one feature is no linear function of what it
does to another.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from expresser.simulate.draws import draw_depth, draw_depth_shift, draw_types, stream, type_frequencies

RESPONSES = ("gated", "transient", "switch")
_BETWEEN_TYPES, _WITHIN_TYPES = 0.4, 0.9  # standard deviations of activities
_PROGRAMS_PER_FEATURE = 2.0  # on average
_DEPTH_SKEW = -0.25  # of the log of RNA depth, as in `simulate_rna`
_DEPTH_CORRELATION = 0.4  # of the logs of a cell's two depths (0.27 and 0.48 in two donors of a bone marrow multiome)


@dataclass(frozen=True, eq=False)
class Cells:
    """The states of some cells."""

    cell_type: Int64[np.ndarray, " cells"]
    donor: Int64[np.ndarray, " cells"]
    activity: Float32[np.ndarray, "cells programs"]
    factors: Float32[np.ndarray, "cells factors"]

    @classmethod
    def joined(cls, parts: Sequence["Cells"]) -> "Cells":
        """One after the other."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def take(self, kept: slice) -> "Cells":
        """Some of them."""
        return Cells(*(getattr(self, f.name)[kept] for f in fields(self)))


@dataclass(frozen=True, eq=False)
class Answers:
    """What features do in each state: log effects of types, weights of programs, kinds of response."""

    types: Float64[np.ndarray, "features types"]
    weight: Float64[np.ndarray, "features programs"]
    response: Int64[np.ndarray, "features programs"]  # index into RESPONSES

    @classmethod
    def draw(cls, rng: np.random.Generator, args: Mapping[str, Any], n_features: int) -> "Answers":
        shape = (n_features, args["n_programs"])
        types = args["type_strength"] * draw_types(rng, args["n_types"], n_features).T
        answers = rng.random(shape) < _PROGRAMS_PER_FEATURE / max(1, args["n_programs"])
        weight = args["program_strength"] * rng.normal(0, 0.5, shape) * answers
        return cls(types, weight, rng.integers(len(RESPONSES), size=shape))

    def take(self, index: Int64[np.ndarray, " taken"]) -> "Answers":
        """Those of these features."""
        return Answers(self.types[index], self.weight[index], self.response[index])

    def times(self, scale: Float64[np.ndarray, " features"]) -> "Answers":
        """Each feature's effects multiplied by a number of its own."""
        return Answers(self.types * scale[:, None], self.weight * scale[:, None], self.response)


@dataclass(frozen=True, eq=False)
class StateLaw:
    """What is drawn once about cell states."""

    composition: Float64[np.ndarray, "donors types"]  # frequencies
    depth_shift: Float64[np.ndarray, " types"]  # of log RNA depth, for a standard deviation of one
    batch_depth: Float64[np.ndarray, "donors 2"]  # shift of the log depth of RNA and of the other modality
    mean: Float64[np.ndarray, "types programs"]
    gate: Float64[np.ndarray, "types programs"]
    nonlinearity: float

    @classmethod
    def draw(cls, args: Mapping[str, Any]) -> "StateLaw":
        rng = stream(args, "states")
        n_types, n_programs = args["n_types"], args["n_programs"]
        frequency = type_frequencies(n_types)
        composition = rng.dirichlet(50 * frequency, args["n_batches"] * args["donors_per_batch"])
        shift = draw_depth_shift(rng, frequency, 1.0)
        mean = rng.normal(0, _BETWEEN_TYPES, (n_types, n_programs)) * (n_types > 1)
        half = np.arange(n_types)[:, None] < (n_types + 1) // 2
        gate = rng.permuted(np.broadcast_to(half, mean.shape), axis=0) / np.sqrt(half.mean())
        batch_depth = args["batch_depth_sd"] * rng.normal(size=(args["n_batches"], 2))
        batch_depth = (batch_depth - batch_depth.mean(axis=0)).repeat(args["donors_per_batch"], axis=0)
        return cls(composition, shift, batch_depth, mean, gate, float(args["nonlinearity"]))

    @property
    def factors(self) -> list[str]:
        """Names of the factors, in order."""
        n_types, n_programs = self.mean.shape
        return [
            *(f"type{t}" for t in range(n_types)),
            *(f"program{k}_{kind}" for kind in ("linear", *RESPONSES) for k in range(n_programs)),
            *(f"donor{d}" for d in range(len(self.composition))),
        ]

    def cells(self, rng: np.random.Generator, n: int) -> Cells:
        """Draw `n` cells, every donor equally likely."""
        n_types, n_programs = self.mean.shape
        donor = rng.integers(len(self.composition), size=n)
        above = rng.random((n, 1)) > self.composition.cumsum(axis=1)[donor]
        cell_type = np.minimum(above.sum(axis=1), n_types - 1)
        activity = self.mean[cell_type] + _WITHIN_TYPES * rng.normal(size=(n, n_programs))
        responses = [activity * self.gate[cell_type], _standard(_transient, activity), _standard(_switch, activity)]
        factors = [np.eye(n_types)[cell_type], activity, *responses, np.eye(len(self.composition))[donor]]
        joined = np.concatenate(factors, axis=1).astype(np.float32)
        return Cells(cell_type, donor, activity.astype(np.float32), joined)

    def depths(
        self, rng: np.random.Generator, cells: Cells, *, median: float, sd: float | int, other_sd: float | int
    ) -> tuple[Float64[np.ndarray, " cells"], Float64[np.ndarray, " cells"]]:
        """Expected counts of RNA, and the other modality's depth relative to its median; the logs are correlated."""
        typed = len(self.mean) > 1
        shift = sd * self.depth_shift[cells.cell_type]
        rna = draw_depth(rng, shift, median=median, sd=sd, skew=_DEPTH_SKEW, typed=typed)
        z = np.log(rna / median) / sd if sd else np.zeros(len(rna))
        own = np.sqrt(1 - _DEPTH_CORRELATION**2) * rng.normal(size=len(rna))
        batch = np.exp(self.batch_depth[cells.donor])
        return rna * batch[:, 0], np.exp(other_sd * (_DEPTH_CORRELATION * z + own)) * batch[:, 1]

    def loadings(
        self, answers: Answers, donors: Float64[np.ndarray, "donors features"]
    ) -> Float32[np.ndarray, "features factors"]:
        """The narrow matrix whose product with a cell's factors is the log effect of its state on each feature."""
        linear = answers.weight * np.sqrt(1 - self.nonlinearity)
        others = [
            answers.weight * np.sqrt(self.nonlinearity) * (answers.response == kind) for kind in range(len(RESPONSES))
        ]
        return np.concatenate([answers.types, linear, *others, donors.T], axis=1).astype(np.float32)


def _transient(activity: np.ndarray) -> np.ndarray:
    return np.exp(-(activity**2))


def _switch(activity: np.ndarray) -> np.ndarray:
    return np.tanh(3 * (activity - 0.5))


def _standard(
    response: Callable[[np.ndarray], np.ndarray], activity: Float64[np.ndarray, "cells programs"]
) -> Float64[np.ndarray, "cells programs"]:
    """The response brought to mean 0 and variance 1 for a standard normal activity."""
    node, weight = np.polynomial.hermite_e.hermegauss(80)
    value = response(node)
    mean = np.average(value, weights=weight)
    return (response(activity) - mean) / np.sqrt(np.average((value - mean) ** 2, weights=weight))

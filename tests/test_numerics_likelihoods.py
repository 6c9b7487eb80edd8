"""Each likelihood, loss and divergence, and its slopes, against fifty digits of mpmath, over more than data can bring.

`python tests/test_numerics_likelihoods.py` prints the worst errors.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import Tensor

from expresser.likelihoods import bernoulli_log_prob, focal_loss, nb_log_prob, zinb_log_prob
from pretrain.objective import squared_error
from translate.autoencoders import balanced_block, squared_block
from translate.batches import Block, SparseRows
from translate.cyclic import apart, judged_as
from translate.heads import (
    DISPERSION_RANGE,
    MEAN_RANGE,
    RATE_RANGE,
    bernoulli_block,
    depth_block,
    focal_block,
    log_expm1,
    nb_block,
    product_block,
    weighted_bernoulli_block,
)
from translate.losses import gaussian_kl
from translate.zinb_head import _Zinb

mp.mp.dps = 50

COUNTS = (0.0, 1.0, 2.0, 17.0, 1e3, 1e6, 1e9)
MEANS = (1e-12, 1e-5, 0.3, 40.0, 1e4, 1e6, 1e8)
DISPERSIONS = (1e-8, 1e-4, 0.1, 1.0, 1e3, 1e6, 1e8)
LOGITS = (-1e4, -300.0, -40.5, -17.0, -3.0, -1e-3, 0.0, 0.7, 5.0, 20.0, 41.0, 300.0, 1e4)


@dataclass(frozen=True)
class Case:
    """One loss: what it gives of an entry's parameters, with slopes, and the same by its formula in fifty digits.

    value: how near its value must be, relative to the value itself or to `floor`, whichever is more; slope: the same of its slopes.
    """

    found: Callable[..., tuple[float, list[float]]]
    formula: Callable[..., Any]
    entries: Sequence[tuple[float, ...]]
    moving: int  # of the parameters, the first so many are differentiated
    value: float = 1e-6
    slope: float = 1e-6
    floor: float = 1e-9


def by_autograd(loss: Callable[..., Tensor], moving: int) -> Callable[..., tuple[float, list[float]]]:
    """Value and slopes of a loss of float32 tensors of one entry."""

    def found(*entry: float) -> tuple[float, list[float]]:
        given = [torch.tensor([value], dtype=torch.float32) for value in entry]
        for one in given[:moving]:
            one.requires_grad_()
        value = loss(*given)
        assert value.dtype == torch.float32
        return float(value.detach()), [float(g) for g in torch.autograd.grad(value.sum(), given[:moving])]

    return found


def by_block(loss: Callable[..., Any], moving: int) -> Callable[..., tuple[float, list[float]]]:
    """The same of a block of one entry; the last of its parameters is the count, or 1 where it is open."""

    def found(*entry: float) -> tuple[float, list[float]]:
        outputs, count = [torch.tensor([[value]], dtype=torch.float32) for value in entry[:moving]], entry[-1]
        there = torch.tensor([0] if count else [], dtype=torch.int64)
        block = Block(there, torch.tensor([count] if count else [], dtype=torch.float32), 0, 1)
        with_slopes, slopes = loss(*entry[moving:-1])([x.clone() for x in outputs], block, True)
        alone, none = loss(*entry[moving:-1])([x.clone() for x in outputs], block, False)
        assert none == ()
        assert float(alone) == pytest.approx(float(with_slopes), rel=1e-6, abs=1e-30)
        assert all(slope.dtype == torch.float32 for slope in slopes)
        return float(with_slopes), [float(slope) for slope in slopes]

    return found


# ---- formulas --------------------------------------------------------------------------------------------------------


def nb(mean: Any, theta: Any, x: Any) -> Any:
    return (
        mp.loggamma(x + theta)
        - mp.loggamma(theta)
        - mp.loggamma(x + 1)
        - (theta + x) * mp.log1p(mean / theta)
        + (x * mp.log(mean / theta) if x else 0)
    )


def sigmoid(z: Any) -> Any:
    return 1 / (1 + mp.exp(-z))


def log_sigmoid(z: Any) -> Any:
    return -mp.log1p(mp.exp(-z)) if z > 0 else z - mp.log1p(mp.exp(z))


def zinb(mean: Any, theta: Any, logits: Any, x: Any) -> Any:
    if x:
        return log_sigmoid(-logits) + nb(mean, theta, x)
    return mp.log(sigmoid(logits) + sigmoid(-logits) * mp.exp(nb(mean, theta, x)))


def bernoulli(z: Any, x: Any) -> Any:
    return log_sigmoid(z if x else -z)


def focal(z: Any, x: Any, *, gamma: float, weights: tuple[float, float]) -> Any:
    right = log_sigmoid(z if x else -z)
    wrong = sigmoid(-z if x else z)
    return -mp.mpf(weights[0] if x else weights[1]) * wrong ** mp.mpf(gamma) * right


def clamped(x: Any, low: float, high: float) -> Any:
    return min(max(x, mp.mpf(low)), mp.mpf(high))


def nb_of_outputs(log_mean: Any, raw: Any, x: Any) -> Any:
    theta = clamped(mp.log1p(mp.exp(raw)), *DISPERSION_RANGE)
    return -nb(clamped(mp.exp(log_mean), *MEAN_RANGE), theta, x)


def zinb_of_outputs(log_mean: Any, logits: Any, log_theta: Any, x: Any) -> Any:
    return -zinb(mp.exp(log_mean), clamped(mp.exp(log_theta), *DISPERSION_RANGE), logits, x)


def opened_by_rate(z: Any, log_depth: Any, x: Any) -> Any:
    rate = mp.exp(clamped(z + log_depth, *RATE_RANGE))
    return rate - (rate + mp.log(-mp.expm1(-rate)) if x else 0)


def opened_by_product(z: Any, depth: Any, x: Any) -> Any:
    p = clamped(sigmoid(z) * depth, 1e-7, float(np.float32(1 - 1e-7)))
    return -mp.log(p if x else 1 - p)


# ---- cases -----------------------------------------------------------------------------------------------------------


def zinb_entry(log_mean: float, logits: float, log_theta: float, x: float) -> tuple[float, list[float]]:
    given = [
        torch.tensor([[value]], dtype=torch.float32, requires_grad=True) for value in (log_mean, logits, log_theta)
    ]
    there = int(x > 0)
    target = SparseRows(
        1, (0, 1), torch.zeros(there, dtype=torch.int32), torch.full((there,), x), torch.tensor([0, there]).int()
    )
    total = _Zinb.apply(target, torch.zeros(1, dtype=torch.int64), True, *given)
    return float(total.detach()), [float(g) for g in torch.autograd.grad(total, given)]


def product(*columns: Sequence[float]) -> list[tuple[float, ...]]:
    return list(itertools.product(*columns))


def focal_case(gamma: float) -> Case:
    weights = {"positive_weight": 0.93, "negative_weight": 0.07}

    def loss(z: Tensor, x: Tensor) -> Tensor:
        return focal_loss(x, logits=z, gamma=gamma, **weights)

    formula = partial(focal, gamma=gamma, weights=(0.93, 0.07))
    return Case(by_autograd(loss, 1), formula, product(LOGITS, (0.0, 1.0)), 1, value=2e-6, slope=5e-6, floor=1e-20)


def balanced(outputs: Any, block: Block, wanted: bool) -> Any:
    return balanced_block(outputs, block, wanted, keys=torch.zeros(1, dtype=torch.int64), share=1.0)


LOG_MEANS = (-1e4, -200.0, -12.0, -5.0, 0.0, 3.0, 13.5, 18.0)
RAW = (-1e4, -30.0, -9.0, -1.0, 0.5, 7.0, 900.0, 1100.0)
LOG_THETAS = (-1e4, -12.0, -9.0, -1.0, 0.0, 3.0, 6.8, 7.0, 30.0)
MANY = (0.0, 1.0, 5.0, 1e3, 1e6)
FOCAL = {f"focal_loss, gamma {gamma:g}": focal_case(gamma) for gamma in (0.0, 0.5, 1.0, 2.0, 3.5)}

CASES: dict[str, Case] = {
    "nb_log_prob": Case(
        by_autograd(lambda mean, theta, x: nb_log_prob(x, mean=mean, dispersion=theta), 2),
        nb,
        product(MEANS, DISPERSIONS, COUNTS),
        2,
        slope=1e-5,
    ),
    "zinb_log_prob": Case(
        by_autograd(lambda m, t, z, x: zinb_log_prob(x, mean=m, dispersion=t, dropout_logits=z), 3),
        zinb,
        product(MEANS[::2], DISPERSIONS[::2], LOGITS[::3], COUNTS[::2]),
        3,
        slope=5e-6,
    ),
    "bernoulli_log_prob": Case(
        by_autograd(lambda z, x: bernoulli_log_prob(x, logits=z), 1),
        bernoulli,
        product(LOGITS, (0.0, 1.0)),
        1,
        floor=1e-30,
    ),
    **FOCAL,
    "bernoulli_block": Case(
        by_block(lambda: bernoulli_block, 1), lambda z, x: -bernoulli(z, x), product(LOGITS, (0.0, 1.0)), 1, floor=0.1
    ),
    "weighted_bernoulli_block": Case(
        by_block(lambda weight: partial(weighted_bernoulli_block, positive_weight=weight), 1),
        lambda z, weight, x: -bernoulli(z, x) * (weight if x else 1),
        product(LOGITS, (0.05, 1.0, 30.0), (0.0, 1.0)),
        1,
        floor=30.0,
    ),
    "focal_block": Case(
        by_block(lambda: partial(focal_block, gamma=2.0, positive_weight=0.93, negative_weight=0.07), 1),
        partial(focal, gamma=2.0, weights=(0.93, 0.07)),
        product(LOGITS, (0.0, 1.0)),
        1,
        value=2e-6,
        slope=5e-6,
        floor=1e-20,
    ),
    "balanced_block": Case(
        by_block(lambda: balanced, 1),
        partial(focal, gamma=1.0, weights=(1.0, 1.0)),
        product(LOGITS, (0.0, 1.0)),
        1,
        floor=1e-20,
    ),
    "depth_block": Case(
        by_block(lambda log_depth: partial(depth_block, log_depth=torch.tensor([log_depth])), 1),
        opened_by_rate,
        product((-1e4, -25.0, -9.0, -2.0, 0.3, 4.0, 12.0, 1e4), (-math.log(1000), 0.0, math.log(1000)), (0.0, 1.0)),
        1,
        value=3e-6,
        slope=3e-6,
        floor=1.0,
    ),
    "product_block": Case(
        by_block(lambda depth: partial(product_block, depth=torch.tensor([depth])), 1),
        opened_by_product,
        product(LOGITS, (1e-3, 0.5, 1.0, 3.0), (0.0, 1.0)),
        1,
        value=2e-5,
        slope=1e-5,
        floor=1e-2,
    ),
    "nb_block": Case(by_block(lambda: nb_block, 2), nb_of_outputs, product(LOG_MEANS, RAW, MANY), 2, 5e-5, 3e-5, 1e-2),
    "zinb_block": Case(
        zinb_entry, zinb_of_outputs, product(LOG_MEANS[::2], LOGITS[::3], LOG_THETAS[::2], MANY), 3, 2e-5, 5e-5, 1e-2
    ),
    "squared_block": Case(
        by_block(lambda: squared_block, 1),
        lambda out, x: (out - mp.log1p(x)) ** 2,
        product((-100.0, 0.0, 1.5, 14.0, 1e4), COUNTS),
        1,
        floor=500.0,
    ),
    "squared_error": Case(
        by_autograd(lambda p, t: squared_error(p, truth=t), 1),
        lambda p, t: (p - t) ** 2,
        product((-1e4, 0.0, 3.0, 1e4), (0.0, 14.0)),
        1,
    ),
    "log_expm1": Case(
        by_autograd(log_expm1, 1),
        lambda x: x + mp.log(-mp.expm1(-x)),
        product((1e-12, 1e-3, 0.7, 5.0, 90.0, 1e6)),
        1,
        floor=1.0,
    ),
    "judged_as": Case(
        by_autograd(
            lambda z: judged_as(z[:, None], torch.zeros(1).long(), torch.ones(1, dtype=torch.bool), real=True), 1
        ),
        lambda z: -bernoulli(z, 1),
        product(LOGITS),
        1,
        floor=1e-30,
    ),
    "apart": Case(
        by_autograd(lambda a, b: apart(a[:, None], b[:, None], squared=True), 2),
        lambda a, b: (a - b) ** 2,
        product((-1e4, 0.0, 2.5), (-3.0, 1e3)),
        2,
    ),
    "gaussian_kl": Case(
        by_autograd(lambda m, s: gaussian_kl(m[:, None], s[:, None]), 2),
        lambda m, s: (mp.expm1(s) - s + m * m) / 2,
        product((-1e4, -1.0, 0.0, 1e-3, 5.0), (-1e4, -15.0, -1.0, -1e-3, 0.0, 1e-2, 3.0, 15.0)),
        2,
        value=2e-5,
        slope=2e-5,
        floor=1e-5,
    ),
}


def errors(case: Case) -> Iterator[tuple[tuple[float, ...], list[float]]]:
    """Of each entry, the error of its value and of each slope, by what each is measured."""
    for entry in case.entries:
        given = tuple(float(np.float32(value)) for value in entry)
        value, slopes = case.found(*given)
        assert all(map(math.isfinite, (value, *slopes))), f"{given}: {value}, {slopes}"
        exact = [mp.mpf(one) for one in given]

        def moved(at: Any, number: int, exact: list[Any] = exact) -> Any:
            return case.formula(*exact[:number], at, *exact[number + 1 :])

        wanted = [case.formula(*exact)] + [
            mp.diff(partial(moved, number=number), exact[number]) for number in range(case.moving)
        ]
        yield (
            given,
            [
                float(abs(a - b) / max(abs(b), case.floor))
                for a, b in zip((mp.mpf(v) for v in (value, *slopes)), wanted)
            ],
        )


@pytest.mark.parametrize("name", CASES)
def test_a_loss_and_its_slopes_are_those_of_fifty_digits(name):
    case = CASES[name]
    for given, (value, *slopes) in errors(case):
        assert value <= case.value, f"{name}{given}: the value is off by {value:.1e}"
        assert all(slope <= case.slope for slope in slopes), f"{name}{given}: slopes are off by {slopes}"


if __name__ == "__main__":
    for case_name, one in CASES.items():
        found = [error for _, error in errors(one)]
        print(
            f"{case_name:28} {len(found):5} value {max(e[0] for e in found):.1e} slopes {max(max(e[1:]) for e in found):.1e}"
        )

"""Likelihoods are those of scipy and of torch's own formulas, entry by entry, gradients too."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import nbinom

from expresser.likelihoods import bernoulli_log_prob, focal_loss, nb_log_prob


def nb(x: float, mean: float, dispersion: float) -> float:
    count, mu, theta = (torch.tensor([float(v)]) for v in (x, mean, dispersion))
    return float(nb_log_prob(count, mean=mu, dispersion=theta))


@given(x=st.integers(0, 5000), mean=st.floats(1e-3, 1e4), dispersion=st.floats(1e-2, 100.0))
@settings(max_examples=300, deadline=None)
def test_nb_log_prob_is_that_of_scipy(x: int, mean: float, dispersion: float):
    mean, dispersion = float(np.float32(mean)), float(np.float32(dispersion))
    expected = nbinom.logpmf(x, dispersion, dispersion / (dispersion + mean))
    # float32: log gammas of up to 4e4 are subtracted, each right to 6e-8 of its size.
    size = 1 + abs(expected) + (x + dispersion) * np.log(x + dispersion + 2)
    assert nb(x, mean, dispersion) == pytest.approx(expected, abs=1e-6 * size)


def test_probabilities_of_counts_sum_to_one_and_have_the_mean():
    x = torch.arange(0, 4000, dtype=torch.float32)
    for mean, dispersion in ((0.1, 0.5), (3.0, 1.0), (40.0, 5.0)):
        p = nb_log_prob(x, mean=torch.full_like(x, mean), dispersion=torch.full_like(x, dispersion)).double().exp()
        assert float(p.sum()) == pytest.approx(1, abs=1e-5)
        assert float((p * x).sum()) == pytest.approx(mean, rel=1e-4)
        assert float((p * (x - mean) ** 2).sum()) == pytest.approx(mean + mean**2 / dispersion, rel=1e-3)


def test_gradients_are_those_of_the_formula_in_float64():
    rng = np.random.default_rng(0)
    x, mean, dispersion = (
        rng.gamma(1, 3, 500) * (rng.random(500) < 0.5),
        rng.gamma(1, 3, 500) + 1e-3,
        rng.gamma(2, 1, 500) + 0.1,
    )
    got = [torch.tensor(v, dtype=torch.float32, requires_grad=True) for v in (mean, dispersion)]
    nb_log_prob(torch.tensor(x, dtype=torch.float32), mean=got[0], dispersion=got[1]).sum().backward()
    m, t = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (mean, dispersion))
    y = torch.tensor(x)
    log_p = (
        torch.lgamma(y + t)
        - torch.lgamma(t)
        - torch.lgamma(y + 1)
        + t * torch.log(t / (t + m))
        + y * torch.log(m / (t + m))
    )
    log_p.sum().backward()
    for mine, its in zip(got, (m, t)):
        torch.testing.assert_close(mine.grad.double(), its.grad, rtol=2e-4, atol=2e-5)


def test_bernoulli_is_torchs_and_finite_for_any_log_odds():
    logits = torch.tensor([-1e4, -100.0, -3.0, 0.0, 3.0, 100.0, 1e4], requires_grad=True)
    for x in (torch.zeros(7), torch.ones(7)):
        log_p = bernoulli_log_prob(x, logits=logits)
        torch.testing.assert_close(
            -log_p, torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
        )
        (grad,) = torch.autograd.grad(log_p.sum(), [logits])
        torch.testing.assert_close(grad, x - torch.sigmoid(logits.detach()))
    both = (
        bernoulli_log_prob(torch.ones(7), logits=logits).exp() + bernoulli_log_prob(torch.zeros(7), logits=logits).exp()
    )
    torch.testing.assert_close(both, torch.ones(7))


@given(gamma=st.sampled_from([0.0, 1.0, 2.0, 3.5]), z=st.floats(-12, 12), x=st.sampled_from([0.0, 1.0]))
@settings(max_examples=100, deadline=None)
def test_focal_loss_is_the_formula_in_float64(gamma: float, z: float, x: float):
    logits = torch.tensor([z], requires_grad=True)
    loss = focal_loss(torch.tensor([x]), logits=logits, gamma=gamma, positive_weight=0.93, negative_weight=0.07)
    (slope,) = torch.autograd.grad(loss.sum(), [logits])
    leaf = torch.tensor([z], dtype=torch.float32).double().requires_grad_()
    p = torch.sigmoid(leaf if x else -leaf)
    expected = -(0.93 if x else 0.07) * (1 - p) ** gamma * p.log()
    (its,) = torch.autograd.grad(expected.sum(), [leaf])
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(slope.double(), its, rtol=1e-4, atol=1e-6)


def test_focal_without_focus_is_the_bernoulli_likelihood():
    x, logits = torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([-2.0, 0.5, 90.0, 90.0])
    plain = focal_loss(x, logits=logits, gamma=0.0, positive_weight=1.0, negative_weight=1.0)
    torch.testing.assert_close(plain, -bernoulli_log_prob(x, logits=logits))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_gradients_stay_finite_where_an_entry_is_right_beyond_doubt(gamma: float):
    logits = torch.tensor([200.0, -200.0, 200.0, -200.0], requires_grad=True)
    x = torch.tensor([1.0, 0.0, 0.0, 1.0])
    focal_loss(x, logits=logits, gamma=gamma, positive_weight=0.5, negative_weight=0.5).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_half_precision_is_judged_in_float32():
    x, logits = torch.tensor([1.0, 0.0]), torch.tensor([9.0, -9.0], dtype=torch.bfloat16)
    assert bernoulli_log_prob(x, logits=logits).dtype == torch.float32
    mean = torch.tensor([2.0, 3.0], dtype=torch.bfloat16)
    assert nb_log_prob(x.bfloat16(), mean=mean, dispersion=mean).dtype == torch.float32

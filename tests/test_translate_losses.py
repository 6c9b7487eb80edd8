"""Terms of latent-variable models against torch.distributions and against formulas written out."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from translate.batches import Block
from translate.heads import OpenHead, bernoulli_block, weighted_bernoulli_block
from translate.losses import (
    gathered,
    gaussian_kl,
    mutual_information_bound,
    pairwise_kl,
    sample_latent,
    similarity_loss,
    standard_normal,
)


def gaussians(n: int = 7, d: int = 5, *, far: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=draws) * far, torch.randn(n, d, generator=draws)


def normal(mean: torch.Tensor, log_var: torch.Tensor) -> Normal:
    return Normal(mean.double(), (log_var.double() / 2).exp())


# ---- divergences -----------------------------------------------------------------------------------------------------


def test_the_divergence_from_the_prior_is_torchs():
    mean, log_var = gaussians()
    expected = kl_divergence(normal(mean, log_var), Normal(0.0, 1.0)).sum(dim=1).float()
    torch.testing.assert_close(gaussian_kl(mean, log_var), expected)
    assert float(gaussian_kl(torch.zeros(1, 3), torch.zeros(1, 3))) == 0.0


@pytest.mark.parametrize("far", [0.1, 1.0, 30.0])
def test_divergences_of_pairs_are_torchs(far):
    mean, log_var = gaussians(far=far)
    one, other = normal(mean[:, None], log_var[:, None]), normal(mean[None], log_var[None])
    expected = kl_divergence(one, other).sum(dim=2).float()
    found = pairwise_kl(mean, log_var)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(far**2, 1))
    assert found.shape == (7, 7)
    assert not torch.equal(found, found.T)  # of the first from the second, not the other way round


def test_divergences_from_other_cells_and_far_from_the_origin():
    """A latent whose means all lie at a thousand has the divergences it has at zero."""
    mean, log_var = gaussians()
    found = pairwise_kl(mean[:3] + 1000.0, log_var[:3], others=(mean + 1000.0, log_var))
    torch.testing.assert_close(found, pairwise_kl(mean, log_var)[:3], rtol=1e-3, atol=2e-3)


def test_divergences_of_pairs_have_the_gradient_of_the_formula():
    ours = [x.requires_grad_() for x in gaussians()]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    pairwise_kl(*ours).square().sum().backward()
    m, s = theirs
    written = (s[:, None] - s[None]).exp() + (m[:, None] - m[None]) ** 2 / s[None].exp() + s[None] - s[:, None] - 1
    (0.5 * written.sum(dim=2)).square().sum().backward()
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-2)


def test_the_bound_is_above_what_latents_know_of_cells():
    """The mean over cells of KL(q(z|x) || q(z)), q(z) the mixture, by Monte Carlo."""
    mean, log_var = gaussians(n=6, d=2)
    bound = mutual_information_bound(mean, log_var)
    torch.testing.assert_close(bound, pairwise_kl(mean, log_var).mean(dim=1))
    draws = mean + (log_var / 2).exp() * torch.randn(20_000, 6, 2, generator=torch.Generator().manual_seed(1))
    own = normal(mean, log_var).log_prob(draws).sum(dim=-1)
    of_all = normal(mean, log_var).log_prob(draws[:, :, None]).sum(dim=-1)
    information = (own - of_all.logsumexp(dim=-1) + math.log(6)).mean(dim=0)
    assert (bound > information).all()
    assert float(information.mean()) < math.log(6) + 0.01
    same = mean[:1].expand(6, -1), log_var[:1].expand(6, -1)
    torch.testing.assert_close(mutual_information_bound(*same), torch.zeros(6), atol=1e-5, rtol=0)


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_noise_is_standard_normal_and_a_function_of_key_and_row():
    noise = standard_normal(np.arange(40_000), 3, key=5)
    for column in noise.T.numpy():
        assert stats.kstest(column, "norm").pvalue > 1e-3
    correlations = np.corrcoef(np.c_[noise.numpy(), np.roll(noise.numpy(), 1, axis=0)].T)
    assert np.abs(correlations - np.eye(6)).max() < 0.02
    order = np.random.default_rng(0).permutation(40_000)
    assert torch.equal(standard_normal(order, 3, key=5), noise[order])
    assert torch.equal(standard_normal(torch.arange(9), 2, key=5), noise[:9, :2])
    assert not torch.equal(standard_normal(np.arange(9), 3, key=6), noise[:9])
    assert bool(torch.isfinite(standard_normal(np.arange(9), 3, key=2**63 - 1)).all())


def test_a_sample_has_the_posteriors_mean_and_one_sd():
    mean, log_var = torch.tensor([[2.0, -1.0]]).expand(50_000, 2), torch.tensor([[0.0, -3.0]]).expand(50_000, 2)
    rows = np.arange(50_000)
    drawn = sample_latent(mean, log_var, rows, 1)
    torch.testing.assert_close(drawn.mean(dim=0), mean[0], atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(dim=0), torch.tensor([1.0, math.exp(-1.5)]), atol=0.01, rtol=0)
    released = sample_latent(mean, log_var, rows, 1, sd_is_variance=True)
    torch.testing.assert_close(released.std(dim=0), torch.tensor([1.0, math.exp(-3.0)]), atol=0.01, rtol=0)


# ---- similarities ----------------------------------------------------------------------------------------------------


def test_similarities_are_compared_inside_groups_and_by_weight():
    z, r = gaussians(6, 3)[0], gaussians(6, 4, seed=1)[0]
    weight, group = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 0.2]), torch.tensor([0, 0, 0, 1, 1, 1])
    expected = torch.zeros(6)
    for i in range(6):
        for j in range(6):
            if group[i] == group[j]:
                s = functional.cosine_similarity(z[i], z[j], dim=0) - functional.cosine_similarity(r[i], r[j], dim=0)
                expected[i] += weight[i] * weight[j] * s**2
    torch.testing.assert_close(similarity_loss(z, r, weight=weight, group=group), expected)
    # A turned and stretched copy is as alike as can be.
    turned = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    nothing = similarity_loss(z, 7 * z @ turned, weight=weight, group=group)
    torch.testing.assert_close(nothing, torch.zeros(6), atol=1e-9, rtol=0)


def test_cells_without_a_reference_are_never_looked_at():
    z, r = gaussians(4, 3)[0].requires_grad_(), gaussians(4, 3, seed=1)[0]
    r[2] = math.nan
    weight, group = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.zeros(4, dtype=torch.int64)
    similarity_loss(z, r, weight=weight, group=group).sum().backward()
    assert bool((z.grad[2] == 0).all())
    assert bool((z.grad[[0, 1, 3]] != 0).any(dim=1).all())
    assert bool(torch.isfinite(z.grad).all())


# ---- the weighted likelihood -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 0.3, 20.0])
def test_the_weighted_likelihood_is_torchs(weight):
    draws = torch.Generator().manual_seed(0)
    z = (torch.randn(5, 9, generator=draws, dtype=torch.float32) * 4).requires_grad_()
    y = (torch.rand(5, 9, generator=draws) < 0.3).float()
    expected = functional.binary_cross_entropy_with_logits(
        z, y, pos_weight=torch.tensor(weight, dtype=torch.float32), reduction="sum"
    )
    expected.backward()
    block = Block(y.view(-1).nonzero().view(-1).int(), None, 0, 9)
    total, (slope,) = weighted_bernoulli_block([z.detach().clone()], block, True, positive_weight=weight)
    torch.testing.assert_close(total, expected.detach())
    torch.testing.assert_close(slope, z.grad)
    assert weighted_bernoulli_block([z.detach().clone()], block, False, positive_weight=weight)[1] == ()
    if weight == 1:
        torch.testing.assert_close(total, bernoulli_block([z.detach().clone()], block, False)[0])


def test_a_head_takes_the_weight_as_a_number_or_a_tensor():
    from scipy import sparse

    from translate.batches import sparse_rows

    draws = np.random.default_rng(0)
    opened = sparse.csr_matrix((draws.random((6, 11)) < 0.3).astype(np.float32))
    target = sparse_rows(opened, (0, 4, 11), binary=True)
    for per_block in (False, True):
        head = OpenHead((0, 4, 11), 3, per_block=per_block)
        hidden = torch.randn(6, *((2,) if per_block else ()), 3, generator=torch.Generator().manual_seed(0))
        expected = functional.binary_cross_entropy_with_logits(
            head.logits(hidden, slice(0, 11)),
            torch.from_numpy(opened.toarray()),
            pos_weight=torch.tensor(5.0),
            reduction="sum",
        )
        for weight in (5.0, torch.tensor(5.0)):
            torch.testing.assert_close(head.loss(hidden, target, positive_weight=weight), expected.detach())
        assert float(head.loss(hidden, target).detach()) < float(expected.detach())


# ---- several processes -----------------------------------------------------------------------------------------------

SCRIPT = """
import torch, torch.distributed as dist
from translate.losses import gathered, mutual_information_bound, similarity_loss
dist.init_process_group("gloo")
me, n = dist.get_rank(), dist.get_world_size()
draws = torch.Generator().manual_seed(0)
mean, log_var, reference = (torch.randn(7, 3, generator=draws) for _ in range(3))
weight, group = torch.rand(7, generator=draws), torch.arange(7) % 2
def loss(cells):
    m, s = mean[cells].clone().requires_grad_(), log_var[cells].clone().requires_grad_()
    value = mutual_information_bound(m, s).square().sum()
    value = value + similarity_loss(m, reference[cells], weight=weight[cells], group=group[cells]).square().sum()
    value.backward()
    return value.detach(), m.grad, s.grad
mine = torch.arange(7)[me::n]  # 7 cells: one process has one more
value, *grads = loss(mine)
dist.all_reduce(value)
assert gathered(torch.arange(7)[me::n]).sort().values.tolist() == list(range(7))
dist.barrier()
dist.destroy_process_group()
whole, *expected = loss(torch.arange(7))
torch.testing.assert_close(value, whole)
for a, b in zip(grads, expected):
    torch.testing.assert_close(a, b[mine], rtol=1e-4, atol=1e-5)
"""


def test_with_one_process_nothing_is_gathered():
    x = torch.zeros(2, 2)
    assert gathered(x) is x


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_pairs_are_over_the_whole_step_and_so_are_their_gradients(tmp_path, processes):
    script = tmp_path / "pairs.py"
    script.write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *launch], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]

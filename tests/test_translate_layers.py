"""Sparse batches and layers are the dense ones, and the blockwise losses are autograd's, value and gradient."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from expresser.likelihoods import bernoulli_log_prob, focal_loss, nb_log_prob
from expresser.regions import Regions
from translate.babel import Babel, BabelConfig
from translate.batches import BlockedMatrix, SparseRows, sparse_rows
from translate.blocks import BatchNorm, ChromosomeLinear, Dense, PReLU, SparseDense, SparseLinear
from translate.heads import DISPERSION_RANGE, MEAN_RANGE, CountHead, Focal, OpenHead
from translate.preprocess import AtacInput, AtacRecipe, RnaInput, RnaRecipe
from translate.scmog import Scmog, ScmogConfig


def matrix(n_cells: int, n_features: int, *, density: float = 0.3, seed: int = 0) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    values = np.round(rng.gamma(1, 4, (n_cells, n_features)), 2) + 0.5
    return sparse.csr_matrix((values * (rng.random((n_cells, n_features)) < density)).astype(np.float32))


# ---- batches ---------------------------------------------------------------------------------------------------------


@st.composite
def parted(draw: st.DrawFn) -> tuple[sparse.csr_matrix, tuple[int, ...], np.ndarray, bool]:
    """A matrix, bounds with empty blocks among them, cells in any order and number, whether it is 0/1."""
    n_cells, n_features = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    made = matrix(n_cells, n_features, density=draw(st.sampled_from([0.0, 0.2, 0.9])), seed=draw(st.integers(0, 99)))
    inner = draw(st.lists(st.integers(0, n_features), max_size=5).map(sorted))
    cells = np.array(draw(st.lists(st.integers(0, n_cells - 1), max_size=8)), dtype=np.int64)
    return made, (0, *inner, n_features), cells, draw(st.booleans())


@given(parted())
@settings(max_examples=200, deadline=None)
def test_a_batch_written_out_is_the_matrix(case):
    made, bounds, cells, binary = case
    batch = BlockedMatrix(made, bounds, binary=binary).rows(cells)
    expected = made[cells].toarray()
    np.testing.assert_array_equal(batch.dense().numpy(), (expected > 0).astype(np.float32) if binary else expected)
    assert (batch.n_cells, batch.n_features, batch.n_blocks) == (len(cells), made.shape[1], len(bounds) - 1)
    assert len(batch.indices) == int(batch.offsets[-1]) == (expected > 0).sum()
    for number, (start, stop) in enumerate(pairwise(bounds)):
        block = batch.block(number)
        assert (block.start, block.stop) == (start, stop)
        flat = np.zeros(len(cells) * (stop - start), np.float32)
        flat[block.flat.numpy()] = block.amounts().numpy()
        part = expected[:, start:stop].ravel()
        np.testing.assert_array_equal(flat, (part > 0).astype(np.float32) if binary else part)


def test_permuted_cells_permute_the_batch():
    made = matrix(9, 20)
    order = np.random.default_rng(1).permutation(9)
    kept = BlockedMatrix(made, (0, 7, 7, 20))
    torch.testing.assert_close(kept.rows(order).dense(), kept.rows(np.arange(9)).dense()[order], rtol=0, atol=0)


def test_a_batch_moves_to_a_device_whole():
    batch = sparse_rows(matrix(3, 8), (0, 4, 8))
    torch.testing.assert_close(batch.to(torch.device("cpu")).dense(), batch.dense(), rtol=0, atol=0)


@pytest.mark.parametrize("bounds", [(0, 5, 8), (1, 9), (0, 6, 4, 9), (0, 10)])
def test_bounds_that_do_not_part_the_columns_are_refused(bounds):
    with pytest.raises(ValueError, match="do not part 9 columns"):
        BlockedMatrix(matrix(2, 9), bounds)


# ---- layers ----------------------------------------------------------------------------------------------------------


def block_diagonal(layer: SparseLinear, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What `SparseLinear` stands for, dense and in float64: one product with a block-diagonal weight."""
    n_out, spans = weight.shape[1], list(pairwise(layer.bounds))
    full = torch.zeros(weight.shape[0], n_out * len(spans), dtype=torch.float64)
    for number, (start, stop) in enumerate(spans):
        full[start:stop, number * n_out : (number + 1) * n_out] = weight[start:stop]
    if layer.rest is not None:
        x = x + layer.rest.double()
    return (x @ full + bias.flatten()).view(len(x), len(spans), n_out)


CASES = {
    "chromosomes": ((0, 7, 12, 30), 0.3),
    "one_peak_and_an_empty_one": ((0, 7, 7, 8, 30), 0.3),
    "one_block": ((0, 30), 0.3),
    "nothing_open": ((0, 10, 30), 0.0),
}


@pytest.mark.parametrize("with_rest", [False, True])
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_sparse_layer_is_the_dense_one_with_block_diagonal_weight(case, binary, joint, with_rest):
    bounds, density = CASES[case]
    made = matrix(6, 30, density=density)
    made.data[made.indptr[2] : made.indptr[3]] = 0  # a cell with nothing
    made.eliminate_zeros()
    rest = np.random.default_rng(2).normal(size=30).astype(np.float32) if with_rest else None
    layer = SparseLinear(bounds, 5, joint=joint, rest=rest)
    batch = sparse_rows(made, bounds, binary=binary)
    out = layer(batch)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    (out * upstream).sum().backward()
    weight, bias = (p.detach().double().requires_grad_() for p in (layer.weight, layer.bias))
    expected = block_diagonal(layer, batch.dense().double(), weight, bias)
    (expected * upstream).sum().backward()
    assert out.shape == (6, 1 if joint else len(bounds) - 1, 5)
    for mine, its in ((out, expected), (layer.weight.grad, weight.grad), (layer.bias.grad, bias.grad)):
        torch.testing.assert_close(mine.double(), its, rtol=1e-5, atol=1e-5)
    if joint and not with_rest:
        torch.testing.assert_close(layer.dense(batch.dense()), out, rtol=1e-5, atol=1e-5)


def test_a_batch_of_no_cells_passes_every_layer():
    made = matrix(4, 30)
    none = np.zeros(0, np.int64)
    batch, joint = BlockedMatrix(made, (0, 12, 30)).rows(none), BlockedMatrix(made, (0, 30)).rows(none)
    assert SparseLinear((0, 12, 30), 5)(batch).shape == (0, 2, 5)
    assert SparseDense(SparseLinear((0, 30), 8, joint=True), 3).eval()(joint).shape == (0, 3)
    hidden = torch.zeros(0, 8, requires_grad=True)
    loss = CountHead(8, 30).loss(hidden, batch) + OpenHead((0, 12, 30), 8, per_block=False).loss(hidden, batch)
    loss.backward()
    assert float(loss.detach()) == 0


def test_a_sparse_layer_refuses_other_features_and_other_blocks():
    layer = SparseLinear((0, 12, 30), 5)
    for bounds, n in (((0, 11, 30), 30), ((0, 12, 29), 29)):
        with pytest.raises(ValueError, match="not this layer's"):
            layer(sparse_rows(matrix(2, n), bounds))
    assert SparseLinear((0, 12, 30), 5, joint=True)(sparse_rows(matrix(2, 30), (0, 3, 30))).shape == (2, 1, 5)


def test_first_weights_are_xavier_uniform_in_each_block():
    layer = SparseLinear((0, 1000, 1010), 32)
    for start, stop in pairwise(layer.bounds):
        bound = math.sqrt(6 / (stop - start + 32))
        part = layer.weight[start:stop].detach().abs()
        assert bound * 0.95 < float(part.max()) <= bound
        assert float(part.mean()) == pytest.approx(bound / 2, rel=0.1)
    assert float(layer.bias[0].detach().abs().max()) <= 1000**-0.5


def test_two_layers_do_not_share_what_a_zero_stands_for():
    rest = np.ones(30, np.float32)
    first, second = SparseLinear((0, 30), 2, joint=True, rest=rest), SparseLinear((0, 30), 2, joint=True, rest=rest)
    first.rest.zero_()
    assert float(second.rest.sum()) == rest.sum() == 30


def test_a_chromosome_layer_is_a_linear_layer_for_each():
    layer = ChromosomeLinear(4, 6, 3)
    x = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
    each = [functional.linear(x[:, k], layer.weight[k].T, layer.bias[k]) for k in range(4)]
    torch.testing.assert_close(layer(x), torch.stack(each, dim=1))
    other = x.clone()
    other[:, 2] += 1
    moved = (layer(other) - layer(x)).abs().amax(dim=(0, 2)) > 0
    assert moved.tolist() == [False, False, True, False]


@pytest.mark.parametrize("shape", [(7,), (3, 4)])
def test_batch_norm_is_torchs_in_training_and_after(shape):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = BatchNorm(*shape), nn.BatchNorm1d(math.prod(shape))
    for parameter, other in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        other.data = parameter.data.uniform_(0.5, 1.5, generator=generator).clone()
    for step in range(4):
        x = torch.randn(9, *shape, generator=generator) * 3 + step
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        out = [ours(leaves[0]).flatten(1), theirs(leaves[1].flatten(1))]
        for one in out:
            (one**2).sum().backward()
        torch.testing.assert_close(*out, rtol=0, atol=0)
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=0, atol=0)
    torch.testing.assert_close(ours.mean, theirs.running_mean, rtol=0, atol=0)
    torch.testing.assert_close(ours.variance, theirs.running_var, rtol=0, atol=0)
    x = torch.randn(1, *shape, generator=generator)
    torch.testing.assert_close(ours.eval()(x).flatten(1), theirs.eval()(x.flatten(1)), rtol=0, atol=0)


def test_one_slope_a_block():
    layer = PReLU(3)
    layer.weight.data = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(layer(-torch.ones(2, 3, 4))[0, :, 0], -torch.tensor([0.0, 0.5, 1.0]))
    assert [type(part).__name__ for part in Dense(4, 3)] == ["Linear", "BatchNorm", "PReLU"]
    assert float(PReLU().weight.detach()) == 0.25


# ---- heads -----------------------------------------------------------------------------------------------------------


def nb_dense(parts: list[Tensor], hidden: Tensor, target: SparseRows) -> Tensor:
    """The NB loss written out in the dtype of its arguments, by the paper's formula."""
    weight, bias, weight2, bias2 = parts
    mean = functional.linear(hidden, weight, bias).exp().clamp(*MEAN_RANGE)
    theta = functional.softplus(functional.linear(hidden, weight2, bias2)).clamp(*DISPERSION_RANGE)
    y = target.dense().to(hidden.dtype)
    return -(
        theta * (theta.log() - (theta + mean).log())
        + y * (mean.log() - (theta + mean).log())
        + torch.lgamma(y + theta)
        - torch.lgamma(y + 1)
        - torch.lgamma(theta)
    ).sum()


def logits_dense(parts: list[Tensor], hidden: Tensor, target: SparseRows) -> Tensor:
    weight, bias = parts
    if hidden.ndim == 2:
        return functional.linear(hidden, weight, bias)
    spans = pairwise(target.bounds)
    return torch.cat([functional.linear(hidden[:, k], weight[a:b], bias[a:b]) for k, (a, b) in enumerate(spans)], dim=1)


def bernoulli_dense(parts: list[Tensor], hidden: Tensor, target: SparseRows) -> Tensor:
    z = logits_dense(parts, hidden, target)
    return functional.binary_cross_entropy_with_logits(z, target.dense().to(z.dtype), reduction="sum")


def focal_dense(parts: list[Tensor], hidden: Tensor, target: SparseRows) -> Tensor:
    p, y = torch.sigmoid(logits_dense(parts, hidden, target)), target.dense().to(hidden.dtype)
    return -(0.93 * y * (1 - p) ** 2 * p.log() + 0.07 * (1 - y) * p**2 * (1 - p).log()).sum()


BOUNDS = (0, 12, 12, 13, 40)  # an empty chromosome, and one with one peak
HEADS = {
    "nb": (lambda: CountHead(6, 40), nb_dense, (9, 6), (0, 12, 40)),
    "bernoulli": (lambda: OpenHead(BOUNDS, 6, per_block=False), bernoulli_dense, (9, 6), BOUNDS),
    "bernoulli_by_chromosome": (lambda: OpenHead(BOUNDS, 6, per_block=True), bernoulli_dense, (9, 4, 6), BOUNDS),
    "focal": (lambda: OpenHead(BOUNDS, 6, per_block=False, loss=Focal().block()), focal_dense, (9, 6), BOUNDS),
    "focal_by_chromosome": (
        lambda: OpenHead(BOUNDS, 6, per_block=True, loss=Focal().block()),
        focal_dense,
        (9, 4, 6),
        BOUNDS,
    ),
}


def head_and_target(name: str, *, scale: float = 1.0, density: float = 0.3, seed: int = 0):
    build, dense, shape, bounds = HEADS[name]
    generator = torch.Generator().manual_seed(seed)
    head = build()
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    hidden = (torch.randn(shape, generator=generator) * scale).requires_grad_()
    target = sparse_rows(matrix(shape[0], 40, density=density, seed=seed), bounds, binary=name != "nb")
    return head, dense, hidden, target


@pytest.mark.parametrize("density", [0.3, 0.0])
@pytest.mark.parametrize("name", HEADS)
def test_a_blockwise_loss_is_the_dense_formula_in_float64(name, density):
    head, dense, hidden, target = head_and_target(name, density=density)
    loss = head.loss(hidden, target)
    (3 * loss).backward()
    leaves = [p.detach().double().requires_grad_() for p in (hidden, *head.parameters())]
    expected = dense(leaves[1:], leaves[0], target)
    (3 * expected).backward()
    # Outputs are float32: 6e-8 of each of 360 entries.
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=2e-6)
    for mine, its in zip((hidden, *head.parameters()), leaves):
        torch.testing.assert_close(mine.grad.double(), its.grad, rtol=1e-4, atol=2e-4)


def test_the_nb_gradient_stops_where_a_clamp_holds():
    head = CountHead(1, 6)
    head.mean.weight.data[:, 0] = torch.tensor([-20.0, 0.5, 15.0, 100.0, -200.0, 1.0])  # logs of the mean
    head.dispersion.weight.data[:, 0] = torch.tensor([0.5, -20.0, 2000.0, 0.0, 1.0, 3.0])
    head.mean.bias.data.zero_()
    head.dispersion.bias.data.zero_()
    target = sparse_rows(
        sparse.csr_matrix(np.array([[0, 2.5, 0, 1, 3, 0], [1, 0, 7.25, 0, 0, 2]], np.float32)), (0, 4, 6)
    )
    loss = head.loss(torch.ones(2, 1), target)
    loss.backward()
    leaves = [p.detach().double().requires_grad_() for p in head.parameters()]
    expected = nb_dense(leaves, torch.ones(2, 1, dtype=torch.float64), target)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    held = torch.tensor([True, False, True, True, True, False])
    assert (head.mean.weight.grad[:, 0] == 0).tolist() == held.tolist()
    assert (head.dispersion.weight.grad[[1, 2], 0] == 0).all()
    for parameter, leaf in zip(head.parameters(), leaves):
        finite = torch.nan_to_num(leaf.grad)  # of exp, autograd makes 0 * inf
        torch.testing.assert_close(parameter.grad.double(), finite, rtol=1e-3, atol=1e-3)


def test_the_nb_gradient_of_rare_genes_keeps_its_digits():
    """Where mean << dispersion, the gradient for the dispersion is a difference of nearly equal numbers."""
    head = CountHead(1, 4)
    head.mean.weight.data[:, 0] = torch.tensor([-3.0, -5.0, -7.0, -9.0])
    head.dispersion.weight.data[:, 0] = torch.tensor([0.5, 1.0, 3.0, 10.0])
    for layer in (head.mean, head.dispersion):
        layer.bias.data.zero_()
    target = sparse_rows(sparse.csr_matrix((50, 4), dtype=np.float32), (0, 4))
    head.loss(torch.ones(50, 1), target).backward()
    leaves = [p.detach().double().requires_grad_() for p in head.parameters()]
    nb_dense(leaves, torch.ones(50, 1, dtype=torch.float64), target).backward()
    for parameter, leaf in zip(head.parameters(), leaves):
        torch.testing.assert_close(parameter.grad.double(), leaf.grad, rtol=0.02, atol=1e-12)


@pytest.mark.parametrize("name", ["bernoulli", "bernoulli_by_chromosome", "focal"])
def test_a_loss_of_large_log_odds_is_finite_and_right(name):
    head, _, hidden, target = head_and_target(name, scale=400.0)
    loss = head.loss(hidden, target)
    loss.backward()
    z = head.logits(hidden, slice(None)).detach()
    assert float(z.max()) > 150 > -150 > float(z.min())
    y = target.dense()
    if name == "focal":
        each = focal_loss(y, logits=z, gamma=2.0, positive_weight=0.93, negative_weight=0.07)
    else:
        each = -bernoulli_log_prob(y, logits=z)
        slope = torch.sigmoid(z) - y
        torch.testing.assert_close(head.bias.grad, slope.sum(dim=0), rtol=1e-5, atol=1e-4)
    assert float(loss.detach()) == pytest.approx(float(each.double().sum()), rel=1e-5)
    assert all(torch.isfinite(p.grad).all() for p in (hidden, *head.parameters()))


def test_the_gradient_of_rarely_open_peaks_keeps_its_digits():
    head = OpenHead((0, 4), 1, per_block=False)
    head.weight.data[:, 0] = torch.tensor([-6.0, -10.0, -14.0, -18.0])
    head.bias.data.zero_()
    head.loss(
        torch.ones(1, 1), sparse_rows(sparse.csr_matrix((1, 4), dtype=np.float32), (0, 4), binary=True)
    ).backward()
    torch.testing.assert_close(head.bias.grad, torch.sigmoid(head.weight.detach()[:, 0]), rtol=1e-6, atol=0)


def test_a_loss_that_is_not_finite_says_so():
    head, _, hidden, target = head_and_target("bernoulli")
    for value in (math.inf, math.nan):
        with torch.no_grad():
            assert not math.isfinite(float(head.loss(torch.full_like(hidden, value), target)))


@pytest.mark.parametrize("name", HEADS)
def test_no_gradient_is_worked_out_that_nobody_asked_for(name, monkeypatch):
    from translate import heads

    asked = []
    for of in ("nb_block", "bernoulli_block", "focal_block"):

        def spy(outputs, block, wanted, inner, **options):
            asked.append(wanted)
            return inner(outputs, block, wanted, **options)

        monkeypatch.setattr(heads, of, partial(spy, inner=getattr(heads, of)))
    head, _, hidden, target = head_and_target(name)
    with torch.no_grad():
        judged = head.loss(hidden, target)
    assert not judged.requires_grad
    assert asked
    assert not any(asked)
    frozen = head.requires_grad_(False).loss(hidden.detach(), target)
    assert not any(asked)
    assert float(frozen) == float(judged) == float(head.requires_grad_(True).loss(hidden, target).detach())
    assert asked[-1]


@pytest.mark.parametrize("name", HEADS)
def test_under_bf16_a_loss_keeps_two_digits_and_sums_in_float32(name):
    head, _, hidden, target = head_and_target(name)
    exact = head.loss(hidden, target)
    exact.backward()
    grads = [p.grad.clone() for p in (hidden, *head.parameters())]
    for p in (hidden, *head.parameters()):
        p.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head.loss(hidden, target)
    rough.backward()
    assert rough.dtype == torch.float32
    assert float(rough.detach()) == pytest.approx(float(exact.detach()), rel=0.02)
    for p, its in zip((hidden, *head.parameters()), grads):
        assert p.grad.dtype == torch.float32
        assert float((p.grad - its).norm()) < 0.03 * float(its.norm()) + 1e-6


@pytest.mark.parametrize("per_block", [False, True])
def test_log_odds_of_a_run_of_peaks_are_those_of_all_peaks(per_block):
    head = OpenHead(BOUNDS, 6, per_block=per_block, bias=-2.0)
    hidden = torch.randn(5, *((4,) if per_block else ()), 6, generator=torch.Generator().manual_seed(0))
    full = head.logits(hidden, slice(None))
    assert full.shape == (5, 40)
    for a, b in ((0, 40), (3, 9), (11, 14), (12, 13), (39, 40), (7, 7)):
        torch.testing.assert_close(head.logits(hidden, slice(a, b)), full[:, a:b])


def test_peaks_are_asked_in_runs():
    with pytest.raises(ValueError, match="runs"):
        OpenHead(BOUNDS, 6, per_block=True).logits(torch.zeros(2, 4, 6), slice(0, 40, 2))


def test_a_head_by_chromosome_refuses_other_chromosomes():
    head, _, hidden, _ = head_and_target("bernoulli_by_chromosome")
    with pytest.raises(ValueError, match="blocks"):
        head.loss(hidden, sparse_rows(matrix(9, 40), (0, 12, 12, 14, 40), binary=True))


def test_means_of_some_genes_are_those_of_all_genes_and_stay_in_range():
    head = CountHead(6, 40)
    hidden = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    full = head.predict(hidden, slice(None))
    torch.testing.assert_close(head.predict(hidden, slice(8, 31)), full[:, 8:31])
    torch.testing.assert_close(full, functional.linear(hidden, head.mean.weight, head.mean.bias).exp())
    far = (hidden * 1e4).requires_grad_()
    held = head.predict(far, slice(None))
    assert float(held.detach().min()) == pytest.approx(MEAN_RANGE[0], rel=1e-5)
    assert float(held.detach().max()) == pytest.approx(MEAN_RANGE[1], rel=1e-5)
    held.sum().backward()
    assert torch.isfinite(far.grad).all()  # of exp(1e4) autograd would make 0 * inf


def test_the_nb_head_minimises_the_likelihood_of_the_core():
    head, _, hidden, target = head_and_target("nb")
    mean = head.predict(hidden, slice(None))
    theta = functional.softplus(head.dispersion(hidden)).clamp(*DISPERSION_RANGE)
    each = nb_log_prob(target.dense(), mean=mean, dispersion=theta)
    assert float(head.loss(hidden, target).detach()) == pytest.approx(-float(each.detach().double().sum()), rel=1e-6)


# ---- sizes -----------------------------------------------------------------------------------------------------------


def inputs_of(n_genes: int, n_peaks: int, n_chroms: int, n_proteins: int = 0) -> dict:
    """Fitted inputs of a given size, without data."""
    from translate.preprocess import ProteinInput

    zeros = np.zeros(n_genes, np.float32)
    genes = pd.DataFrame(index=pd.RangeIndex(n_genes))
    chrom = np.sort(np.arange(n_peaks) % n_chroms).astype(np.int32)
    start = np.arange(n_peaks, dtype=np.int64) * 10
    regions = Regions(tuple(f"chr{i + 1}" for i in range(n_chroms)), chrom, start, start + 5)
    found = {
        "rna": RnaInput(RnaRecipe(), genes, 1.0, zeros, zeros + 1, -np.inf, np.inf),
        "atac": AtacInput(AtacRecipe(), regions, None),
    }
    return found | ({"protein": ProteinInput(pd.DataFrame(index=pd.RangeIndex(n_proteins)))} if n_proteins else {})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def babel_counts(g: int, p: int, c: int, d: int) -> dict[str, int]:
    return {
        "rna_encoder": 64 * g + 67 * d + 194,
        "atac_encoder": 32 * p + 658 * c + 16 * c * d + 3 * d + 1,
        "rna_decoder": 130 * g + 64 * d + 193,
        "atac_decoder": 33 * p + (16 * d + 657) * c + 1,
    }


@pytest.mark.parametrize(("g", "p", "c", "d"), [(3000, 16_054, 22, 16), (34_861, 223_897, 22, 16), (50, 70, 3, 8)])
def test_babel_has_the_papers_layers(g, p, c, d):
    with torch.device("meta"):
        system = Babel(BabelConfig(latent=d), inputs_of(g, p, c, 17))
    expected = babel_counts(g, p, c, d)
    assert {name: count(system.get_submodule(name)) for name in expected} == expected
    assert count(system.protein_decoder) == (64 * d + 64) + 128 + 1 + 64 * 17 + 17
    shapes = {name: tuple(value.shape) for name, value in system.state_dict().items()}
    assert shapes["atac_encoder.first.weight"] == (p, 32)
    assert shapes["atac_encoder.second.weight"] == (c, 32, 16)
    assert shapes["atac_encoder.latent.0.weight"] == (d, 16 * c)
    assert shapes["rna_encoder.first.weight"] == (g, 64)
    assert shapes["rna_decoder.head.mean.weight"] == shapes["rna_decoder.head.dispersion.weight"] == (g, 64)
    assert shapes["atac_decoder.second.weight"] == (c, 16, 32)
    assert shapes["atac_decoder.head.weight"] == (p, 32)
    if (g, p) == (3000, 16_054):
        assert list(expected.values())[:2] == [193_266, 533_885]


def test_separate_babels_are_four_networks():
    with torch.device("meta"):
        system = Babel(BabelConfig(latent=16, shared=False), inputs_of(300, 700, 5))
    assert len(list(system.children())) == 8
    assert count(system) == 2 * sum(babel_counts(300, 700, 5, 16).values())
    assert system.spaces() == ()


@pytest.mark.parametrize(("g", "p"), [(3000, 16_054), (34_861, 223_897)])
def test_scmog_has_the_papers_layers(g, p):
    with torch.device("meta"):
        system = Scmog(ScmogConfig(latent=16), inputs_of(g, p, 22, 17))
    to_atac = count(system.rna_encoder_to_atac) + count(system.atac_decoder)
    to_rna = count(system.atac_encoder_to_rna) + count(system.rna_decoder)
    assert to_atac == 256 * g + 513 * p + 53_936
    assert to_rna == (771 - 257) * g + 512 * p + 53_936  # without the third output layer, which nothing reads
    assert count(system.atac_critic) == 1024 * p + 280_929
    assert count(system.rna_critic) == 1024 * g + 280_929
    assert count(system.protein_critic) == (256 * 17 + 256) + (64 * 256 + 64) + 65
    assert system.atac_decoder.head.weight.shape == (p, 512)
    if (g, p) == (3000, 16_054):
        assert (to_atac, to_rna + 257 * g) == (9_057_638, 10_586_584)
        assert (count(system.atac_critic), count(system.rna_critic)) == (16_720_225, 3_352_929)
    assert all(
        name in ("rna_critic", "atac_critic", "protein_critic") or "_critic" not in name
        for name, _ in system.named_children()
    )


def test_babel_runs_at_human_size():
    """Three cells of 34,861 genes and 223,897 peaks: a step of the real shapes."""
    from translate.batches import Batch, RnaCells
    from translate.feed import gene_bounds, peak_bounds
    from translate.phases import Turn

    inputs = inputs_of(34_861, 223_897, 22)
    system = Babel(BabelConfig(input_dropout=0.0), inputs)
    counts = sparse.random(3, 34_861, density=0.05, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    opened = sparse.random(3, 223_897, density=0.03, format="csr", dtype=np.float32, rng=np.random.default_rng(1))
    rna = RnaCells(
        sparse_rows(counts, (0, 34_861)), sparse_rows(counts, gene_bounds(34_861)), torch.ones(counts.shape[0])
    )
    batch = Batch(np.arange(3), 3, rna, sparse_rows(opened, peak_bounds(inputs), binary=True))
    terms = system.losses(batch, Turn("translate", "all", 0, 0))
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in system.parameters())
    # At first mean and dispersion are about 1 and log-odds about 0: one nat, and beta ln 2.
    assert float(terms["rna_to_atac"].detach()) == pytest.approx(1.33 * math.log(2), rel=0.2)
    assert {name: value.shape for name, value in terms.items()} == dict.fromkeys(terms, ())

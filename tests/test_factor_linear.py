"""Output layers whose weights are a table times a shared matrix, and the heads that have one."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn.functional import linear

from expresser.errors import InputError
from translate.autoencoders import ExpressionDecoder, ExpressionHead
from translate.batches import SparseRows, sparse_rows
from translate.blocks import xavier_linear
from translate.factor_linear import FactorLinear, shrink, standardised
from translate.heads import START, CountHead, shrinkage
from translate.zinb_head import ZinbHead

N_IN, N_OUT, DIMS = 6, 40, 8
SOME = torch.arange(N_OUT) % 3 > 0
KNOWN = {"all": torch.ones(N_OUT, dtype=torch.bool), "none": torch.zeros(N_OUT, dtype=torch.bool), "some": SOME}
LIBRARY, CODES = torch.linspace(20.0, 60.0, 9), torch.arange(9) % 2

Head = CountHead | ZinbHead | ExpressionHead


def table_of(known: Tensor, seed: int = 5) -> Tensor:
    """As a gene table is: far from centred, most of it in few directions."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(int(known.sum()), DIMS, generator=generator) * torch.logspace(1, -1, DIMS) + 3.0


def layer_of(known: Tensor, seed: int = 0, n_in: int = N_IN) -> FactorLinear:
    torch.manual_seed(seed)
    layer = FactorLinear(n_in, len(known), DIMS, known)
    if known.any():
        layer.take_table(table_of(known))
    return layer


def ordinary(layer: FactorLinear) -> nn.Linear:
    """With the same effective weight."""
    same = nn.Linear(layer.in_features, layer.out_features)
    same.weight.data, same.bias.data = layer.weight.detach().clone(), layer.bias.detach().clone()
    return same


def zinb_loss(head: ZinbHead, hidden: Tensor, target: SparseRows) -> Tensor:
    return head.loss(hidden, target, library=LIBRARY, codes=CODES)


def zinb_mean(head: ZinbHead, hidden: Tensor, genes: slice) -> Tensor:
    return head.predict(hidden, genes, library=30.0, inflated=True)


HEADS: dict[str, tuple[Callable, Callable, Callable, Callable]] = {
    "count": (
        lambda mean: CountHead(N_IN, N_OUT, mean=mean),
        CountHead.loss,
        CountHead.predict,
        lambda head: head.mean,
    ),
    "zinb": (lambda scale: ZinbHead(N_IN, N_OUT, 2, scale=scale), zinb_loss, zinb_mean, lambda head: head.scale),
    "expression": (
        lambda output: ExpressionHead(N_IN, N_OUT, output),
        ExpressionHead.loss,
        ExpressionHead.predict,
        lambda head: head.layer,
    ),
}


def made(name: str, layer: FactorLinear | nn.Linear) -> Head:
    torch.manual_seed(9)  # the same of what the layer is not
    return HEADS[name][0](layer)


def data() -> tuple[Tensor, SparseRows]:
    generator = torch.Generator().manual_seed(1)
    counts = torch.poisson(torch.rand(9, N_OUT, generator=generator) * 2, generator=generator)
    return torch.randn(9, N_IN, generator=generator), sparse_rows(sparse.csr_matrix(counts.numpy()), (0, 7, 7, N_OUT))


# ---- the layer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_the_weight_is_each_outputs_row_times_the_shared_matrix(known: Tensor):
    layer = layer_of(known)
    rows = torch.empty(N_OUT, DIMS)
    rows[known], rows[~known] = layer.table, layer.fresh.detach()
    torch.testing.assert_close(layer.weight.detach(), rows @ layer.mix.detach())
    x = torch.randn(3, N_IN)
    torch.testing.assert_close(layer(x), linear(x, rows @ layer.mix, layer.bias))
    for outputs in (slice(None), slice(5, 23), slice(-7, None), slice(1, 2), slice(9, 9), slice(12, 3), slice(30, 99)):
        torch.testing.assert_close(layer.part(outputs), layer.weight[outputs])
    with pytest.raises(ValueError, match="steps of 2"):
        layer.part(slice(0, 8, 2))


def test_rows_are_the_standardised_table_of_length_one():
    table = table_of(SOME)
    even = standardised(table)
    torch.testing.assert_close(even.mean(dim=0), torch.zeros(DIMS), rtol=0, atol=1e-5)
    assert float(even.square().mean()) == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(even * (table - table.mean(0)).square().mean().sqrt(), table - table.mean(0))
    rows = layer_of(SOME).table
    torch.testing.assert_close(rows, even / DIMS**0.5)
    assert float(rows.square().sum(dim=1).mean()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
@pytest.mark.parametrize("n_in", [1, 64])
def test_weights_start_at_the_size_of_xaviers_and_shrink_with_the_matrix(known: Tensor, n_in: int):
    xavier = (2 / (n_in + N_OUT)) ** 0.5
    torch.manual_seed(0)
    before = FactorLinear(n_in, N_OUT, DIMS, known)
    after = layer_of(known, n_in=n_in)
    for layer in (before, after):
        assert float(layer.weight.detach().square().mean().sqrt()) == pytest.approx(xavier, rel=1e-5)
        assert float(layer.bias.detach().abs().max()) <= n_in**-0.5
    weight, plain = after.weight.detach(), ordinary(after)
    for one in (after, plain):
        shrink(one, 0.25)
        torch.testing.assert_close(one.weight.detach(), weight * 0.25)


def test_the_first_steps_of_adam_move_outputs_as_those_of_an_ordinary_layer():
    torch.manual_seed(0)
    known = torch.arange(1000) % 10 > 0
    layer = FactorLinear(32, 1000, 128, known)
    layer.take_table(torch.randn(900, 128) * torch.logspace(0, -1, 128))
    plain = ordinary(layer)
    truth, moved = torch.randn(1000, 32) * 0.1, []
    for one in (layer, plain):
        optimizer = torch.optim.Adam(one.parameters(), lr=1e-3)
        before = one.weight.detach().clone()
        (one.weight - truth).square().sum().backward()
        optimizer.step()
        moved.append((one.weight.detach() - before).square().mean(dim=1).sqrt())
    ratio = moved[0] / moved[1]
    assert 0.5 < float(ratio[known].median()) < 2
    assert 0.5 < float(ratio[~known].median()) < 2


def test_what_some_outputs_teach_holds_for_known_outputs_that_taught_nothing():
    """The weights to be found are linear in the table: a third of its outputs suffices for all."""
    known = KNOWN["all"]
    layer = layer_of(known)
    truth = layer.table @ torch.randn(DIMS, N_IN, generator=torch.Generator().manual_seed(3))
    taught = torch.arange(N_OUT) % 3 == 0
    optimizer = torch.optim.LBFGS([layer.mix], max_iter=200, line_search_fn="strong_wolfe")

    def error() -> Tensor:
        optimizer.zero_grad()
        loss = (layer.weight - truth)[taught].square().sum()
        loss.backward()
        return loss

    optimizer.step(error)
    torch.testing.assert_close(layer.weight.detach()[~taught], truth[~taught], rtol=0, atol=1e-2)
    assert float(truth[~taught].square().mean().sqrt()) > 0.3


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_a_layer_comes_back_from_its_state_and_the_generator_alone(known: Tensor):
    layer = layer_of(known)
    other = FactorLinear(N_IN, N_OUT, DIMS, known)
    assert not torch.equal(other.weight, layer.weight)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(5, N_IN)
    assert torch.equal(other(x), layer(x))
    assert list(layer.state_dict()) == ["fresh", "mix", "bias", "table"]
    again = layer_of(known)
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), again.state_dict().values()))


def test_the_weight_is_float32_where_products_are_bfloat16():
    layer = layer_of(SOME)
    expected = layer.weight.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.weight.detach(), expected)
        assert layer(torch.randn(3, N_IN)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (torch.randn(20, DIMS), r"20 genes in 8 numbers.*26 in 8"),
        (torch.randn(26, DIMS + 1), r"26 genes in 9 numbers.*26 in 8"),
        (torch.full((26, DIMS), 0.1), "nothing tells the genes apart"),
        (torch.full((26, DIMS), torch.nan), "differ by nan"),
    ],
)
def test_a_table_that_is_not_the_layers_or_says_nothing_is_refused(table: Tensor, says: str):
    layer = layer_of(SOME)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(InputError, match=says):
        layer.take_table(table)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_one_gene_has_nothing_to_differ_from_and_none_needs_no_table():
    with pytest.raises(InputError, match="more than one gene"):
        standardised(torch.randn(1, DIMS))
    layer = layer_of(KNOWN["none"])
    before = layer.weight.detach().clone()
    layer.take_table(torch.empty(0, DIMS))
    torch.testing.assert_close(layer.weight.detach(), before)


def test_layers_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"3 outputs .* 4"):
        FactorLinear(N_IN, 4, DIMS, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="from 6 to 40 was given for 6 to 41"):
        CountHead(N_IN, N_OUT + 1, mean=layer_of(SOME))


# ---- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_an_ordinary_one_with_the_same_weight_and_gradients_follow_the_chain_rule(name: str, known: Tensor):
    _, loss_of, predicted, layer_in = HEADS[name]
    layer = layer_of(known)
    head, plain = made(name, layer), made(name, ordinary(layer))
    assert layer_in(head) is layer
    hidden, target = data()
    inputs = [hidden.clone().requires_grad_() for _ in range(2)]
    losses = [loss_of(one, x, target) for one, x in zip((head, plain), inputs)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        (3 * loss).backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    dense = layer_in(plain)
    rows = torch.empty(N_OUT, DIMS)
    rows[known], rows[~known] = layer.table, layer.fresh.detach()
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad)
    torch.testing.assert_close(layer.mix.grad, rows.T @ dense.weight.grad, rtol=1e-4, atol=1e-3)
    if not known.all():
        slopes = dense.weight.grad[~known] @ layer.mix.detach().T
        torch.testing.assert_close(layer.fresh.grad, slopes, rtol=1e-4, atol=1e-3)
    others = [{n: p.grad for n, p in one.named_parameters() if n.startswith("d")} for one in (head, plain)]
    for key in others[0]:  # dispersion, dropout
        torch.testing.assert_close(others[0][key], others[1][key])
    with torch.no_grad():
        for genes in (slice(None), slice(4, 31)):
            torch.testing.assert_close(predicted(head, hidden, genes), predicted(plain, hidden, genes))
        torch.testing.assert_close(loss_of(head, hidden, target), losses[0])


@pytest.mark.parametrize("name", HEADS)
def test_priors_and_starts_act_on_the_effective_weight(name: str):
    _, _, _, layer_in = HEADS[name]
    layer = layer_of(SOME)
    weight = layer.weight.detach()
    head, plain = made(name, layer), made(name, ordinary(layer))
    torch.testing.assert_close(head.prior(0.5), plain.prior(0.5))
    head.prior(0.5).backward()
    leaf = weight.clone().requires_grad_()
    shrinkage(leaf, 0.5).backward()
    torch.testing.assert_close(layer.fresh.grad, (leaf.grad @ layer.mix.detach().T)[~SOME])
    mean = torch.linspace(0.0, 4.0, N_OUT)
    for one in (head, plain):
        one.start_at(mean)
        torch.testing.assert_close(layer_in(one).weight.detach(), weight * START)
    torch.testing.assert_close(layer.bias, layer_in(plain).bias)
    at = mean if name == "expression" else mean.clamp_min(1e-4).log()
    torch.testing.assert_close(layer.bias.detach(), at)


@pytest.mark.parametrize("name", HEADS)
def test_known_rows_never_move_while_learned_ones_and_every_weight_do(name: str):
    _, loss_of, _, _ = HEADS[name]
    layer = layer_of(SOME)
    head = made(name, layer)
    hidden, target = data()
    before, weight = {k: v.clone() for k, v in layer.state_dict().items()}, layer.weight.detach().clone()
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2, weight_decay=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_of(head, hidden, target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] * 0.98
    assert torch.equal(layer.table, before["table"])
    for key in ("fresh", "mix", "bias"):
        assert ((layer.state_dict()[key] - before[key]).abs() > 1e-4).float().mean() > 0.9
    assert ((layer.weight.detach() - weight).abs().amax(dim=1) > 1e-4).all()


@pytest.mark.parametrize("name", HEADS)
def test_a_frozen_head_passes_the_same_gradient_down(name: str):
    _, loss_of, _, _ = HEADS[name]
    hidden, target = data()
    inputs = [hidden.clone().requires_grad_() for _ in range(2)]
    heads = [made(name, layer_of(SOME)) for _ in range(2)]
    heads[1].requires_grad_(False)
    for head, x in zip(heads, inputs):
        loss_of(head, x, target).backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    assert all(p.grad is None for p in heads[1].parameters())


def test_heads_without_a_table_keep_the_names_and_the_numbers_of_saved_models():
    names = {
        "count": ["mean.weight", "mean.bias", "dispersion.weight", "dispersion.bias"],
        "zinb": ["dispersion", "scale.weight", "scale.bias", "dropout.weight", "dropout.bias"],
        "expression": ["weight", "bias"],
    }
    for name, keys in names.items():
        head = made(name, None)
        assert list(head.state_dict()) == keys
        torch.manual_seed(9)
        drawn = xavier_linear(N_IN, N_OUT)
        first = HEADS[name][3](head)
        assert torch.equal(first.weight, drawn.weight)
        assert torch.equal(first.bias, drawn.bias)
    own = ExpressionHead(N_IN, N_OUT)
    x = torch.randn(4, N_IN)
    assert torch.equal(own(x), linear(x, own.weight, own.bias))


def test_a_decoder_of_expression_hands_its_head_the_layer():
    layer = layer_of(SOME)
    decoder = ExpressionDecoder(3, 0, (5, N_IN), N_OUT, output=layer)
    assert decoder.head.layer is layer
    assert {key for key in decoder.state_dict() if key.startswith("head.")} == {
        f"head.output.{key}" for key in ("fresh", "mix", "bias", "table")
    }
    hidden, target = data()
    expected = (decoder.head(hidden) - torch.from_numpy(np.log1p(target.dense().numpy()))).square().sum()
    torch.testing.assert_close(decoder.head.loss(hidden, target), expected, rtol=1e-4, atol=1e-3)

"""What a step costs by formula is what torch counts; rates are quotients of what was added."""

import time

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from expresser.model import layers
from expresser.model.cells import Cells
from expresser.model.configuration import ExpresserConfig, ExpresserWithoutDecoderConfig
from expresser.model.modeling import ExpresserModel, ExpresserWithoutDecoder
from expresser.model.ragged import Ragged
from pretrain.config import ObjectiveConfig
from pretrain.objective import Objective, squared_error, targets
from pretrain.rates import Rates, matmul_ceiling, mfu
from pretrain.throughput import cost

_SIZE = {"vocab_size": 60, "d_model": 24, "n_layers": 2, "n_heads": 3, "n_bins": 5}


def plain_attention(q: Tensor, k: Tensor, v: Tensor, *, query_rows: Ragged, key_rows: Ragged, **_) -> Tensor:
    """Two matrix products and a softmax, rows of one length: the counter sees every product whatever kernel the model uses."""
    q, k, v = (
        x.unflatten(0, (rows.n_rows, -1)).transpose(1, 2) for x, rows in ((q, query_rows), (k, key_rows), (v, key_rows))
    )
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(3)
    return (weights @ v).transpose(1, 2).flatten(0, 1).flatten(1)


def some_cells(n: int, p: int) -> Cells:
    """`n` cells of `p` genes each, so that no row is padded."""
    draw = torch.Generator().manual_seed(0)
    genes = torch.cat([torch.randperm(60, generator=draw)[:p].sort().values for _ in range(n)])
    counts = torch.randint(1, 9, (n * p,), generator=draw)
    lengths = torch.full((n,), p)
    return Cells.from_counts(genes, counts, lengths, counts.view(n, p).sum(1), torch.arange(n))


_DEFAULT = {"head": "truncated", "value_input": "bin_residual"}


@pytest.mark.parametrize("masking", ["all_folds", "single"])
@pytest.mark.parametrize(
    ("model", "config"),
    [
        (ExpresserModel, ExpresserConfig(**_SIZE, **_DEFAULT)),
        (ExpresserModel, ExpresserConfig(**_SIZE, head="paper", norm_first=False)),
        (ExpresserModel, ExpresserConfig(**_SIZE, head="additive", decoder_layers=2, decoder_residual=True)),
        (ExpresserWithoutDecoder, ExpresserWithoutDecoderConfig(**_SIZE, head="bias", decoder_layers=2)),
    ],
    ids=["default", "paper", "two_decoder_layers", "without_decoder"],
)
def test_the_formula_counts_what_torch_counts_forward_and_backward(monkeypatch, masking, model, config):
    monkeypatch.setattr(layers, "attend", plain_attention)
    cells, objective = some_cells(6, 40), Objective.of(ObjectiveConfig(masking=masking))
    views, network = objective.views(cells), model(config)
    expected = cost(config, np.full(6, 40), objective.n_folds, objective.share)
    with FlopCounterMode(display=False) as counter:
        loss = squared_error(network(cells, views).prediction, truth=targets(cells, views)).sum()
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    total = forward + counter.get_total_flops()
    # Left out by the docstring: W^V on the table of expression tokens and the residual's direction, once a batch.
    tables = config.decoder_layers * (config.n_bins + 1) * 2 * config.d_model**2 if model is ExpresserModel else 0
    assert 0 <= forward - expected.flops / 3 <= tables
    assert 0 <= total - expected.flops <= 3 * tables
    assert total == pytest.approx(expected.flops, rel=0.02)
    assert expected.tokens == 240
    assert expected.targets == views.query.numel()


def test_rates_are_quotients_of_what_was_added():
    rates = Rates(ceiling=50.0)
    rates.add(cells=8, tokens=800, targets=200, flops=60.0, seconds=1.5)
    rates.waited(0.5)
    rates.add(cells=8, tokens=1000, targets=250, flops=90.0, seconds=0.5)
    assert rates.rates(world=3) == {
        "cells_per_s": 8.0,
        "tokens_per_s": 900.0,
        "targets_per_s": 225.0,
        "flops_per_s": 75.0,
        "mfu": 0.5,
        "wait_share": 0.25,
    }


def test_rates_start_anew_after_each_line_and_know_no_mfu_without_a_ceiling():
    rates = Rates()
    rates.add(cells=8, tokens=800, targets=200, flops=60.0, seconds=2.0)
    rates.waited(1.0)
    rates.rates()
    rates.add(cells=3, tokens=30, targets=30, flops=6.0, seconds=1.0)
    found = rates.rates()
    assert (found["cells_per_s"], found["wait_share"], found["mfu"]) == (3.0, 0.0, None)
    assert mfu(10.0, world=2, ceiling=10.0) == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ceiling_is_no_lower_than_a_product_timed_by_hand_and_draws_nothing(dtype):
    state = torch.random.get_rng_state()
    began = time.perf_counter()
    ceiling = matmul_ceiling(torch.device("cpu"), dtype)
    assert time.perf_counter() - began < 10  # about 0.4 s; a machine shared by many may take longer
    assert torch.equal(torch.random.get_rng_state(), state)
    a = torch.ones(512, 512, dtype=dtype)
    a @ a
    began = time.perf_counter()
    a @ a
    by_hand = 2 * 512**3 / (time.perf_counter() - began)
    assert ceiling > by_hand / 5

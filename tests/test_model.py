"""Laws of the Expression Transformer: what a cell's result may depend on, and what saving must keep."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModel

from expresser.errors import InputError
from expresser.model.cells import Cells, Views, all_folds, cell_key, single_mask
from expresser.model.configuration import ExpresserConfig, ExpresserWithoutDecoderConfig
from expresser.model.keyed import keyed_rank, splitmix64
from expresser.model.modeling import ExpresserModel, ExpresserWithoutDecoder
from expresser.model.ragged import Ragged
from pretrain.naive import NaiveExpresser

VOCAB = 60
SMALL = {"vocab_size": VOCAB, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_genes": 40}
VARIANTS = {
    "paper": {"head": "paper", "cell_scale": "cell", "norm_first": False},
    "query": {"head": "query"},
    "bias": {"head": "bias"},
    "additive": {"head": "additive"},
    "truncated": {"head": "truncated"},
    "truncated_residual": {"head": "truncated", "value_input": "bin_residual"},
    "two_layers": {"head": "additive", "value_input": "bin_residual", "decoder_layers": 2, "decoder_residual": True},
}


def some_cells(lengths=(7, 12, 5, 30), seed=0, max_genes=None, key=None):
    generator = torch.Generator().manual_seed(seed)
    genes = [torch.randperm(VOCAB, generator=generator)[:n] for n in lengths]
    counts = [torch.randint(1, 9, (n,), generator=generator) for n in lengths]
    return Cells.from_counts(
        torch.cat(genes),
        torch.cat(counts),
        torch.tensor(lengths),
        torch.stack([c.sum() for c in counts]),
        cell_key(3, torch.zeros(len(lengths), dtype=torch.long), torch.arange(len(lengths))) if key is None else key,
        max_genes=max_genes,
    )


def one_cell(cells, i):
    inside = cells.rows.row == i
    return Cells(
        genes=cells.genes[inside],
        values=cells.values[inside],
        rows=Ragged(cells.rows.lengths[i : i + 1]),
        key=cells.key[i : i + 1],
        rest_max=cells.rest_max[i : i + 1],
        total=cells.total[i : i + 1],
    )


def randomised(model):
    """Every weight random, also those that training starts at zero: a law that only holds at the start is none."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def variant(name):
    if name == "without_decoder":
        return randomised(ExpresserWithoutDecoder(ExpresserWithoutDecoderConfig(**SMALL, head="paper")))
    return randomised(ExpresserModel(ExpresserConfig(**SMALL, **VARIANTS[name])))


ALL = [*VARIANTS, "without_decoder"]


@pytest.mark.parametrize("name", ALL)
def test_a_cell_alone_equals_the_cell_in_a_batch(name):
    model, cells = variant(name), some_cells()
    together = model(cells, single_mask(cells, 0.25))
    at = 0
    for i in range(4):
        alone = one_cell(cells, i)
        views = single_mask(alone, 0.25)
        result = model(alone, views)
        n = views.query.numel()
        torch.testing.assert_close(together.prediction[at : at + n], result.prediction, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(together.contextual[cells.rows.row == i], result.contextual, atol=2e-5, rtol=2e-5)
        at += n


@pytest.mark.parametrize("name", ALL)
def test_permuted_cells_permute_the_output(name):
    model, lengths = variant(name), (9, 9, 14)
    cells = some_cells(lengths)
    order = [2, 0, 1]
    parts = [one_cell(cells, i) for i in order]
    moved = Cells(
        genes=torch.cat([p.genes for p in parts]),
        values=torch.cat([p.values for p in parts]),
        rows=Ragged(cells.rows.lengths[order]),
        key=cells.key[order],
        rest_max=cells.rest_max[order],
        total=cells.total[order],
    )
    first, second = all_folds(cells, 3), all_folds(moved, 3)
    a, b = model(cells, first).prediction, model(moved, second).prediction
    by_entry = {(i, int(g)): p for i, g, p in zip(cells.rows.row[first.query].tolist(), cells.genes[first.query], a)}
    for i, g, p in zip(moved.rows.row[second.query].tolist(), moved.genes[second.query], b):
        torch.testing.assert_close(p, by_entry[(order[i], int(g))], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_genes_have_no_order(name):
    model, cells = variant(name), one_cell(some_cells((20,)), 0)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5))
    moved = dataclasses.replace(cells, genes=cells.genes[order], values=cells.values[order])
    masked = torch.arange(20) < 5
    a = model(cells, Views.single(cells.rows, masked)).prediction
    b = model(moved, Views.single(cells.rows, masked[order])).prediction
    torch.testing.assert_close(a[order[order < 5]], b, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_every_fold_is_the_single_mask_path_gradients_included(name):
    model, cells = variant(name), some_cells()
    views = all_folds(cells, 4)
    fold_of = torch.full((cells.rows.n_entries,), -1)
    fold_of[views.query] = views.query_rows.row  # the number of the view stands for the fold
    together = model(cells, views).prediction
    weight = torch.randn(together.shape, generator=torch.Generator().manual_seed(0))
    (together * weight).sum().backward()
    of_folds = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    for number in range(views.query_rows.n_rows):
        masked = fold_of == number
        cell = int(views.cell[number])
        keep = cells.rows.row == cell
        alone = one_cell(cells, cell)
        single = Views.single(alone.rows, masked[keep])
        of_view = views.query_rows.row == number
        prediction = model(alone, single).prediction
        # Views.single lists queries by position, all_folds by fold and position: the same order inside one fold.
        torch.testing.assert_close(together[of_view], prediction, atol=2e-5, rtol=2e-5)
        (prediction * weight[of_view]).sum().backward()
    for name_, parameter in model.named_parameters():
        if name_ in of_folds:
            torch.testing.assert_close(of_folds[name_], parameter.grad, atol=3e-4, rtol=3e-4, msg=name_)


def test_hidden_values_do_not_reach_their_own_prediction():
    for name in [n for n in ALL if n not in ("paper", "without_decoder")]:  # there L is taken over the whole cell
        model, cells = variant(name), some_cells()
        masked = single_mask(cells, 0.25)
        changed = cells.values.clone()
        changed[masked.query] += 3.0
        a = model(cells, masked).prediction
        b = model(dataclasses.replace(cells, values=changed), masked).prediction
        assert torch.equal(a, b), name


def test_the_paper_scale_sees_the_masked_maximum_and_the_default_does_not():
    cells = one_cell(some_cells((10,)), 0)
    masked = torch.zeros(10, dtype=torch.bool)
    masked[cells.values.argmax()] = True
    views = Views.single(cells.rows, masked)
    literal, observed = variant("paper"), variant("additive")
    assert literal._scale(cells, views).item() == cells.values.max().item()
    assert observed._scale(cells, views).item() == cells.values[~masked].max().item()


@given(
    st.lists(st.floats(0.01, 9.0), min_size=1, max_size=30),
    st.integers(2, 60),
)
@settings(deadline=None)
def test_bins_are_equal_intervals_and_the_maximum_is_the_last(values, k):
    config = ExpresserConfig(**SMALL | {"n_bins": k})
    model = ExpresserModel(config)
    x = torch.tensor(values, dtype=torch.float32)
    largest = x.max().expand_as(x)
    bins = model._bins(x, largest)
    assert bins.min() >= 0
    assert bins[x.argmax()] == k - 1
    assert (bins.float() <= k * x / largest + 1e-3).all()
    assert (bins.float() + 1 >= k * x / largest - 1e-3).all()


@given(st.lists(st.integers(1, 25), min_size=1, max_size=6), st.integers(2, 5), st.integers(0, 2**40))
@settings(deadline=None)
def test_folds_ask_every_entry_once_and_never_show_a_query_to_itself(lengths, k, key):
    rows = Ragged(torch.tensor(lengths))
    genes = torch.cat([torch.arange(n) for n in lengths])
    keys = splitmix64(torch.arange(len(lengths)) + key)
    cells = Cells(
        genes=genes,
        values=torch.ones(rows.n_entries),
        rows=rows,
        key=keys,
        rest_max=torch.zeros(len(lengths)),
        total=torch.ones(len(lengths)),
    )
    views = all_folds(cells, k)
    expected = [i for i, row in enumerate(rows.row.tolist()) if lengths[row] > 1]
    assert sorted(views.query.tolist()) == expected
    for number in range(views.cell.numel()):
        asked = set(views.query[views.query_rows.row == number].tolist())
        seen = set(views.context[views.context_rows.row == number].tolist())
        cell = set(torch.nonzero(rows.row == views.cell[number]).squeeze(1).tolist())
        assert asked
        assert seen
        assert not asked & seen
        assert asked | seen == cell
    sizes = torch.bincount(views.cell * 100 + views.query_rows.lengths)  # folds of a cell differ by one gene at most
    assert sizes.sum() == views.cell.numel()
    for cell in views.cell.unique():
        of_cell = views.query_rows.lengths[views.cell == cell]
        assert of_cell.max() - of_cell.min() <= 1


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8))
@settings(deadline=None)
def test_padding_and_unpadding_are_inverse_and_transpose(lengths):
    rows = Ragged(torch.tensor(lengths))
    x = torch.randn(rows.n_entries, 3, dtype=torch.float64, requires_grad=True)
    padded = rows.pad(x)
    assert padded.shape == (len(lengths), max(lengths), 3)
    assert torch.equal(rows.unpad(padded), x)
    weight = torch.randn_like(padded)
    (padded * weight).sum().backward()
    assert torch.equal(x.grad, rows.unpad(weight))


def test_a_rank_is_a_function_of_key_and_gene_alone():
    rows = Ragged(torch.tensor([6, 4]))
    genes = torch.tensor([5, 3, 8, 1, 9, 2, 3, 5, 1, 8])
    rank = keyed_rank(rows, torch.tensor([77, 77]), genes, purpose=1)
    assert sorted(rank[:6].tolist()) == list(range(6))
    alone = keyed_rank(Ragged(torch.tensor([4])), torch.tensor([77]), genes[6:], purpose=1)
    assert torch.equal(rank[6:], alone)
    in_first = {int(g): int(r) for g, r in zip(genes[:6], rank[:6])}
    order = sorted([3, 5, 1, 8], key=in_first.__getitem__)
    assert order == [int(g) for g in genes[6:][rank[6:].argsort()]]
    assert not torch.equal(rank, keyed_rank(rows, torch.tensor([77, 77]), genes, purpose=2))


def test_splitmix64_gives_the_published_sequence():
    # The first outputs of SplitMix64 seeded with 1234567 (state advances by the golden gamma before each output).
    gamma = -0x61C8864680B583EB
    state = 1234567 + torch.arange(3) * gamma
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(v) % 2**64 for v in splitmix64(state)] == expected


def test_a_subset_keeps_values_and_the_maximum():
    whole, cut = some_cells((30, 5)), some_cells((30, 5), max_genes=10)
    assert cut.rows.lengths.tolist() == [10, 5]
    value_of = dict(zip(whole.genes[:30].tolist(), whole.values[:30].tolist()))
    assert all(value_of[g] == v for g, v in zip(cut.genes[:10].tolist(), cut.values[:10].tolist()))
    assert torch.maximum(cut.rest_max[0], cut.values[:10].max()) == whole.values[:30].max()
    assert cut.rest_max[1] == 0
    other = some_cells((30, 5), max_genes=10, key=torch.tensor([9, 9]))
    assert set(other.genes[:10].tolist()) != set(cut.genes[:10].tolist())


def test_eval_is_deterministic_and_dropout_acts_in_training_only():
    model = randomised(ExpresserModel(ExpresserConfig(**SMALL, dropout=0.3)))
    cells = some_cells()
    views = all_folds(cells, 4)
    assert torch.equal(model(cells, views).prediction, model(cells, views).prediction)
    model.train()
    assert not torch.equal(model(cells, views).prediction, model(cells, views).prediction)


@pytest.mark.parametrize("norm_first", [True, False])
def test_packed_layers_equal_torch_transformer_encoder(norm_first):
    config = ExpresserConfig(**SMALL, norm_first=norm_first, head="paper")
    packed, naive = randomised(ExpresserModel(config)), NaiveExpresser(config)
    naive.load_state_dict(packed.state_dict())
    naive.eval()
    assert isinstance(naive.encoder, nn.TransformerEncoder)
    cells = some_cells()
    views = single_mask(cells, 0.25)
    torch.testing.assert_close(packed(cells, views).prediction, naive(cells, views).prediction, atol=2e-5, rtol=2e-5)


def test_the_additive_head_starts_at_the_additive_baseline():
    model = ExpresserModel(ExpresserConfig(**SMALL, head="additive")).eval()
    level = torch.rand(VOCAB)
    model.set_gene_means(level)
    cells = some_cells()
    views = single_mask(cells, 0.25)
    row = cells.rows.row
    for number in range(4):
        seen = views.context[views.context_rows.row == number]
        asked = views.query[views.query_rows.row == number]
        cell_level = (cells.values[seen] - level[cells.genes[seen]]).mean()
        expected = level[cells.genes[asked]] + cell_level
        got = model(cells, views).prediction[views.query_rows.row == number]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        assert (row[asked] == number).all()


def test_the_truncated_head_starts_at_the_zero_truncated_poisson_mean():
    model = ExpresserModel(ExpresserConfig(**SMALL, head="truncated")).eval()
    rate = torch.rand(VOCAB) * 0.1 + 1e-4
    model.set_gene_means(rate.log())
    cells = some_cells()
    views = single_mask(cells, 0.25)
    total = cells.total[cells.rows.row[views.query]]
    mean = rate[cells.genes[views.query]] * total
    k = torch.arange(1, 200).double()
    log_p = k * mean.double().log()[:, None] - torch.lgamma(k + 1) - mean.double()[:, None]
    p = log_p.exp()
    truncated = (p * k).sum(1) / p.sum(1)  # by the definition of the conditional mean, not by its closed form
    expected = torch.log1p(1e4 / total.double() * truncated).float()
    torch.testing.assert_close(model(cells, views).prediction, expected, atol=1e-4, rtol=1e-4)
    assert (model(cells, views).prediction >= torch.log1p(1e4 / total) - 1e-5).all()


@pytest.mark.parametrize("name", ALL)
def test_save_and_load_is_bit_identical_through_auto_classes(name, tmp_path):
    model, cells = variant(name), some_cells()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert not list(tmp_path.glob("*.bin"))
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == again.config.to_dict()
    views = all_folds(cells, 4)
    saved, loaded = model.state_dict(), again.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)
    # Where the weights lie in memory may pick another kernel: equal to the last bit or the one before it.
    torch.testing.assert_close(
        model(cells, views).prediction, again.eval()(cells, views).prediction, atol=1e-6, rtol=1e-6
    )


def test_weights_that_do_not_fit_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    variant("additive").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["head.out.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"head\.out\.weight"):
        ExpresserModel.from_pretrained(tmp_path)

    variant("additive").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["d_model"] = 8
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((InputError, RuntimeError)):
        ExpresserModel.from_pretrained(tmp_path)


def test_a_pickled_checkpoint_is_never_read(tmp_path):
    model = variant("additive")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        ExpresserModel.from_pretrained(tmp_path)


def test_the_paper_model_has_the_paper_shape():
    with torch.device("meta"):
        model = ExpresserModel(ExpresserConfig(head="paper", norm_first=False))
    assert model.gene_tokens.weight.shape == (18483, 200)
    assert model.expression_tokens.weight.shape == (50, 200)
    assert len(model.encoder.layers) == 12
    layer = sum(p.numel() for p in model.encoder.layers[0].parameters())
    d = 200
    assert layer == 4 * d * d + 4 * d + 8 * d * d + 5 * d + 4 * d  # attention, feed-forward, two norms
    assert sum(p.numel() for p in model.parameters()) == 18483 * d + 50 * d + 12 * layer + 4 * (d * d + d) + (
        (d + 1) * d + d + d + 1
    )


def test_impossible_configurations_are_refused():
    with pytest.raises(ValueError, match="multiple"):
        ExpresserModel(ExpresserConfig(**SMALL | {"n_heads": 3}))
    with pytest.raises(ValueError, match="decoder_residual"):
        ExpresserModel(ExpresserConfig(**SMALL, decoder_layers=2))
    with pytest.raises(ValueError, match="null prediction"):
        ExpresserModel(ExpresserConfig(**SMALL, head="paper", value_input="bin_residual"))

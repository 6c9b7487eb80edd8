"""Laws of attention on packed rows: every way to compute it is the same function, row by row, and its gradient."""

import inspect
import itertools
import math
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import profile

from expresser.errors import InputError
from expresser.model import attention, attention_blocks
from expresser.model.attention import attend, choose, stored_columns
from expresser.model.cells import Cells, all_folds, cell_key
from expresser.model.configuration import ExpresserConfig, ExpresserWithoutDecoderConfig
from expresser.model.layers import use_attention
from expresser.model.modeling import ExpresserModel, ExpresserWithoutDecoder
from expresser.model.ragged import Ragged

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# (queries, keys) of each row: empty rows, rows without queries, without keys, with more queries than keys, runs of equal rows.
ROWS = [(40, 40), (40, 40), (0, 0), (7, 3), (1, 90), (0, 5), (33, 1), (120, 64), (64, 64), (64, 64), (3, 0), (65, 31)]


def by_rows(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale):
    """Plain softmax attention of one row after another, with the arguments of `varlen_attn` and what its kernels ask of them."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q.numel() == cu_seq_k.numel()
    assert cu_seq_q[-1] == q.shape[0]
    assert cu_seq_k[-1] == k.shape[0] == v.shape[0]
    assert q.shape[2] % 8 == 0
    assert max_q == cu_seq_q.diff().max()
    assert max_k == cu_seq_k.diff().max()
    return plain(q, k, v, cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist(), scale)


def plain(q, k, v, query_lengths, key_lengths, scale):
    rows = []
    for a, b, c in zip(q.split(query_lengths), k.split(key_lengths), v.split(key_lengths)):
        weights = (torch.einsum("qhd,khd->hqk", a, b) * scale).softmax(-1)
        rows.append(torch.einsum("hqk,khd->qhd", weights, c))
    return torch.cat(rows)


@pytest.fixture
def varlen_on_cpu(monkeypatch):
    monkeypatch.setattr(attention, "varlen_attn", by_rows)
    monkeypatch.setattr(attention, "why_not_varlen", lambda device, dtype, dropout: None)


def tensors(rows, heads=2, columns=50, dtype=torch.float64, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n_q, n_k = (sum(r[i] for r in rows) for i in (0, 1))
    sizes = (n_q, n_k, n_k, n_q)
    made = [torch.randn(n, heads, columns, generator=generator, dtype=torch.float64) for n in sizes]
    made[0] *= spread
    return [x.to(dtype).requires_grad_() for x in made[:3]], made[3].to(dtype)


def ragged(rows):
    return tuple(Ragged(torch.tensor([r[i] for r in rows])) for i in (0, 1))


def run(inputs, gradient, rows, implementation):
    query_rows, key_rows = ragged(rows)
    out = attend(*inputs, query_rows=query_rows, key_rows=key_rows, implementation=implementation)
    return [out, *torch.autograd.grad(out, inputs, gradient.flatten(1))]


def truth(inputs, gradient, rows):
    inputs = [x.detach().double().requires_grad_() for x in inputs]
    scale = inputs[0].shape[-1] ** -0.5
    out = plain(*inputs, [r[0] for r in rows], [r[1] for r in rows], scale).flatten(1)
    return [out, *torch.autograd.grad(out, inputs, gradient.double().flatten(1))]


def error(found, expected):
    """Relative error of each of (output, gradients by q, k, v) in the Frobenius norm."""
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]


@pytest.mark.parametrize("columns", [8, 32, 50, 64])
@pytest.mark.parametrize("implementation", ["sdpa", "varlen"])
def test_attention_is_softmax_attention_row_by_row(implementation, columns, varlen_on_cpu):
    inputs, gradient = tensors(ROWS, columns=columns)
    found = run(inputs, gradient, ROWS, implementation)
    for a, b in zip(found, truth(inputs, gradient, ROWS)):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("columns", [8, 32, 50, 61, 64])
@pytest.mark.parametrize("rows", [ROWS, [(300, 300)] * 2, [(275, 825)], [(500, 40)] * 3], ids=lambda r: str(len(r)))
def test_blocks_are_within_a_hundredth_of_exact_attention(rows, columns):
    inputs, gradient = tensors(rows, columns=columns, dtype=torch.bfloat16)
    expected = truth(inputs, gradient, rows)
    assert max(error(run(inputs, gradient, rows, "blocks"), expected)) < 0.01


@pytest.mark.parametrize(("spread", "bound"), [(0.1, 0.007), (1.0, 0.007), (4.0, 0.015), (20.0, 0.03), (300.0, 0.15)])
def test_peaked_attention_stays_finite_and_near(spread, bound):
    rows = [(200, 300), (150, 280)]
    inputs, gradient = tensors(rows, dtype=torch.bfloat16, spread=spread)
    found = run(inputs, gradient, rows, "blocks")
    assert all(x.isfinite().all() for x in found)
    assert max(error(found, truth(inputs, gradient, rows))) < bound


def test_equal_scores_of_any_size_give_equal_weights():
    q, k = torch.full((40, 2, 50), 30.0).bfloat16(), torch.full((64, 2, 50), 30.0).bfloat16()
    v = torch.randn(64, 2, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    inputs = [x.requires_grad_() for x in (q, k, v)]
    found = run(inputs, torch.ones_like(q), [(40, 64)], "blocks")
    torch.testing.assert_close(found[0].float()[0], v.float().mean(0).flatten(), atol=2e-3, rtol=1e-2)
    torch.testing.assert_close(found[3].float(), torch.full((64, 2, 50), 40 / 64), atol=0, rtol=2e-2)


@pytest.mark.parametrize("implementation", ["sdpa", "varlen", "blocks"])
def test_a_row_depends_on_no_other_row(implementation, varlen_on_cpu):
    dtype, tolerance = (torch.bfloat16, 2e-2) if implementation == "blocks" else (torch.float64, 1e-10)
    inputs, gradient = tensors(ROWS, dtype=dtype)
    together = run(inputs, gradient, ROWS, implementation)
    sizes = [[r[0] for r in ROWS], [r[0] for r in ROWS], [r[1] for r in ROWS], [r[1] for r in ROWS]]
    expected = [x.split(n) for x, n in zip(together, sizes)]
    parts = [x.detach().split(n) for x, n in zip((*inputs, gradient), (sizes[0], sizes[2], sizes[3], sizes[0]))]

    for order in ([i] for i in range(len(ROWS)) if all(ROWS[i])):
        compare_in_order(order, parts, expected, implementation, tolerance)
    compare_in_order([9, 3, 0, 11, 7, 2, 4, 8, 1, 6], parts, expected, implementation, tolerance)


def compare_in_order(order, parts, expected, implementation, tolerance):
    *inputs, gradient = (torch.cat([part[i] for i in order]) for part in parts)
    found = run([x.requires_grad_() for x in inputs], gradient, [ROWS[i] for i in order], implementation)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, torch.cat([b[i] for i in order]), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("implementation", ["sdpa", "varlen", "blocks"])
def test_nothing_leaks_from_one_row_into_another(implementation, poison, varlen_on_cpu):
    rows = [(30, 40), (28, 36), (33, 43)]  # near enough to share a padded block
    dtype = torch.bfloat16 if implementation == "blocks" else torch.float64
    inputs, gradient = tensors(rows, dtype=dtype)
    clean = run(inputs, gradient, rows, implementation)
    poisoned = [x.detach().clone() for x in inputs]
    poisoned[0][30:58] = poisoned[1][40:76] = poisoned[2][40:76] = poison
    found = run([x.requires_grad_() for x in poisoned], gradient, rows, implementation)
    for number, (a, b) in enumerate(zip(found, clean)):
        sizes = [r[0 if number < 2 else 1] for r in rows]
        (first, bad, last), (first_clean, _, last_clean) = a.split(sizes), b.split(sizes)
        assert torch.equal(first, first_clean)
        assert torch.equal(last, last_clean)
        assert not bad.isfinite().all()


def test_what_lies_in_the_buffers_does_not_matter():
    inputs, gradient = tensors(ROWS, dtype=torch.bfloat16)
    first = run(inputs, gradient, ROWS, "blocks")
    buffers = attention_blocks._local.buffers
    assert len(buffers) > 5
    for buffer in buffers.values():
        buffer.fill_(math.nan)
    for a, b in zip(first, run(inputs, gradient, ROWS, "blocks")):
        assert torch.equal(a, b)


def test_threads_do_not_share_buffers():
    jobs = [tensors([(90, 110), (80, 100)], dtype=torch.bfloat16, seed=seed) for seed in range(4)]
    alone = [run(*job, [(90, 110), (80, 100)], "blocks") for job in jobs]
    found = [None] * 4

    def repeat(i):
        for _ in range(5):
            found[i] = run(*jobs[i], [(90, 110), (80, 100)], "blocks")

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, got in zip(alone, found):
        assert got is not None
        for a, b in zip(expected, got):
            assert torch.equal(a, b)


def test_long_rows_are_cut_into_blocks_of_bounded_memory(monkeypatch):
    monkeypatch.setattr(attention_blocks, "_PAIRS", 320 * 64)
    monkeypatch.setattr(attention_blocks, "_local", threading.local())
    rows = [(310, 410), (50, 60)]
    inputs, gradient = tensors(rows, dtype=torch.bfloat16)
    found = run(inputs, gradient, rows, "blocks")
    assert max(error(found, truth(inputs, gradient, rows))) < 0.01
    assert attention_blocks._local.buffers["weights"].numel() <= torch.get_num_threads() * 320 * 64


def test_the_operators_keep_the_rules_of_torch_library():
    inputs, _ = tensors([(5, 6), (3, 4)], columns=8, dtype=torch.bfloat16)
    lengths = [x.lengths for x in ragged([(5, 6), (3, 4)])]
    torch.library.opcheck(
        attention_blocks.block_attention,
        (*inputs, *lengths, 0.3),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
        atol=1e-2,
        rtol=1e-2,
    )


@pytest.mark.parametrize("implementation", ["sdpa", "blocks"])
def test_attention_compiles_into_one_graph(implementation):
    """In a process of its own: annotations checked at run time do not compile."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, implementation], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"] * 4


COMPILED = """
import sys, torch
from expresser.model.attention import attend
from expresser.model.ragged import Ragged
generator = torch.Generator().manual_seed(0)
inputs = [torch.randn(270, 2, 50, generator=generator).bfloat16().requires_grad_() for _ in range(3)]
rows = Ragged(torch.full((3,), 90))
assert (rows.n_rows, rows.n_entries, rows.longest, rows.is_full, rows.key_mask) == (3, 270, 90, True, None)
def f(q, k, v):
    return attend(q, k, v, query_rows=rows, key_rows=rows, implementation=sys.argv[1])
found = []
for g in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
    out = g(*inputs)
    found.append([out, *torch.autograd.grad(out.float().square().sum(), inputs)])
print(*(torch.equal(a, b) for a, b in zip(*found)))
"""


def test_implementations_that_cannot_run_say_why():
    inputs, gradient = tensors(ROWS)
    with pytest.raises(
        InputError, match=r"'varlen' cannot run: it needs a CUDA device, and the tensors are on cpu\. Take"
    ):
        run(inputs, gradient, ROWS, "varlen")
    with pytest.raises(InputError, match="'blocks' cannot run: it needs bfloat16"):
        run(inputs, gradient, ROWS, "blocks")
    for implementation, device, dtype, dropout, reason in (
        ("varlen", CUDA, torch.float32, 0.0, "float16 or bfloat16"),
        ("varlen", CUDA, torch.bfloat16, 0.1, "no dropout, and 0.1"),
        ("blocks", CPU, torch.bfloat16, 0.1, "no dropout, and 0.1"),
        ("blocks", CUDA, torch.bfloat16, 0.0, "for CPUs"),
    ):
        with pytest.raises(InputError, match=reason):
            choose(implementation, device, dtype, dropout=dropout)

    with pytest.raises(InputError, match="'flash' is not one of auto, sdpa, varlen, blocks"):
        inspect.unwrap(choose)("flash", CPU, torch.float32, dropout=0.0)  # around the check of types


class OfMajor:
    def __init__(self, major):
        self.major = major


def test_auto_takes_the_fastest_that_can_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: OfMajor(9))
    for tiles in (True, False):
        monkeypatch.setattr(attention, "_HAS_TILES", tiles)
        assert choose("auto", CUDA, torch.bfloat16, dropout=0.0) == "varlen"
        assert choose("auto", CUDA, torch.float16, dropout=0.0) == "varlen"
        assert choose("auto", CUDA, torch.float32, dropout=0.0) == "sdpa"
        assert choose("auto", CUDA, torch.bfloat16, dropout=0.1) == "sdpa"
        assert choose("auto", CPU, torch.float32, dropout=0.0) == "sdpa"
        assert choose("auto", CPU, torch.bfloat16, dropout=0.1) == "sdpa"
        assert choose("auto", CPU, torch.bfloat16, dropout=0.0) == ("blocks" if tiles else "sdpa")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: OfMajor(7))
    assert choose("auto", CUDA, torch.bfloat16, dropout=0.0) == "sdpa"
    with pytest.raises(InputError, match="compute capability"):
        choose("varlen", CUDA, torch.bfloat16, dropout=0.0)


def test_auto_uses_blocks_for_gradients_of_long_rows_only(monkeypatch):
    monkeypatch.setattr(attention, "_HAS_TILES", True)

    def uses_blocks(rows, grad=True):
        inputs, _ = tensors(rows, dtype=torch.bfloat16)
        query_rows, key_rows = ragged(rows)
        with torch.set_grad_enabled(grad), profile() as seen:
            attend(*inputs, query_rows=query_rows, key_rows=key_rows)
        return any("block_attention" in event.name for event in seen.events())

    assert uses_blocks([(120, 120)] * 2)
    assert not uses_blocks([(120, 120)] * 2, grad=False)
    assert not uses_blocks([(20, 30)] * 9)


def test_heads_are_stored_in_the_columns_of_the_kernel_only_where_it_runs(varlen_on_cpu):
    x = torch.zeros(3, 200)
    assert [stored_columns("varlen", x, n, dropout=0.0) for n in (8, 32, 50, 64, 65)] == [32, 32, 64, 64, 96]
    assert stored_columns("sdpa", x, 50, dropout=0.0) == 50
    with torch.autocast("cpu", torch.bfloat16):
        assert stored_columns("blocks", x, 50, dropout=0.0) == 50


MODELS = {
    "paper": {"head": "paper", "norm_first": False},
    "truncated_residual": {"head": "truncated", "value_input": "bin_residual"},
    "two_layers": {"value_input": "bin_residual", "decoder_layers": 2, "decoder_residual": True},
    "without_decoder": {"head": "paper"},
}


def model_and_cells(name, lengths=(150, 120, 9, 131), d_model=100):
    fields = {"vocab_size": 300, "d_model": d_model, "n_layers": 2, "n_heads": 2, "max_genes": 200, **MODELS[name]}
    generator = torch.Generator().manual_seed(0)
    if name == "without_decoder":
        model = ExpresserWithoutDecoder(ExpresserWithoutDecoderConfig(**fields))
    else:
        model = ExpresserModel(ExpresserConfig(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    counts = torch.randint(1, 9, (sum(lengths),), generator=generator)
    rows = Ragged(torch.tensor(lengths))
    cells = Cells.from_counts(
        torch.cat([torch.randperm(300, generator=generator)[:n] for n in lengths]),
        counts,
        rows.lengths,
        rows.sum(counts.float()).long(),
        cell_key(3, torch.zeros(len(lengths), dtype=torch.long), torch.arange(len(lengths))),
    )
    return model, cells


def prediction_and_gradients(model, cells, implementation, *, bf16=False):
    use_attention(model, implementation)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        prediction = model(cells, all_folds(cells, 4)).prediction
    (prediction * torch.linspace(-1, 1, prediction.numel())).sum().backward()
    return prediction.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_the_same_function_with_stored_columns(name, monkeypatch):
    model, cells = model_and_cells(name)
    expected, gradients = prediction_and_gradients(model, cells, "sdpa")
    saved, configuration = {k: v.clone() for k, v in model.state_dict().items()}, model.config.to_dict()
    columns = []

    def seen(q, *args, **kwargs):
        columns.append(q.shape[2])
        return by_rows(q, *args, **kwargs)

    monkeypatch.setattr(attention, "varlen_attn", seen)
    monkeypatch.setattr(attention, "why_not_varlen", lambda device, dtype, dropout: None)
    found, of_varlen = prediction_and_gradients(model, cells, "varlen")
    assert set(columns) == {64}  # heads of 50 columns, stored by the projections
    assert len(columns) == (4 if name == "two_layers" else 3)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert of_varlen.keys() == gradients.keys()
    # The exact gradient by a bias of all keys is 0: softmax does not see it. Hence the floor.
    floor = max(gradient.abs().max().item() for gradient in gradients.values())
    for key, gradient in gradients.items():
        scale = max(gradient.abs().max().item(), 1e-3 * floor)
        torch.testing.assert_close(of_varlen[key], gradient, atol=1e-4 * scale, rtol=1e-3, msg=key)
    assert model.config.to_dict() == configuration
    assert all(torch.equal(saved[key], value) for key, value in model.state_dict().items())
    assert saved.keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_bfloat16_learns_from_blocks_what_it_learns_from_sdpa(name):
    model, cells = model_and_cells(name)
    exact, truth_ = prediction_and_gradients(model, cells, "sdpa")
    errors = {}
    for implementation in ("sdpa", "blocks"):
        found, gradients = prediction_and_gradients(model, cells, implementation, bf16=True)
        flat = torch.cat([gradients[key].flatten() - truth_[key].flatten() for key in truth_])
        size = torch.cat([gradient.flatten() for gradient in truth_.values()]).norm()
        errors[implementation] = ((found - exact).norm() / exact.norm()).item(), (flat.norm() / size).item()
    for ours, torchs in zip(errors["blocks"], errors["sdpa"]):
        assert ours < 1.3 * torchs + 1e-3


def test_blocks_are_about_as_near_to_the_truth_as_torch_itself():
    rows = [(275, 825)] * 2
    inputs, gradient = tensors(rows, heads=4, dtype=torch.bfloat16)
    expected = truth(inputs, gradient, rows)
    ours, torchs = (error(run(inputs, gradient, rows, way), expected) for way in ("blocks", "sdpa"))
    assert ours[0] == pytest.approx(torchs[0], rel=0.05)  # forward is the same kernel
    assert all(a < 2.5 * b for a, b in zip(ours, torchs))
    assert max(ours) < 0.007


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [8, 50, 64])
def test_varlen_on_the_gpu_is_softmax_attention_row_by_row(columns, dtype):
    inputs, gradient = tensors(ROWS, columns=columns, dtype=dtype)
    expected = truth(inputs, gradient, ROWS)
    inputs = [x.detach().cuda().requires_grad_() for x in inputs]
    query_rows, key_rows = (Ragged(r.lengths.cuda()) for r in ragged(ROWS))
    out = attend(*inputs, query_rows=query_rows, key_rows=key_rows, implementation="varlen")
    found = [out, *torch.autograd.grad(out, inputs, gradient.cuda().flatten(1))]
    assert max(error([x.cpu() for x in found], expected)) < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_a_model_on_the_gpu_is_near_the_model_on_the_cpu(name):
    model, cells = model_and_cells(name)
    expected, _ = prediction_and_gradients(model, cells, "sdpa")
    model, cells = model.cuda(), cells.to("cuda")
    for implementation, precision in itertools.product(("varlen", "sdpa"), (torch.bfloat16, torch.float16)):
        use_attention(model, implementation)
        with torch.autocast("cuda", precision):
            found = model(cells, all_folds(cells, 4)).prediction
        assert ((found.cpu() - expected).norm() / expected.norm()).item() < 0.05


def test_blocks_forward_equals_torch_bit_for_bit_on_even_rows():
    inputs, _ = tensors([(120, 150)] * 3, dtype=torch.bfloat16)
    query_rows, key_rows = ragged([(120, 150)] * 3)
    found = attend(*inputs, query_rows=query_rows, key_rows=key_rows, implementation="blocks")
    q, k, v = (x.unflatten(0, (3, -1)).transpose(1, 2) for x in inputs)
    assert torch.equal(found, F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1).flatten(1))

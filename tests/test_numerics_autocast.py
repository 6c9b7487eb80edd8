"""Under autocast layers may multiply in half precision; likelihoods, losses and divergences never do."""

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from translate_toys import CONFIGS, toy_split, toy_study

from translate.batches import Block
from translate.feed import Feed
from translate.fitting import _inputs, build
from translate.phases import Turn, playing
from translate.registry import SYSTEMS

HALF = (torch.bfloat16, torch.float16)
# Where the losses of all systems stand.
MODULES = (
    "expresser.likelihoods",
    "pretrain.objective",
    "translate.autoencoders",
    "translate.cyclic",
    "translate.heads",
    "translate.label_free",
    "translate.losses",
    "translate.zinb_head",
)
N = 5


def some(*shape: int, seed: int = 0) -> Tensor:
    """Positive, in half precision."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16() + 0.5


def block(loss: Callable[..., Any], n_outputs: int = 1, **more: Any) -> Callable[[], Tensor]:
    """A loss of outputs, which layers hand over in float32."""
    entries = Block(torch.tensor([1, 4, 7]), torch.tensor([1.0, 3.0, 2.0]), 0, 3)

    def judged() -> Tensor:
        total, slopes = loss([some(4, 3, seed=i).float() for i in range(n_outputs)], entries, True, **more)
        assert all(slope.dtype == torch.float32 for slope in slopes)
        return total

    return judged


def of(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


L, H, T, A = "expresser.likelihoods", "translate.heads", "translate.losses", "translate.autoencoders"
KEYS = torch.arange(N)
CASES: dict[str, Callable[[], Any]] = {
    "nb_log_prob": lambda: of(L, "nb_log_prob")(some(N), mean=some(N), dispersion=some(N)),
    "zinb_log_prob": lambda: of(L, "zinb_log_prob")(some(N), mean=some(N), dispersion=some(N), dropout_logits=some(N)),
    "bernoulli_log_prob": lambda: of(L, "bernoulli_log_prob")(torch.ones(N), logits=some(N)),
    "focal_loss": lambda: of(L, "focal_loss")(
        torch.ones(N), logits=some(N), gamma=2.0, positive_weight=1.0, negative_weight=1.0
    ),
    "squared_error": lambda: of("pretrain.objective", "squared_error")(some(N), truth=some(N, seed=1)),
    "bernoulli_block": lambda: block(of(H, "bernoulli_block"))(),
    "weighted_bernoulli_block": lambda: block(of(H, "weighted_bernoulli_block"), positive_weight=3.0)(),
    "depth_block": lambda: block(of(H, "depth_block"), log_depth=torch.zeros(4))(),
    "product_block": lambda: block(of(H, "product_block"), depth=torch.ones(4))(),
    "nb_block": lambda: block(of(H, "nb_block"), 2)(),
    "focal_block": lambda: block(of(H, "focal_block"), gamma=2.0, positive_weight=1.0, negative_weight=1.0)(),
    "squared_block": lambda: block(of(A, "squared_block"))(),
    "balanced_block": lambda: block(of(A, "balanced_block"), keys=torch.arange(4), share=0.5)(),
    "shrinkage": lambda: of(H, "shrinkage")(some(N, 3), 0.7),
    "gaussian_kl": lambda: of(T, "gaussian_kl")(some(N, 3), some(N, 3)),
    "pairwise_kl": lambda: of(T, "pairwise_kl")(some(N, 3), some(N, 3)),
    "mutual_information_bound": lambda: of(T, "mutual_information_bound")(some(N, 3), some(N, 3)),
    "similarity_loss": lambda: of(T, "similarity_loss")(
        some(N, 3), some(N, 4).float(), weight=torch.ones(N), group=torch.zeros(N).long()
    ),
    "sample_latent": lambda: of(T, "sample_latent")(some(N, 3), some(N, 3), KEYS, 1),
    "standard_normal": lambda: of(T, "standard_normal")(KEYS, 3, key=1),
    "judged_as": lambda: of("translate.cyclic", "judged_as")(
        some(N, 2), torch.zeros(N).long(), torch.ones(2, dtype=torch.bool), real=True
    ),
    "apart": lambda: of("translate.cyclic", "apart")(some(N, 3), some(N, 3, seed=1)),
    "discrepancy": lambda: of("translate.label_free", "discrepancy")(some(N, 3), some(N, 3, seed=1))[0],
}
# Functions of tensors in these modules that are no losses.
OTHERS = {
    "targets": "picks measured values",
    "keyed_mask": "dropout",
    "gathered": "rows of all processes, as they are",
    "log_expm1": "log-odds from a rate; its callers give float32",
    "product_probability": "a probability; its callers give float32",
    "blockwise": "multiplies matrices, in half precision, and hands losses float32: see the test of heads",
}


class NoHalf(TorchDispatchMode):
    """Fails where an operation yields half precision, once inputs are made."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        assert not (isinstance(out, Tensor) and out.dtype in HALF), f"{func} gave {out.dtype}"
        return out


@contextmanager
def given_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`some` is then not part of what is watched."""
    real = some

    def unwatched(*shape: int, seed: int = 0) -> Tensor:
        with torch.utils._python_dispatch._disable_current_modes():
            return real(*shape, seed=seed)

    monkeypatch.setitem(globals(), "some", unwatched)
    yield


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("name", CASES)
def test_nothing_inside_a_loss_is_of_half_precision(name, half, monkeypatch):
    with given_before(monkeypatch), torch.autocast("cpu", half), NoHalf():
        found = CASES[name]()
    assert found.dtype in (torch.float32, torch.float64)
    assert bool(torch.isfinite(found).all())


def returns_tensor(function: Any) -> bool:
    return "Tensor" in str(inspect.signature(function).return_annotation)


def test_every_loss_is_watched():
    """A new function of tensors beside the losses is either one of `CASES` or named among `OTHERS`."""
    there = set()
    for module in map(importlib.import_module, MODULES):
        own = [f for n, f in inspect.getmembers(module, callable) if not n.startswith("_") and not inspect.isclass(f)]
        there |= {f.__name__ for f in own if getattr(f, "__module__", "") == module.__name__ and returns_tensor(f)}
    assert there == CASES.keys() | OTHERS.keys()


LIKELIHOOD = {"lgamma", "digamma", "logsigmoid", "cross_entropy", "mse_loss", "l1_loss", "nll_loss", "kl_div"}
LIKELIHOOD |= {"binary_cross_entropy", "binary_cross_entropy_with_logits", "poisson_nll_loss", "gaussian_nll_loss"}
ELSEWHERE = {
    ("finetune/annotation/classifier.py", "cross_entropy"): "of logits in float32, and fine-tuning knows no autocast",
}


def test_no_likelihood_is_written_elsewhere():
    root = Path(__file__).parents[1]
    home = {root / (module.replace(".", "/") + ".py") for module in MODULES}
    found = set()
    for path in (p for top in ("expresser", "pretrain", "finetune", "translate") for p in (root / top).rglob("*.py")):
        if path in home:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
                if name in LIKELIHOOD:
                    found.add((str(path.relative_to(root)), name))
    assert found == ELSEWHERE.keys()


@pytest.mark.parametrize("system", CONFIGS)
def test_terms_of_every_system_are_float32_under_autocast_as_without(system):
    study, split = toy_study(modalities=("rna", "atac", "protein")), toy_split()
    config = CONFIGS[system]
    for name in ("batch", "label"):
        if (column := getattr(config, name, None)) is not None:
            config = replace(config, **{name: column.settled(study.obs, split.train)})
    inputs = _inputs(study, split, config, None, None, SYSTEMS[system].reads)
    network = build(system, config, inputs, 0)
    feed = Feed.of(
        study,
        inputs,
        batches=getattr(config, "batch", None),
        labels=getattr(config, "label", None),
        counts=SYSTEMS[system].judges_counts,
    )
    network.prepare(feed, split.train)
    rows = np.arange(16)
    for phase in network.phases():
        with torch.no_grad():
            network.eval()
            network.begin(phase, feed, split.train, fresh=True)
        beside = tuple(feed.batch(rows + 16, kind.modalities, share=16) for kind in phase.beside)
        batch = replace(feed.batch(rows, phase.modalities, share=16), beside=beside)
        for player in phase.players:
            playing(network, player.parts)
            turn = Turn(phase.name, player.name, 0, 1, 0.5)
            exact = network.losses(batch, turn)
            with torch.autocast("cpu", torch.bfloat16):
                found = network.losses(batch, turn)
            for name, value in found.items():
                assert value.dtype == torch.float32, f"{phase.name}, {player.name}: {name} is {value.dtype}"
                assert float(value.detach()) == pytest.approx(float(exact[name].detach()), rel=0.1, abs=0.05)

"""Every annotated shape and type is checked while the tests run; production pays nothing."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Imported before the hook: transformers turns configurations into dataclasses whose __init__ takes fields of the base class,
# which jaxtyping's check of dataclasses does not know.
import expresser.model.configuration  # noqa: F401

# tyro.MISSING stands where a path will be: its dataclass of arguments is not what its annotations say until it has been filled.
import pretrain.arguments  # noqa: F401
import translate.cli_fit
import translate.cli_tune  # noqa: F401

settings.register_profile("untimed", deadline=None)  # machines are shared: how long an example takes says nothing
settings.load_profile("untimed")

_hook = install_import_hook(["expresser", "pretrain", "finetune", "translate"], "beartype.beartype")


_THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def same_threads():
    """As many threads in every test: numba, and what tests threads, leave others, and sums then differ in the last bit."""
    yield
    if torch.get_num_threads() != _THREADS:
        torch.set_num_threads(_THREADS)


@pytest.fixture
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of comparisons hold their numbers, but are drawn, which takes a second a page, only for tests that ask for `drawn`."""
    if "drawn" not in request.fixturenames:
        blank = '<svg xmlns="http://www.w3.org/2000/svg" width="9pt" height="9pt"/>'
        monkeypatch.setattr("expresser.comparison.figures.svg", lambda *args, **more: blank)


@pytest.fixture
def drawn() -> None:
    """See `undrawn`."""


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of small real data sets; tests that take it are marked `realdata`."""
    folder = os.environ.get("EXPRESSER_DATA")
    if not folder:
        pytest.skip("EXPRESSER_DATA is not set: no real data to read")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def tiny_data():
    """120 simulated cells x 80 genes: raw counts, the same for every test (copy before changing)."""
    from expresser.simulate import simulate_rna

    return simulate_rna(n_cells=120, n_genes=80, n_types=3, n_modules=4, median_depth=300, seed=1)


@pytest.fixture(scope="session")
def tiny_corpus(tiny_data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a corpus of `tiny_data` with its cell types and donors."""
    from expresser.corpus.build import build_corpus

    folder = tmp_path_factory.mktemp("tiny") / "corpus"
    build_corpus([tiny_data], folder, obs_columns=["cell_type", "donor"])
    return folder


@pytest.fixture(scope="session")
def tiny_recipe():
    """A run of a second: twelve steps of eight cells, a checkpoint every four."""
    from pretrain.config import DataConfig, ModelConfig, OptimConfig, Recipe

    return Recipe(
        name="tiny",
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2, n_bins=10, head="truncated", max_genes=40),
        optim=OptimConfig(lr=5e-3),
        data=DataConfig(global_batch=8, epochs=100.0, max_steps=12, valid_share=0.1, valid_cells=8),
        precision="no",
        log_every=1,
        eval_every=4,
        save_every=4,
        keep_last=2,
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_corpus, tiny_recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `tiny_recipe`, to be read only."""
    from pretrain.loop import pretrain

    out = tmp_path_factory.mktemp("tiny") / "run"
    pretrain(tiny_recipe, tiny_corpus, out, quiet=True)
    return out

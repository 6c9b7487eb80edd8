"""A fitted translator from a stranger: its configuration, its preprocessing and its weights are proven before they are used."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hostile import JSON_FILES, TENSOR_FILES, bounded, edit, refused, set_to
from safetensors.torch import load_file, save_file
from translate_toys import CONFIGS, toy_fit

from expresser.errors import InputError
from translate import saving
from translate.registry import SYSTEMS
from translate.translator import Translator

INPUTS, WEIGHTS = "inputs.safetensors", "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    toy_fit("babel", folder / "fit", epochs=1)
    return folder / "fit" / "model"


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def change_arrays(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    arrays = {key: value.copy() for key, value in safetensors.numpy.load_file(folder / INPUTS).items()}
    change(arrays)
    safetensors.numpy.save_file(arrays, folder / INPUTS)


def test_what_was_saved_loads_within_the_bounds_that_refusals_keep(whole: Path) -> None:
    with bounded():
        Translator.load(whole)


@pytest.mark.parametrize("name", [INPUTS, WEIGHTS])
@pytest.mark.parametrize("case", TENSOR_FILES)
def test_tensors_that_lie_about_themselves_are_refused(model: Path, name: str, case: str) -> None:
    damage, words = TENSOR_FILES[case]
    damage(model / name)
    refused(lambda: saving.load(model), words)
    assert not (model / "trace").exists()


@pytest.mark.parametrize("name", ["config.json", "inputs.json", "run.json"])
@pytest.mark.parametrize("case", JSON_FILES)
def test_records_that_are_no_plain_json_are_refused(model: Path, name: str, case: str) -> None:
    damage, words = JSON_FILES[case]
    damage(model / name)
    refused(lambda: saving.load(model), words)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("system", "os.system", r"system 'os\.system'; this version has"),
        ("system", ["babel"], "names no system"),
        ("config", [], "names no system"),
        ("config.import", "os", "BabelConfig has no 'import'"),
        ("config.latent", 10**9, "do not fit the configuration|no network can be built"),
        ("config.latent", 10**18, "no network can be built|do not fit"),
        ("config.latent", -1, "no network can be built|do not fit"),
        ("config.latent", 0, "no network can be built|do not fit"),
        ("config.latent", 1.5, "latent is 1.5"),
        ("config.latent", True, "latent is True"),
        ("config.latent", "8", "latent is '8'"),
        ("config.latent", [8], "latent is a list of 1"),
        ("config.shared", 1, "shared is 1"),
        ("config.beta", "x", "beta is 'x'"),
        ("config.beta", None, "beta is None"),
        ("config.prior", [], "prior is a list"),
        ("config.rna", 5, "rna is 5"),
        ("config.rna.min_genes", "many", "min_genes is 'many'"),
        ("config.plateau.watches", "test", "watches is 'test'"),
        ("config.bridge.rna_cells", "join", "without a pretrained model"),
        ("config.bridge.rna_blocks", 10**9, "cell embeddings are not read"),
    ],
)
def test_a_configuration_of_other_kinds_or_absurd_sizes_is_refused(
    model: Path, key: str, value: object, words: str
) -> None:
    edit(model / "config.json", set_to(key, value))
    refused(lambda: saving.load(model), words)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("poem", {}),
        ("rna", 5),
        ("rna.var", []),
        ("rna.var.name", "abc"),
        ("rna.var.name", []),
        ("rna.var.name.0", ""),
        ("rna.var.name.0", 5),
        ("rna.var.name.0", "A\x1b[2J"),
        ("rna.var.symbol", ["A"]),
        ("rna.var.symbol.0", ["A"]),
        ("rna.var.chrom.0", None),
        ("rna.median_library", 0),
        ("rna.median_library", -1),
        ("rna.median_library", "x"),
        ("rna.recipe.max_genes", "x"),
        ("rna.recipe.poem", 1),
        ("rna.pretrained", {"model": {"model_type": "expresser", "auto_map": {}}}),
        ("atac.chroms", ["chr1"]),
        ("atac.chroms.0", "A\x00"),
        ("atac.genome", ["hg38"]),
        ("atac.recipe.merge", "no"),
        ("atac.left_out", 5),
    ],
)
def test_preprocessing_of_other_kinds_is_refused(model: Path, key: str, value: object) -> None:
    edit(model / "inputs.json", set_to(key, value))
    refused(lambda: saving.load(model), r"inputs\.json")


def test_genes_that_stand_twice_and_records_without_a_part_are_refused(model: Path) -> None:
    before = (model / "inputs.json").read_text()
    names = json.loads(before)["rna"]["var"]["name"]
    edit(model / "inputs.json", set_to("rna.var.name.0", names[1]))
    refused(lambda: saving.load(model), "each once")
    for modality, settings in json.loads(before).items():
        for key in settings:
            if key not in ("counted", "pretrained"):
                (model / "inputs.json").write_text(before)
                edit(model / "inputs.json", set_to(modality, {k: v for k, v in settings.items() if k != key}))
                refused(lambda: saving.load(model), f"{modality}: KeyError: '{key}'")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rna.mean", lambda x: x[:-1]),
        ("rna.mean", lambda x: x.astype(np.float64)),
        ("rna.mean", lambda x: np.full_like(x, np.nan)),
        ("rna.sd", lambda x: np.zeros_like(x)),
        ("rna.sd", lambda x: -x),
        ("rna.sd", lambda x: x[None]),
        ("rna.bounds", lambda x: np.array([1.0, 0.0])),
        ("rna.bounds", lambda x: np.full_like(x, np.nan)),
        ("rna.bounds", lambda x: np.zeros(3)),
        ("rna.tss", lambda x: x.astype(np.float32)),
        ("atac.chrom", lambda x: x + 100),
        ("atac.chrom", lambda x: x - 100),
        ("atac.start", lambda x: x + 10**12),
        ("atac.end", lambda x: x[:-1]),
        ("atac.start", lambda x: np.int64(5)),
    ],
)
def test_arrays_that_no_fit_can_have_made_are_refused(model: Path, name: str, change: Callable) -> None:
    change_arrays(model, lambda arrays: arrays.update({name: np.ascontiguousarray(change(arrays[name]))}))
    refused(lambda: saving.load(model), r"inputs\.json")


def test_weights_that_are_not_finite_or_of_another_type_are_refused(model: Path) -> None:
    before = load_file(model / WEIGHTS)
    name = next(name for name, value in before.items() if value.ndim == 2)
    for change, words in (
        (lambda value: torch.full_like(value, torch.nan), "not finite"),
        (lambda value: value.double(), r"torch\.float64, the network's is torch\.float32"),
        (lambda value: value.int(), r"torch\.int32"),
        (lambda value: value[:-1], "do not fit the configuration"),
    ):
        save_file(before | {name: change(before[name]).contiguous()}, model / WEIGHTS)
        refused(lambda: saving.load(model), words)
    save_file({key: value for key, value in before.items() if key != name}, model / WEIGHTS)
    refused(lambda: saving.load(model), rf"{name.replace('.', '[.]')}: none for")


@pytest.mark.parametrize("name", saving.FILES)
def test_a_link_out_of_the_folder_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    (model / name).rename(tmp_path / "secret")
    (model / name).symlink_to(tmp_path / "secret")
    refused(lambda: saving.load(model), "outside of its folder")


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_no_size_of_any_system_is_believed(system: str, tmp_path: Path) -> None:
    """Each whole number of each configuration, made absurd: refused, or of no consequence to what is built."""
    model = tmp_path / "fit" / "model"
    small = {} if system in CONFIGS else {"hidden": (8, 4), "latent": 4, "epochs": 1, "warmup": 1}
    toy_fit(system, tmp_path / "fit", **small)
    before = (model / "config.json").read_text()
    config = json.loads(before)["config"]
    keys = [f"config.{key}" for key, value in config.items() if type(value) is int or value is None]
    keys += [f"config.{key}.{i}" for key, value in config.items() if isinstance(value, list) for i in range(len(value))]
    for key in keys:
        for value in (10**9, 10**18, -1):
            (model / "config.json").write_text(before)
            edit(model / "config.json", set_to(key, value))
            with bounded(), contextlib.suppress(InputError):
                saving.load(model)

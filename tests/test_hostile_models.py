"""A pretrained model from a stranger: whatever its folder or repository holds, it is loaded whole or refused in one message."""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import JSON_FILES, TENSOR_FILES, Trap, bounded, edit, refused, set_to
from pretrained_toys import toy_checkpoint
from safetensors.torch import load_file, save_file

from expresser import checkpoint
from expresser.errors import InputError
from expresser.model.configuration import ExpresserConfig
from expresser.model.modeling import ExpresserModel, ExpresserWithoutDecoder

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "model"
    toy_checkpoint(folder)
    return folder


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def test_what_was_saved_loads_within_the_bounds_that_refusals_keep(whole: Path) -> None:
    with bounded():
        loaded = checkpoint.load(whole)
    assert not loaded.model.training
    assert all(
        torch.equal(value, loaded.model.state_dict()[name]) for name, value in load_file(whole / WEIGHTS).items()
    )
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in loaded.model.parameters())


# Weights


@pytest.mark.parametrize("case", TENSOR_FILES)
def test_weights_that_lie_about_themselves_are_refused(model: Path, case: str) -> None:
    damage, words = TENSOR_FILES[case]
    damage(model / WEIGHTS)
    refused(lambda: checkpoint.load(model), words)
    assert not (model / "trace").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("gene_tokens.weight"), r"gene_tokens\.weight: none for 65 x 8"),
        (lambda w: w.update(more=torch.zeros(3)), r"more: 3 for none"),
        (lambda w: w.update({"gene_tokens.weight": torch.zeros(65, 9)}), r"gene_tokens\.weight: 65 x 9 for 65 x 8"),
        (
            lambda w: w.update({"gene_tokens.weight": torch.zeros(65, 8, dtype=torch.int32)}),
            r"gene_tokens\.weight is torch\.int32",
        ),
        (lambda w: w["gene_tokens.weight"].fill_(np.nan), r"gene_tokens\.weight holds numbers that are not finite"),
        (
            lambda w: w.update({"head.out.bias": w["head.out.bias"].double().fill_(1e300)}),
            r"head\.out\.bias holds numbers that are too large for torch\.float32",
        ),
        (lambda w: w["head.out.bias"].fill_(np.inf), r"head\.out\.bias holds numbers that are not finite"),
    ],
)
def test_weights_of_another_network_or_without_meaning_are_refused(model: Path, change: Callable, words: str) -> None:
    change_weights(model, change)
    refused(lambda: checkpoint.load(model), words)


def test_pickles_beside_the_weights_are_never_opened(model: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "model.pt", "optimizer.bin", "training_args.bin", "state.pkl"):
        torch.save(Trap(tmp_path / "trace"), model / name)
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "stranger/model"}))
    (model / "modeling.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'trace')!r})\n")
    checkpoint.load(model)
    (model / WEIGHTS).unlink()
    refused(lambda: checkpoint.load(model), r"model\.safetensors missing")
    assert not (tmp_path / "trace").exists()


# Configuration


@pytest.mark.parametrize("case", JSON_FILES)
@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_records_that_are_no_plain_json_are_refused(model: Path, name: str, case: str) -> None:
    damage, words = JSON_FILES[case]
    damage(model / name)
    refused(lambda: checkpoint.load(model), words)
    assert not (model / "trace").exists()


CODE = {
    "auto_map": {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"},
    "trust_remote_code": True,
    "custom_pipelines": {"x": {"impl": "pipeline.Pipeline"}},
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "attn_implementation": "stranger/kernel",
    "_attn_implementation": "stranger/kernel",
    "_attn_implementation_internal": "stranger/kernel",
    "use_kernels": True,
    "configuration_files": ["config.5.0.0.json"],
    "base_model_name_or_path": "stranger/model",
    "per_layer_config": {"0": {"d_model": 10**9}},
}


@pytest.mark.parametrize("key", CODE)
def test_a_configuration_that_asks_for_code_or_for_another_way_of_loading_is_refused(model: Path, key: str) -> None:
    edit(model / "config.json", set_to(key, CODE[key]))
    refused(
        lambda: checkpoint.load(model), rf"config\.json: holds '{key}', which no Expresser model has", "asks for code"
    )


SIZES = ["vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "n_bins", "decoder_layers", "max_genes"]


@pytest.mark.parametrize("value", [10**9, 2**31 - 1, 10**18, -1, 1.5, "12", True, None, [1], {"a": 1}, 10**60])
@pytest.mark.parametrize("key", SIZES)
def test_absurd_sizes_are_refused_before_memory_is_taken_for_them(model: Path, key: str, value: object) -> None:
    edit(model / "config.json", set_to(key, value))
    if key == "max_genes" and type(value) is int and 2 <= value < 2**31:
        checkpoint.load(model)  # of a cell, shown at once: no weight has this size
    else:
        refused(lambda: checkpoint.load(model), key if type(value) is not int or not 0 < value < 2**31 else ".")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            (key, value)
            for key in ("dropout", "target_sum", "initializer_range")
            for value in (-1, 1e300, "0.1", True, None)
        ),
        ("dropout", 1.0),
        ("target_sum", 0),
        ("head", "os.system"),
        ("head", ["paper"]),
        ("value_input", {}),
        ("cell_scale", None),
        ("norm_first", 1),
        ("decoder_residual", "yes"),
        ("n_heads", 3),
        ("dtype", "float64"),
        ("dtype", ["float32"]),
        ("model_type", "bert"),
        ("model_type", ["expresser"]),
    ],
)
def test_choices_that_there_are_not_are_refused(model: Path, key: str, value: object) -> None:
    edit(model / "config.json", set_to(key, value))
    refused(lambda: checkpoint.load(model), key)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(model: Path, text: str) -> None:
    path = model / "config.json"
    edit(path, set_to("target_sum", 12345.5))
    path.write_text(path.read_text().replace("12345.5", text))
    refused(lambda: checkpoint.load(model), r"config\.json")


@pytest.mark.parametrize("kind", [ExpresserModel, ExpresserWithoutDecoder])
def test_transformers_own_way_of_loading_refuses_such_sizes_too(model: Path, kind: type) -> None:
    for key, value in (("n_layers", -1), ("d_model", 10**10), ("head", "os.system")):
        with bounded(), pytest.raises(InputError, match=key):
            kind(kind.config_class(**{key: value}))
    edit(model / "config.json", set_to("n_bins", 10**12))
    with bounded(), pytest.raises(InputError, match="n_bins"):
        ExpresserModel.from_pretrained(model)


def test_every_field_of_a_configuration_is_proven() -> None:
    """A field that is added and not proven would be taken from a stranger as it is."""
    own = {name for name in vars(ExpresserConfig)["__annotations__"] if not name.startswith("_")}
    for name in own - {"model_type", "attribute_map"}:
        config = ExpresserConfig()
        object.__setattr__(config, name, {"no": "value"})
        fault = config.fault()
        assert fault is not None, name
        assert name in fault


# Genes


def rows(folder: Path) -> list[str]:
    return (folder / "genes.tsv").read_text().splitlines()


def with_rows(folder: Path, lines: list[str]) -> None:
    (folder / "genes.tsv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("id_", "words"),
    [
        ("", "gene_id is ''"),
        ("A\x1b[2J", r"gene_id is 'A\\x1b\[2J'"),
        ("A\x00", r"gene_id is 'A\\x00'"),
        ("A\u202eB", r"gene_id is 'A\\u202eB'"),
        ("A\u2028B", "gene_id|line"),
        (None, "occurs more than once"),
    ],
)
def test_a_vocabulary_with_ids_that_are_none_is_refused(model: Path, id_: str | None, words: str) -> None:
    lines = rows(model)
    lines[5] = "\t".join([lines[6].split("\t")[0] if id_ is None else id_, *lines[5].split("\t")[1:]])
    with_rows(model, lines)
    refused(lambda: checkpoint.load(model), words)


@pytest.mark.parametrize("more", [-1, 1, 1_000_000])
def test_a_vocabulary_of_another_length_is_refused(model: Path, more: int) -> None:
    lines = rows(model)
    with_rows(model, lines[:-1] if more < 0 else lines + [f"G{i}\tG{i}" + "\t" * 6 for i in range(more)])
    refused(lambda: checkpoint.load(model), "64 genes, config.json says 65" if more < 0 else "more than 65 genes")


def test_a_vocabulary_that_unpacks_to_a_gigabyte_is_refused(model: Path) -> None:
    with gzip.open(model / "genes.tsv", "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"A" * (16 << 20))
    refused(lambda: checkpoint.load(model), "more than 65 genes, or lines far longer")


@pytest.mark.parametrize("place", ["9" * 5000, "9" * 30, "-1", "1.5", "x"])
def test_places_of_genes_are_whole_numbers_of_a_genome(model: Path, place: str) -> None:
    lines = rows(model)
    cells = lines[3].split("\t")
    lines[3] = "\t".join([*cells[:5], place, *cells[6:]])
    with_rows(model, lines)
    refused(lambda: checkpoint.load(model), "line 4", "whole numbers")


def test_genes_in_another_order_are_refused_where_the_run_knows_them(model: Path) -> None:
    vocab = checkpoint.load(model).vocab
    edit(model / "run.json", set_to("genes_sha256", vocab.sha256))
    lines = rows(model)
    with_rows(model, [lines[0], lines[2], lines[1], *lines[3:]])
    refused(lambda: checkpoint.load(model), "not the vocabulary the model was trained with")


# The run record


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", "1" * 40),
        ("step", [1]),
        ("step", True),
        ("cells_seen", {}),
        ("corpus_id", 5),
        ("genes_sha256", ["x"]),
        ("recipe", {"a": 1}),
        ("valid", [1, 2]),
        ("valid", {"mse": "<script>"}),
        ("provenance", "x"),
        ("provenance", {"versions": [1]}),
        ("sources", "x"),
        ("config", 3),
    ],
)
def test_a_run_record_of_other_kinds_is_refused(model: Path, key: str, value: object) -> None:
    edit(model / "run.json", set_to(key, value))
    refused(lambda: checkpoint.load(model), r"run\.json", key)


# Files that lead elsewhere


@pytest.mark.parametrize("name", checkpoint.FILES)
def test_a_link_out_of_the_folder_is_refused_whatever_it_leads_to(model: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    (model / name).rename(secret)
    (model / name).symlink_to(secret)
    refused(lambda: checkpoint.load(model), f"{name}: is a link to {secret}, outside of its folder")
    (model / name).unlink()
    (model / name).symlink_to(Path("..") / "secret")
    refused(lambda: checkpoint.load(model), "outside of its folder")


def test_links_within_the_folder_and_of_the_folder_itself_are_followed(model: Path, tmp_path: Path) -> None:
    for name in checkpoint.FILES:
        (model / name).rename(model / f"held-{name}")
        (model / name).symlink_to(f"held-{name}")
    (tmp_path / "link").symlink_to(model)
    checkpoint.load(tmp_path / "link")


def test_the_hubs_cache_is_made_of_links_into_its_blobs_and_nothing_else(model: Path, tmp_path: Path) -> None:
    repo = tmp_path / "hub" / "models--lab--tiny"
    snapshot, blobs = repo / "snapshots" / "0123abc", repo / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in checkpoint.FILES:
        shutil.copy(model / name, blobs / f"hash-{name}")
        (snapshot / name).symlink_to(Path("../../blobs") / f"hash-{name}")
    checkpoint.load(snapshot)
    other = tmp_path / "hub" / "models--lab--other" / "blobs"
    other.mkdir(parents=True)
    shutil.copy(model / "run.json", other / "hash")
    (snapshot / "run.json").unlink()
    (snapshot / "run.json").symlink_to(other / "hash")
    refused(lambda: checkpoint.load(snapshot), "outside of its folder")
    # An archive could bring a cache of its own whose blobs are a link to anywhere.
    (snapshot / "run.json").unlink()
    (snapshot / "run.json").symlink_to(Path("../../blobs/hash-run.json"))
    blobs.rename(tmp_path / "private")
    blobs.symlink_to(tmp_path / "private")
    refused(lambda: checkpoint.load(snapshot), "outside of its folder")


def test_a_pipe_in_place_of_a_file_does_not_hang(model: Path) -> None:
    for name in checkpoint.FILES:
        (model / name).rename(model / f"held-{name}")
        os.mkfifo(model / name)
        refused(lambda: checkpoint.load(model), "missing|no plain file")
        (model / name).unlink()
        (model / f"held-{name}").rename(model / name)
    checkpoint.load(model)

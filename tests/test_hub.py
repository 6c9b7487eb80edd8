"""Models on the hub, through its real client: what was pushed is what is loaded, and what went wrong is said."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import local_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from local_hub import EMPTY, Hub, Repo, point_client_at, put_folder
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from translate_toys import toy_anndata, toy_fit, toy_study

from expresser import checkpoint, cli
from expresser.errors import InputError
from expresser.genes import GeneVocab
from expresser.hub import TRANSLATOR_FILES, push
from expresser.hub_client import is_hub_id
from expresser.model.modeling import ExpresserModel
from translate import saving
from translate.translator import Translator

hub = local_hub.hub
# The client's own: it hands a file to its HTTP library in a way that this library is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def copy_of(tiny_run: Path, out: Path, *, seed: int | None = None) -> Path:
    """The run's model, with a seed another one of the same shape."""
    shutil.copytree(tiny_run / "model", out)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        weights = load_file(out / "model.safetensors")
        made = {name: torch.randn(w.shape, generator=generator) for name, w in weights.items()}
        save_file(made, out / "model.safetensors", metadata={"format": "pt"})
    return out


def uploads(hub: Hub) -> int:
    return sum(method == "PUT" for method, *_ in hub.asked)


# Pushed and loaded


def test_what_was_pushed_is_what_is_loaded(hub, tiny_run):
    address = push(tiny_run, "lab/tiny", private=True)
    repo = hub.repos["models/lab/tiny"]
    commit = repo.branches["main"]
    assert address == f"{hub.url}/lab/tiny/commit/{commit}"
    assert list(repo.commits) == [EMPTY, commit]
    assert repo.private
    held = repo.commits[commit]
    assert held.keys() == set(checkpoint.FILES)
    assert all(held[name] == (tiny_run / "model" / name).read_bytes() for name in held if name != "README.md")
    local = checkpoint.load(tiny_run)
    for name in ("lab/tiny", "lab/tiny@main", f"lab/tiny@{commit}"):
        loaded = checkpoint.load(name)
        assert equal(loaded.model, local.model)
        assert (loaded.vocab, loaded.run, loaded.source) == (local.vocab, local.run, name)
        assert not loaded.model.training


def test_a_revision_is_the_model_that_was_pushed_there(hub, tiny_run, tmp_path):
    other = copy_of(tiny_run, tmp_path / "other", seed=1)
    push(tiny_run, "lab/tiny")
    push(other, "lab/tiny", revision="release/v2")  # branches have slashes
    ours, theirs = checkpoint.load(tiny_run).model, checkpoint.load(other).model
    assert not equal(ours, theirs)
    assert equal(checkpoint.load("lab/tiny").model, ours)
    assert equal(checkpoint.load("lab/tiny@release/v2").model, theirs)
    first = hub.model("lab/tiny").branches["main"]
    push(other, "lab/tiny")
    assert equal(checkpoint.load("lab/tiny").model, theirs)
    assert equal(checkpoint.load(f"lab/tiny@{first}").model, ours)


@pytest.mark.parametrize("kind", [AutoModel, ExpresserModel])
def test_transformers_loads_it_by_name_and_revision(hub, tiny_run, tmp_path, kind):
    other = copy_of(tiny_run, tmp_path / "other", seed=1)
    push(tiny_run, "lab/tiny")
    push(other, "lab/tiny", revision="v2")
    assert equal(kind.from_pretrained("lab/tiny"), checkpoint.load(tiny_run).model)
    assert equal(kind.from_pretrained("lab/tiny", revision="v2"), checkpoint.load(other).model)
    with pytest.raises(OSError, match="v9"):
        kind.from_pretrained("lab/tiny", revision="v9")
    weights = load_file(other / "model.safetensors")
    weights.pop("gene_tokens.weight")
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    put_folder(hub.model("lab/tiny"), other, "v3")
    with pytest.raises(InputError, match=r"do not fit the configuration \(missing_keys: gene_tokens\.weight"):
        kind.from_pretrained("lab/tiny", revision="v3")


def test_a_loaded_checkpoint_is_pushed_as_its_folder_is(hub, tiny_run):
    push(checkpoint.load(tiny_run), "lab/loaded")
    push(tiny_run, "lab/folder")
    loaded, folder = (hub.model(f"lab/{name}").files() for name in ("loaded", "folder"))
    assert loaded.keys() == folder.keys()
    for name in checkpoint.FILES[:-1]:
        assert loaded[name] == folder[name]


def test_the_training_state_stays_here(hub, tiny_run):
    newest = checkpoint.list_checkpoints(tiny_run)[-1]
    assert (newest / "state" / "optimizer.safetensors").is_file()
    push(newest, "lab/tiny")
    assert hub.model("lab/tiny").files().keys() == set(checkpoint.FILES)
    put_folder(hub.model("lab/tiny"), newest)  # somebody put the whole folder there by other means
    hub.asked.clear()
    assert equal(checkpoint.load("lab/tiny").model, checkpoint.load(newest).model)
    assert not any("optimizer" in path for _, path, _ in hub.asked)


def test_files_of_an_older_push_go_and_those_of_others_stay(hub, tiny_run):
    theirs = {"LICENSE": b"text", ".gitattributes": b"*.safetensors filter=lfs", "figures/umap.png": b"png"}
    stale = ("inputs.json", "inputs.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json")
    repo = hub.model("lab/tiny")
    repo.put(theirs | dict.fromkeys((*stale, "config.json"), b"old"))
    push(tiny_run, "lab/tiny")
    assert repo.files().keys() == {*theirs, *checkpoint.FILES}
    assert len(repo.commits) == 3  # the empty one, theirs, and one that adds and removes


def test_the_same_again_sends_nothing(hub, tiny_run):
    first = push(tiny_run, "lab/tiny")
    before = uploads(hub)
    assert push(tiny_run, "lab/tiny") == first
    assert uploads(hub) == before == 1
    assert len(hub.model("lab/tiny").commits) == 2


def test_an_upload_that_broke_off_changes_nothing_and_is_repeated(hub, fitted, tiny_run):
    push(tiny_run, "lab/model")
    old = dict(hub.model("lab/model").files())
    hub.uploads_left = 1  # of the two large files
    with pytest.raises(InputError, match=r"lab/model: the hub did not take the model .* broke\. The same call goes on"):
        push(fitted, "lab/model")
    assert hub.model("lab/model").files() == old
    assert len(hub.model("lab/model").uploaded) == 2  # the older model's, and one of two
    hub.uploads_left, hub.asked = None, []
    push(fitted, "lab/model")
    assert uploads(hub) == 1
    assert hub.model("lab/model").files().keys() == set(TRANSLATOR_FILES)


# Translators


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    """The folder of a fit."""
    out = tmp_path_factory.mktemp("fit") / "run"
    toy_fit("babel", out, toy_study(seed=1))
    return out


def test_a_translator_is_pushed_and_loaded_too(hub, fitted):
    assert TRANSLATOR_FILES == saving.FILES
    push(fitted, "lab/babel", revision="v1", license="mit")
    held = hub.model("lab/babel").files("v1")
    assert held.keys() == set(saving.FILES)
    card = held["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n")
    assert "expresser translate predict lab/babel@v1 --input" in card
    made = toy_anndata(n_cells=9, seed=2)["rna"]
    ours = Translator.load(fitted).translate(made, "atac").X
    np.testing.assert_array_equal(Translator.load("lab/babel@v1").translate(made, "atac").X, ours)


@pytest.mark.parametrize("name", TRANSLATOR_FILES)
def test_a_damaged_translator_is_not_sent(hub, fitted, tmp_path, name):
    folder = Path(shutil.copytree(saving.locate(fitted, saving.FILES), tmp_path / "model"))
    file = folder / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    if name != "README.md":
        with pytest.raises(InputError, match=f"{name}: .*cut short or altered"):
            push(folder, "lab/babel")
    file.unlink()
    with pytest.raises(InputError, match=f"{name} missing|lacks|not a whole translator"):
        push(folder, "lab/babel")
    assert hub.asked == []


# Refused before anything is sent


@pytest.mark.parametrize(
    ("repo", "options", "words"),
    [
        ("tiny", {}, "org/name"),
        ("./lab/tiny", {}, "org/name"),
        ("s3://lab/tiny", {}, "org/name"),
        ("lab/tiny@v1", {}, r"org/name \(revision names a branch\)"),
        ("lab/tiny", {"license": "Apache 2.0"}, "apache-2.0"),
        ("lab/tiny", {"license": "mit\ntags: [x]"}, "apache-2.0"),
    ],
)
def test_a_name_that_is_none_is_refused(hub, tiny_run, repo, options, words):
    with pytest.raises(InputError, match=words):
        push(tiny_run, repo, **options)
    assert hub.asked == []


@pytest.mark.parametrize("damage", ["weights", "genes", "run", "head", "nothing there", "no folder"])
def test_what_is_not_a_whole_model_is_not_sent(hub, tiny_run, tmp_path, damage):
    folder = copy_of(tiny_run, tmp_path / "model")
    words = {
        "weights": r"model\.safetensors: cut short or altered",
        "genes": r"79 genes, config\.json says 80",
        "run": "run.json missing",
        "head": r"README\.md: the lines between --- at its head .* remove the file",
        "nothing there": "not a model folder",
        "no folder": "no such folder",
    }[damage]
    match damage:
        case "weights":
            whole = (folder / "model.safetensors").read_bytes()
            (folder / "model.safetensors").write_bytes(whole[:-100])
        case "genes":
            ids = GeneVocab.load(folder / "genes.tsv").ids
            GeneVocab.from_names(ids[:-1].tolist()).save(folder / "genes.tsv")
        case "run":
            (folder / "run.json").unlink()
        case "head":
            (folder / "README.md").write_text("---\nlicense: [apache\n---\n# mine\n")
        case "nothing there":
            shutil.rmtree(folder)
            folder.mkdir()
        case "no folder":
            shutil.rmtree(folder)
    with pytest.raises(InputError, match=words):
        push(folder, "lab/tiny")
    assert hub.asked == []


def test_weights_without_genes_are_not_pushed_through_transformers(hub, tiny_run, tmp_path):
    model = ExpresserModel.from_pretrained(tiny_run / "model")
    with pytest.raises(InputError, match=r"genes\.tsv.*expresser\.hub\.push"):
        model.push_to_hub("lab/tiny")
    with pytest.raises(InputError, match=r"expresser\.hub\.push"):
        model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="lab/tiny")
    assert hub.asked == []
    assert not (tmp_path / "model").exists()


def test_private_does_not_leave_a_public_model_public(hub, tiny_run):
    push(tiny_run, "lab/tiny")
    before = dict(hub.model("lab/tiny").commits)
    with pytest.raises(InputError, match="there already, and public"):
        push(tiny_run, "lab/tiny", private=True)
    assert hub.model("lab/tiny").commits == before


# Refused by the hub


def test_whoever_may_not_write_is_told_so(hub, tiny_run, monkeypatch):
    with pytest.raises(InputError, match=r"other/tiny: the hub did not take the model .*403.* may not write there"):
        push(tiny_run, "other/tiny")
    hub.token = "secret"
    with pytest.raises(InputError, match=r"nobody is logged in, or the token is not valid .*hf auth login"):
        push(tiny_run, "lab/tiny")
    monkeypatch.setenv("HF_TOKEN", "secret")
    push(tiny_run, "lab/tiny", private=True)
    assert equal(checkpoint.load("lab/tiny").model, checkpoint.load(tiny_run).model)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "-of-another")
    with pytest.raises(InputError, match=r"lab/tiny: .*there is no such model, or it is private .*hf auth login"):
        checkpoint.load("lab/tiny")


def test_a_push_to_nowhere_is_one_message(hub, tiny_run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match=r"told to be offline\. Unset HF_HUB_OFFLINE"):
            push(tiny_run, "lab/tiny")
    assert hub.asked == []
    hub.status = 503
    with pytest.raises(InputError, match=r"busy or down \(503\)"):
        push(tiny_run, "lab/tiny")
    point_client_at("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    with pytest.raises(InputError, match=r"connection to http://127\.0\.0\.1:9 broke"):
        push(tiny_run, "lab/tiny")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lab/other", "there is no such model, or it is private"),
        ("lab/tiny@v9", "model lab/tiny is there, but has no revision 'v9'. Name a branch, tag or commit"),
        ("lab/gated", "access is given on request: ask for it at .*/lab/gated"),
        ("lab/a--b", "no name that the hub allows"),
        (
            "lab/empty",
            r"lab/empty: not a model folder: config\.json, model\.safetensors, genes\.tsv, run\.json missing",
        ),
    ],
)
def test_what_the_hub_does_not_give_is_said(hub, tiny_run, name, words):
    push(tiny_run, "lab/tiny")
    hub.model("lab/gated").gated = True
    hub.model("lab/empty").put({"notes.txt": b"text"})
    with pytest.raises(InputError, match=words):
        checkpoint.load(name)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("lab/tiny", True),
        ("lab/tiny@v1", True),
        ("lab/tiny@refs/pr/1", True),
        ("lab/t.i-n_y", True),
        ("tiny", False),
        ("a/b/c", False),
        ("./lab/tiny", False),
        ("/lab/tiny", False),
        ("lab/tiny@", False),
        ("lab/", False),
        ("lab/tiny@v 1", False),
    ],
)
def test_a_hub_id_is_told_from_a_path(text, is_one):
    assert is_hub_id(text) == is_one


# Lines that break, and no line at all


def test_a_line_that_breaks_is_taken_up_at_the_byte_where_it_broke(hub, tiny_run, monkeypatch):
    push(tiny_run, "lab/tiny")
    size = (tiny_run / "model" / "model.safetensors").stat().st_size
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.cut["model.safetensors"] = size // 2
    monkeypatch.setattr(time, "sleep", lambda seconds: hub.cut.clear())  # it breaks once; the client waits before a try
    assert equal(checkpoint.load("lab/tiny").model, checkpoint.load(tiny_run).model)
    first, second = hub.starts("model.safetensors")
    assert first == 0
    assert size // 2 - 1024 < second <= size // 2


def test_a_line_that_stays_broken_is_said_and_the_next_call_asks_for_the_rest_alone(hub, tiny_run):
    push(tiny_run, "lab/tiny")
    hub.cut["model.safetensors"] = 1000
    with pytest.raises(InputError, match=r"lab/tiny: .*broke\. The same call goes on with the files that are missing"):
        checkpoint.load("lab/tiny")
    hub.cut.clear()
    hub.asked.clear()
    assert equal(checkpoint.load("lab/tiny").model, checkpoint.load(tiny_run).model)
    assert {path.rpartition("/")[2] for method, path, _ in hub.asked if method == "GET" and "/resolve/" in path} == {
        "model.safetensors"
    }


def test_half_a_model_is_none(hub, tiny_run, monkeypatch):
    push(tiny_run, "lab/tiny")
    hub.cut["model.safetensors"] = 1000
    with pytest.raises(InputError):
        checkpoint.load("lab/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"lab/tiny: .*only part of it is in .* told to be offline"):
        checkpoint.load("lab/tiny")


@pytest.mark.parametrize("cause", ["offline", "unreachable", "down"])
def test_without_a_hub_what_is_cached_loads_and_the_rest_is_said(hub, tiny_run, monkeypatch, cause):
    push(tiny_run, "lab/tiny")
    push(tiny_run, "lab/tiny", revision="v2")
    local = checkpoint.load(tiny_run).model
    commit = hub.model("lab/tiny").branches["main"]
    checkpoint.load("lab/tiny")
    words = {
        "offline": "told to be offline. Unset HF_HUB_OFFLINE",
        "unreachable": "the hub cannot be reached at http://127.0.0.1:9",
        "down": "the hub cannot be reached at",
    }[cause]
    if cause == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif cause == "unreachable":
        point_client_at("http://127.0.0.1:9", Path(constants.HF_HUB_CACHE), monkeypatch)
    else:
        hub.status = 500
    hub.asked.clear()
    for name in ("lab/tiny", "lab/tiny@main", f"lab/tiny@{commit}"):
        assert equal(checkpoint.load(name).model, local)
    for name in ("lab/tiny@v2", "lab/never"):
        with pytest.raises(InputError, match=f"{name}: no such folder here, .*it is not in .*{words}"):
            checkpoint.load(name)
    if cause == "offline":
        assert hub.asked == []
        assert equal(AutoModel.from_pretrained("lab/tiny"), local)


# Nothing is unpickled and no code is run


class Trap:
    """Whoever unpickles it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self._trace),)


@pytest.mark.parametrize("load", [checkpoint.load, AutoModel.from_pretrained, ExpresserModel.from_pretrained])
def test_pickles_and_code_on_the_hub_are_left_alone(hub, tiny_run, tmp_path, load):
    folder, trace = copy_of(tiny_run, tmp_path / "model"), tmp_path / "trace"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(trace)))
    (folder / "modeling.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    plain = json.loads((folder / "config.json").read_text())
    asking = plain | {"auto_map": {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"}}
    (folder / "config.json").write_text(json.dumps(asking))
    put_folder(hub.model("lab/trap"), folder)
    if load is checkpoint.load:
        with pytest.raises(InputError, match="holds 'auto_map', which no Expresser model has"):
            load("lab/trap")
        (folder / "config.json").write_text(json.dumps(plain))
        put_folder(hub.model("lab/trap"), folder)
    loaded = load("lab/trap")
    assert equal(getattr(loaded, "model", loaded), checkpoint.load(tiny_run).model)
    (folder / "model.safetensors").unlink()
    put_folder(hub.model("lab/trap"), folder)
    with pytest.raises((InputError, OSError), match=r"safetensors|/commits/"):  # transformers looks for a conversion
        load("lab/trap")
    assert not any(path.endswith((".bin", ".py")) and method == "GET" for method, path, _ in hub.asked)
    assert not trace.exists()


# The command


@pytest.fixture
def command(monkeypatch):
    entry = EntryPoint("push", "expresser.commands_hub:PUSH", "expresser.commands")
    monkeypatch.setattr(cli, "commands", lambda: {"push": entry})
    return lambda *words: cli.main(["push", *map(str, words)])


def test_the_command_pushes_and_says_how_the_model_is_named(hub, command, tiny_run, capsys):
    command(tiny_run, "lab/tiny", "--revision", "v1", "--private", "--license", "cc-by-4.0")
    commit = hub.model("lab/tiny").branches["v1"]
    assert f"at {hub.url}/lab/tiny/commit/{commit}: name it lab/tiny@v1 wherever" in capsys.readouterr().out
    assert hub.model("lab/tiny").private
    assert b"\nlicense: cc-by-4.0\n" in hub.model("lab/tiny").files("v1")["README.md"]
    with pytest.raises(SystemExit) as end:
        command(tiny_run, "other/tiny")
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_its_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        command("--help")
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "expresser push runs/small lab/small --license cc-by-4.0" in out
    assert all(f"--{option}" in out for option in ("revision", "private", "license"))


@pytest.mark.slow
def test_another_process_is_told_by_the_environment(hub, tiny_run, tmp_path):
    """No part of the client is altered here: HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are all it knows."""
    said = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    said |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    program = "import sys; from expresser.commands_hub import PUSH; PUSH.run(sys.argv[1:])"
    subprocess.run([sys.executable, "-c", program, str(tiny_run), "lab/tiny"], env=said, check=True)
    program = (
        "from expresser.checkpoint import load; print(float(load('lab/tiny').model.gene_tokens.weight.double().sum()))"
    )
    sums = []
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", program], env=said | more, check=True, stdout=subprocess.PIPE, text=True
        )
        sums.append(float(done.stdout))
        hub.status = 500
    weight = checkpoint.load(tiny_run).model.gene_tokens.weight
    assert sums == [pytest.approx(float(weight.detach().double().sum()))] * 2
    assert not math.isclose(sums[0], 0)
    assert isinstance(hub.model("lab/tiny"), Repo)

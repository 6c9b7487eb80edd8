"""expresser repeat: run.json alone repeats a run, its inputs are proven first, and a stranger's record chooses nothing else."""

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from repeat_commands import MADE, run_in_a_process
from safetensors.numpy import save_file

import expresser.contents as contents
from expresser.cli import main
from expresser.completion import forms
from expresser.invocation import invocation, invoked, paths_in
from expresser.record import provenance, storable
from expresser.repeating import Line, differences, read_recorded, running
from expresser.repeating.line import REPEATED

SIMULATE = shlex.split("simulate rna --cells 40 --genes 30 --types 2 --modules 2 --median-depth 200")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory) -> Path:
    """Simulated cells in `sim`, and a corpus of them in `corpus`, as commands left them."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main([*SIMULATE, "--out", "sim"])
        main(["corpus", "build", "sim/rna.h5ad", "--obs", "cell_type", "--out", "corpus"])
    return folder


@pytest.fixture
def here(made_once, tmp_path, monkeypatch) -> Path:
    """A copy of these as a working directory, as if made there; commands that are repeated run in this process."""
    folder = tmp_path / "here"
    shutil.copytree(made_once, folder)
    for record in folder.glob("*/run.json"):
        record.write_text(record.read_text().replace(str(made_once), str(folder)))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(running, "run_again", in_this_process)
    return folder


def in_this_process(arguments: Sequence[str], environment: Any) -> int:
    main(list(arguments))
    return 0


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one message of a command that exits with 2 and leaves the folder as it was."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    said = capsys.readouterr()
    assert caught.value.code == 2
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    assert sorted(Path().rglob("*")) == before
    return said.err


def change(record: Path, **fields: Any) -> None:
    """Other fields in the invocation of a record."""
    found = json.loads(record.read_text())
    found["provenance"]["invocation"] |= fields
    record.write_text(json.dumps(found))


# The record


def test_a_record_says_the_command_as_data_and_what_its_inputs_held(here):
    found = json.loads(Path("corpus/run.json").read_text())["provenance"]
    told = found["invocation"]
    assert told["arguments"] == ["corpus", "build", "sim/rna.h5ad", "--obs", "cell_type", "--out", "corpus"]
    assert told["folder"] == str(here)
    assert told["inputs"] == {
        "sim/rna.h5ad": {"path": str(here / "sim/rna.h5ad"), "sha256": contents.content_sha256(Path("sim/rna.h5ad"))}
    }
    assert set(found["versions"]) >= {"expresser", "python", "torch", "numpy", "scipy"}
    assert found["machine"]["torch_threads"] >= 1


def test_outside_of_a_command_line_there_is_no_command_to_repeat(capsys, here):
    assert invocation() is None
    assert provenance()["invocation"] is None
    Path("made").mkdir()
    Path("made/run.json").write_text(json.dumps({"provenance": provenance(command="by hand")}))
    assert "begun from Python" in refused(capsys, "repeat", "made")


def test_a_command_within_a_command_has_its_own_words():
    with invoked(["demo"]):
        with invoked(["embed", "a"]):
            assert (invocation() or {})["arguments"] == ["embed", "a"]
        assert (invocation() or {})["arguments"] == ["demo"]


def test_what_is_written_is_no_input():
    words = ["--rna", "a.h5ad", "--out", "b", "--models=own=c", "own=d", "--out=e"]
    assert paths_in(words) == ["a.h5ad", "own=c", "own=d", "d"]


def test_a_model_is_its_weights_and_tables_not_what_is_said_of_it(tmp_path):
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "run.json", "README.md"):
        (run / "model" / name).write_text(name)
    before = contents.content_sha256(run)
    assert contents.content_sha256(run / "model") == before
    (run / "log.jsonl").write_text("{}")
    (run / "model" / "run.json").write_text("another time")
    assert contents.content_sha256(run) == before
    (run / "model" / "model.safetensors").write_text("other weights")
    assert contents.content_sha256(run) != before


def test_a_file_that_changes_has_another_hash_however_soon(tmp_path):
    path = tmp_path / "a"
    seen = set()
    for letter in "abc":  # of one size, within the resolution of the file system's clock
        path.write_text(letter)
        seen.add(contents.content_sha256(path))
    assert len(seen) == 3


# Repeating


def test_data_and_corpora_are_repeated_to_the_byte(capsys, here):
    for made in ("sim", "corpus"):
        main(["repeat", made, "--check"])
        assert f"{made}_repeat: the same as {made}" in capsys.readouterr().out
    assert Path("sim/rna.h5ad").read_bytes() == Path("sim_repeat/rna.h5ad").read_bytes()
    # The record of the repetition repeats too: nothing is lost by going through a record.
    main(["repeat", "corpus_repeat", "--out", "third", "--check"])


def test_the_record_alone_is_enough(here, tmp_path, monkeypatch):
    shutil.copy("corpus/run.json", tmp_path / "run.json")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # inputs are found by where they were, not by where this is called
    main(["repeat", "../run.json", "--out", "again"])
    assert differences(here / "corpus", Path("again"), {"sim/rna.h5ad": str(here / "sim/rna.h5ad")}) == []


def test_an_anndata_file_says_the_last_command_that_wrote_it(capsys, here, tiny_run, tiny_data):
    tiny_data[:12].copy().write_h5ad("cells.h5ad")
    main(["embed", str(tiny_run), "cells.h5ad", "--out", "embedded.h5ad"])
    gene = str(tiny_data.var_names[3])
    main(["impute", str(tiny_run), "embedded.h5ad", "--genes", gene, "--out", "imputed.h5ad"])
    assert read_recorded(Path("embedded.h5ad")).arguments[0] == "embed"
    for name in ("embedded", "imputed"):
        main(["repeat", f"{name}.h5ad", "--check"])
        assert f"{name}_repeat.h5ad: the same" in capsys.readouterr().out
    assert "says no command" in refused(capsys, "repeat", "cells.h5ad")


def test_what_uns_holds_of_a_record_is_what_the_record_says(tmp_path):
    with invoked(["embed", "run", "a.h5ad"]):
        found = provenance(seed=None)
    adata = anndata.AnnData(shape=(1, 1))
    adata.uns["expresser"] = {"embed": {"provenance": storable(found)}}
    adata.write_h5ad(tmp_path / "a.h5ad")
    told = read_recorded(tmp_path / "a.h5ad")
    assert told.arguments == ("embed", "run", "a.h5ad")
    assert {k: v for k, v in found["versions"].items() if v} == dict(told.versions)


def test_every_input_that_changed_or_is_gone_is_named(capsys, here):
    shutil.copy("corpus/genes.tsv", "genes.tsv")
    main(["corpus", "build", "sim/rna.h5ad", "--genes", "genes.tsv", "--out", "second"])
    Path("moved").mkdir()
    moved = Path("sim/rna.h5ad").rename("moved/rna.h5ad")
    Path("genes.tsv").write_text("other")
    message = refused(capsys, "repeat", "second")
    assert "sim/rna.h5ad: is not at" in message
    assert "genes.tsv: has changed" in message
    assert "no such input" in refused(capsys, "repeat", "corpus", "--input", "x.h5ad=moved/rna.h5ad")
    assert "has changed" in refused(capsys, "repeat", "corpus", "--input", "sim/rna.h5ad=sim/pairs.tsv")
    main(["repeat", "corpus", "--input", f"sim/rna.h5ad={moved}", "--out", "again"])
    assert differences(Path("corpus"), Path("again")) == []


def test_a_changed_input_is_taken_where_that_is_asked_for(capsys, here):
    main(["simulate", "rna", *SIMULATE[2:], "--seed", "1", "--out", "sim"])
    refused(capsys, "repeat", "corpus")
    with pytest.raises(SystemExit) as caught:
        main(["repeat", "corpus", "--anyway", "--check"])
    said = capsys.readouterr()
    assert caught.value.code == 1
    assert "warning: sim/rna.h5ad: has changed" in said.err
    assert "manifest.json: content" in said.out


def test_another_version_number_of_threads_or_device_is_told(capsys, here):
    path = Path("corpus/run.json")
    record = json.loads(path.read_text())
    record["provenance"]["versions"]["numpy"] = "1.0"
    record["provenance"]["machine"] |= {"accelerator": "NVIDIA X", "cpus": 999, "torch_threads": 500}
    record["provenance"]["invocation"]["environment"] = {}
    path.write_text(json.dumps(record))
    main(["repeat", "corpus", "--show"])
    said = capsys.readouterr()
    assert "numpy 2" in said.err
    assert "then 1.0" in said.err
    assert "then NVIDIA X" in said.err
    assert "OMP_NUM_THREADS=500" in said.err
    assert said.out.startswith("expresser corpus build sim/rna.h5ad --obs cell_type --out ")
    assert not Path("corpus_repeat").exists()


def test_what_is_there_is_never_written_over(capsys, here):
    for out in ("corpus", "sim/rna.h5ad"):
        assert "exists" in refused(capsys, "repeat", "corpus", "--out", out)
    Path("corpus_repeat").mkdir()
    Path("corpus_repeat/mine").touch()
    assert "exists" in refused(capsys, "repeat", "corpus")
    Path("alone").mkdir()
    shutil.copy("corpus/run.json", "alone/run.json")
    assert "nothing beside its record" in refused(capsys, "repeat", "alone", "--check", "--out", "x")


def test_a_run_of_several_processes_is_left_to_its_launcher(capsys, here):
    change(Path("corpus/run.json"), processes=4)
    assert "accelerate launch --num_processes 4 -m corpus build" in refused(capsys, "repeat", "corpus")


def test_a_repetition_begins_anew_and_tells_no_service(here):
    change(
        Path("corpus/run.json"),
        arguments=shlex.split(
            "pretrain small --corpus c --resume --tracker wandb --optim.lr=-1e-3 --data.valid-by None --out a"
        ),
    )
    line = Line.of(read_recorded(Path("corpus")), Path("corpus")).writing_to(Path("b"))
    assert line.arguments == shlex.split("pretrain small --corpus c --optim.lr -1e-3 --data.valid-by None --out b")


def test_a_failing_command_fails_the_repetition(here, monkeypatch):
    monkeypatch.setattr(running, "run_again", lambda arguments, environment: 2)
    with pytest.raises(SystemExit) as caught:
        main(["repeat", "corpus"])
    assert caught.value.code == 2


def test_the_child_is_this_program_with_the_threads_of_then_and_no_shell(monkeypatch):
    seen: dict[str, Any] = {}

    class Child:
        def __init__(self, words: list[str], **options: Any) -> None:
            seen.update(words=words, **options)

        def wait(self) -> int:
            return 0

    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(running.subprocess, "Popen", Child)
    assert running.run_again(["corpus", "info", "; rm -rf x"], {"NUMBA_NUM_THREADS": "3"}) == 0
    assert seen["words"] == [*running.COMMAND, "corpus", "info", "; rm -rf x"]
    assert "-P" in running.COMMAND
    assert not seen.get("shell")
    assert "OMP_NUM_THREADS" not in seen["env"]
    assert seen["env"]["NUMBA_NUM_THREADS"] == "3"


# A record from elsewhere


@pytest.mark.parametrize(
    "line",
    [
        "push run org/name --out x",
        "corpus push corpus org/name",
        "corpus pull https://example.org/c --out x",
        "corpus append corpus a.h5ad",
        "data get hgnc --out x",
        "completion bash",
        "repeat corpus --out x",
        "demo --out x",
        "report corpus --out x",
        "translate openproblems --output x",
        "finetune export --out x",
        "no-such-command --out x",
        "corpus no-such-verb --out x",
        "simulate --out x",
        "translate fit no_such_system --out x",
        "translate fit babel/../../x --out x",
        "--help",
        "simulate rna --tyro-write-completion bash victim --out x",
        "simulate rna --tyro-print-completion bash --out x",
        "simulate rna --help --out x",
        "simulate rna -h --out x",
        "simulate rna --config /etc/passwd --out x",
        "simulate rna",
        "simulate rna --out x --out victim",
        "corpus info corpus --html victim --out x",
    ],
)
def test_only_known_commands_with_known_options_are_run(capsys, here, monkeypatch, line):
    ran: list[Any] = []
    monkeypatch.setattr(running, "run_again", lambda *given: ran.append(given))
    change(Path("sim/run.json"), arguments=line.split())
    assert len(refused(capsys, "repeat", "sim").splitlines()) == 1
    assert ran == []


@pytest.mark.parametrize(
    "fields",
    [
        {"arguments": "simulate rna --out x"},
        {"arguments": []},
        {"arguments": ["simulate", 3]},
        {"arguments": ["simulate", "rna\n", "--out", "x"]},
        {"arguments": ["simulate", "rna", "--out", "x\x00y"]},
        {"arguments": ["simulate", "rna", "\x1b[2J", "--out", "x"]},
        {"arguments": ["x"] * 5000},
        {"arguments": ["x" * 5000]},
        {"arguments": {"0": "simulate"}},
        {"environment": {"LD_PRELOAD": "/tmp/evil.so"}},
        {"environment": {"PYTHONPATH": "/tmp"}},
        {"environment": {"OMP_NUM_THREADS": "1; reboot"}},
        {"environment": ["OMP_NUM_THREADS"]},
        {"processes": "4"},
        {"inputs": ["a"]},
        {"inputs": {"a": "b"}},
        {"inputs": {"a": {"path": "/a", "sha256": "no hash"}}},
        {"inputs": {"a": {"path": "/a", "revision": "b", "sha256": "0" * 64}}},
        {"inputs": {"a": {"revision": "main", "sha256": "0" * 64}}},
        {"environment": {"OMP_NUM_THREADS": "99999"}},
        {"inputs": {"a": {"sha256": "0" * 64}}},
    ],
    ids=str,
)
def test_a_record_that_is_not_as_a_run_leaves_it_is_refused(capsys, here, fields):
    change(Path("sim/run.json"), **fields)
    assert "sim/run.json" in refused(capsys, "repeat", "sim")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"provenance": 3}', '{"a": ' * 5000, "\xff", '{"provenance": {"invocation": []}}']
)
def test_a_damaged_record_is_refused(capsys, here, text):
    Path("sim/run.json").write_bytes(text.encode("latin-1"))
    assert "sim/run.json" in refused(capsys, "repeat", "sim")
    Path("sim/rna.h5ad").write_bytes(text.encode("latin-1"))
    assert "sim/rna.h5ad" in refused(capsys, "repeat", "sim/rna.h5ad")
    assert "nowhere" in refused(capsys, "repeat", "nowhere")


def test_where_a_record_writes_is_chosen_here_alone(here, tmp_path):
    victim = tmp_path / "victim"
    for out in (["--out", str(victim)], [f"--out={victim}"]):
        change(Path("sim/run.json"), arguments=[*SIMULATE, *out])
        main(["repeat", "sim", "--out", f"mine{len(out)}"])
        assert (here / f"mine{len(out)}" / "rna.h5ad").is_file()
    assert not victim.exists()


def test_an_input_that_the_record_does_not_vouch_for_is_told(capsys, here):
    change(Path("corpus/run.json"), inputs={})
    main(["repeat", "corpus"])
    assert "warning: sim/rna.h5ad: the record does not say what it held" in capsys.readouterr().err


def test_a_model_of_the_hub_is_taken_at_the_revision_of_then(here):
    commit = "c" * 40
    change(
        Path("corpus/run.json"),
        arguments=shlex.split("embed lab/model@main sim/rna.h5ad --out x.h5ad"),
        inputs={"lab/model@main": {"revision": commit, "sha256": "0" * 64}},
    )
    from expresser.repeating.line import found_inputs

    recorded = read_recorded(Path("corpus"))
    names, _ = found_inputs(recorded, Line.of(recorded, Path("corpus")), {})
    assert names == {"lab/model@main": f"lab/model@{commit}"}


def test_what_may_be_repeated_exists_and_says_where_it_writes():
    known = forms()
    for words in REPEATED:
        of = [form for form in known if form.words[: len(words)] == words and form.options]
        assert of, words
        for form in of:
            assert [flag for option in form.options for flag in option.flags].count("--out") == 1, form.words


# Comparing


def test_a_difference_of_one_bit_is_found_in_every_kind_of_file(here, tmp_path):
    import numpy as np
    import pandas as pd
    from safetensors.numpy import save_file

    old, new = tmp_path / "old", tmp_path / "new"
    for folder, x in ((old, 1.0), (new, float(np.nextafter(np.float32(1), np.float32(2))))):
        folder.mkdir()
        save_file({"weight": np.array([x, np.nan], np.float32)}, folder / "model.safetensors")
        (folder / "metrics.json").write_text(json.dumps({"mae": x, "seconds": x * 7, "nested": {"peak_mb": x}}))
        (folder / "log.jsonl").write_text(json.dumps({"loss": x, "cells_per_s": x}) + "\n")
        pd.DataFrame({"a": [x]}).to_parquet(folder / "table.parquet")
        anndata.AnnData(np.array([[x]], np.float32)).write_h5ad(folder / "cells.h5ad")
        (folder / "split.tsv").write_text(f"{x}\n")
        (folder / "report.html").write_text(f"{x}")
    found = differences(old, new)
    assert {line.partition(":")[0] for line in found} == {
        "model.safetensors",
        "metrics.json",
        "log.jsonl",
        "table.parquet",
        "cells.h5ad",
        "split.tsv",
    }
    assert not any("seconds" in line or "mb" in line or "per_s" in line for line in found)
    assert differences(old, old) == []
    (new / "more.tsv").touch()
    assert any("more.tsv: only in" in line for line in differences(old, new))


def test_names_of_inputs_that_lie_elsewhere_are_no_difference(tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text('{"model": "runs/a", "of": "runs/a/b and runs/ab"}')
    new.write_text('{"model": "/x/a", "of": "/x/a/b and /y"}')
    assert differences(old, new, {"runs/a": "/x/a", "runs/ab": "/y"}) == []
    assert len(differences(old, new, {"runs/a": "/x/a"})) == 1
    # What is called like an input by chance has kept its name.
    assert differences(old, old, {"runs/a": "/x/a"}) == []
    # A longer name that begins like it is another one.
    new.write_text('{"model": "/x/a", "of": "/x/a/b and /x/ab"}')
    assert differences(old, new, {"runs/a": "/x/a"}) == ["of was 'runs/a/b and runs/ab', is '/x/a/b and /x/ab'"]


# Every family, by the command line itself


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder in which one command of each family has run."""
    folder = tmp_path_factory.mktemp("repeat") / "world"
    run_in_a_process(folder, list(MADE.values()), seed=1)
    return folder


@pytest.mark.slow
def test_every_family_is_repeated_from_its_record_with_equal_results(world):
    """In a second process, with other hashes and generators, by expresser repeat --check alone."""
    before = set(world.iterdir())
    run_in_a_process(world, [f"repeat {made} --check --out again/{made}" for made in MADE], seed=2)
    assert set(world.iterdir()) - before == {world / "again"}


@pytest.mark.slow
def test_a_repetition_in_a_process_of_its_own_is_the_run(world):
    run_in_a_process(world, ["repeat embedded.h5ad --check --out own.h5ad"], seed=3, here=False)
    assert (world / "own.h5ad").is_file()


def test_weights_are_compared_as_they_are_stored_and_damaged_files_are_told(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, more in ((old, 0), (new, 1)):
        folder.mkdir()
        values = {"count": np.array([2**24 + more]), "mean": np.array([1 + 1e-12 * more])}
        save_file(values, folder / "inputs.safetensors")
        (folder / "metrics.json").write_text("[" * (100_000 + more))
        (folder / "model.safetensors").write_bytes(b"x" * (100 + more))
    found = differences(old, new)
    assert sum("1 of 1 values differ" in line for line in found) == 2  # float32 holds neither difference
    assert sum("cannot be compared" in line for line in found) == 2


@pytest.mark.parametrize("name", ["config.json", "head.json", "model/config.json"])
def test_a_model_is_known_by_its_files_whatever_a_manifest_beside_them_claims(tmp_path, name):
    (tmp_path / "model").mkdir()
    (tmp_path / name).write_text("{}")
    (tmp_path / "manifest.json").write_text(json.dumps({"corpus_id": "a" * 64}))
    before = contents.content_sha256(tmp_path)
    (tmp_path / name).with_name("model.safetensors").write_bytes(b"others")
    assert contents.content_sha256(tmp_path) != before

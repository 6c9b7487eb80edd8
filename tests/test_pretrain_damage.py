"""A corpus that is damaged, incomplete or of a newer version is said to be so before the first step, and no run folder is left."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import pytest

from expresser.cli import main
from expresser.corpus.build import build_corpus
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from pretrain import start
from pretrain.config import Recipe
from pretrain.loop import pretrain

SHARD = "cells-00001.arrow"


@pytest.fixture(scope="module")
def whole(tiny_data: anndata.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards."""
    return build_corpus([tiny_data], tmp_path_factory.mktemp("whole") / "corpus", shard_rows=50, batch_rows=20).path


def flipped(name: str, where: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(where * len(data))] ^= 4
        (folder / name).write_bytes(data)

    return damage


def truncated(folder: Path) -> None:
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[: len(data) // 2])


def truncated_unseen(folder: Path) -> None:
    """The manifest agrees with the cut file, as where a faulty copy was taken for the corpus: the Arrow stream ends early."""
    truncated(folder)
    changed(folder, lambda m: m["shards"][1].update(bytes=(folder / SHARD).stat().st_size))


def changed(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte at the start": (flipped(SHARD, 0.3), f"{SHARD}: sha256 is .* the manifest's is"),
    "a flipped byte at the end": (flipped(SHARD, 0.95), f"{SHARD}: sha256 is .* the manifest's is"),
    "a flipped byte of the labels": (flipped("obs.parquet", 0.2), r"obs\.parquet: sha256 is"),
    "a missing shard": (lambda folder: (folder / SHARD).unlink(), f"{SHARD}: missing"),
    "a truncated shard": (truncated, rf"{SHARD}: [\d,]+ bytes, the manifest says [\d,]+: the file was cut short"),
    "a stream that ends early": (truncated_unseen, rf"{SHARD}: not readable as an Arrow stream"),
    "a newer manifest": (
        lambda folder: changed(folder, lambda m: m.update(format_version=2)),
        r"manifest\.json: corpus format version 2; this version of expresser reads version 1\. Build the corpus again",
    ),
    "an altered manifest": (
        lambda folder: changed(folder, lambda m: m.update(content="0" * 64)),
        r"manifest\.json: altered after the build",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_corpus_is_refused_before_the_first_step(
    tiny_recipe: Recipe, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(start, "build_model", lambda *_: pytest.fail("the run began"))
    folder = Path(shutil.copytree(whole, tmp_path / "corpus"))
    harm, message = DAMAGES[damage]
    harm(folder)
    with pytest.raises(InputError, match=message):
        pretrain(tiny_recipe, folder, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_resumed_on_a_corpus_damaged_meanwhile_is_refused_and_kept(
    tiny_recipe: Recipe, whole: Path, tmp_path: Path
) -> None:
    folder, run = Path(shutil.copytree(whole, tmp_path / "corpus")), tmp_path / "run"
    pretrain(tiny_recipe, folder, run, quiet=True, stop_after=5)
    flipped(SHARD, 0.5)(folder)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="sha256"):
        pretrain(tiny_recipe, folder, run, quiet=True, resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    shutil.rmtree(folder)
    shutil.copytree(whole, folder)
    assert pretrain(tiny_recipe, folder, run, quiet=True, resume=True)["step"] == 12


SCRIPT = """
import os, sys
from pathlib import Path
from expresser.corpus.together import verify_together
from expresser.errors import InputError
corpus, out = sys.argv[1:]
try:
    verify_together(corpus)
    said = "whole"
except InputError as error:
    said = str(error)
Path(out, os.environ["RANK"]).write_text(said)
"""


@pytest.mark.slow
def test_what_one_process_finds_stops_all(whole: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(whole, tmp_path / "corpus"))
    flipped(SHARD, 0.5)(damaged)
    (tmp_path / "script.py").write_text(SCRIPT)
    for corpus, said in (
        (whole, ["whole", "whole"]),
        (damaged, [rf"{SHARD}: sha256 is", "damaged, as process 0 found and says"]),
    ):
        words = ["--standalone", "--nproc_per_node", "2", str(tmp_path / "script.py"), str(corpus), str(tmp_path)]
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *words],
            env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        for rank, words_of in enumerate(said):
            assert words_of in (tmp_path / str(rank)).read_text()


def test_on_the_command_line_the_error_is_one_message_and_checksums_can_be_left_out(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "corpus"))
    flipped("obs.parquet", 0.2)(folder)
    words = ["pretrain", "demo", "--corpus", str(folder), "--out", str(tmp_path / "run")]
    words += ["--model.d-model", "16", "--model.n-layers", "1", "--data.max-steps", "1", "--data.valid-cells", "4"]
    with pytest.raises(SystemExit):
        main(words)
    said = capsys.readouterr().err
    assert "obs.parquet: sha256 is" in said
    assert "Traceback" not in said
    main([*words, "--no-verify"])  # the labels of this corpus are not asked for
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert Corpus.open(folder).n_cells > 100

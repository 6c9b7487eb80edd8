"""Corpora elsewhere: what is pulled is what was pushed, whatever breaks on the way, and half a corpus is none."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import anndata
import local_hub
import numpy as np
import pandas as pd
import pytest
from local_hub import Hub
from local_server import Handler, Server, running
from scipy import sparse

from expresser.cli import main
from expresser.corpus import mirror, places
from expresser.corpus.build import build_corpus
from expresser.corpus.mirror import PENDING, pull_corpus
from expresser.corpus.places import FsspecFolder, HubDataset, Interrupted, WebFolder, open_place
from expresser.corpus.publish import push_corpus
from expresser.corpus.remote import open_remote
from expresser.corpus.store import Corpus
from expresser.corpus.verify import verify_corpus
from expresser.errors import InputError

N_GENES = 60
# The client's own: it hands a file to its HTTP library in a way that this library is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def make(out: Path, seed: int, n_cells: int = 400) -> Corpus:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 2.0, size=(n_cells, N_GENES))).astype(np.float32)
    data = anndata.AnnData(
        sparse.csr_matrix(counts),
        obs=pd.DataFrame({"donor": "d"}, index=[f"c{i}" for i in range(n_cells)]),
        var=pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(N_GENES)]),
    )
    return build_corpus([data], out, min_genes=3, obs_columns=["donor"], shard_rows=90, batch_rows=40)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Five shards, the last one short."""
    return make(tmp_path_factory.mktemp("remote") / "corpus", 1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses, and pieces so small that a shard takes several."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # ours, and those of the hub's client
    monkeypatch.setattr(places, "PIECE_BYTES", 4096)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def same(one: Corpus, other: Corpus) -> bool:
    return tree(one.path) == tree(other.path)


@pytest.fixture
def web(corpus: Corpus, tmp_path: Path) -> Iterator[Server]:
    """A web server with a corpus in /atlas, whose files a test may damage."""
    shutil.copytree(corpus.path, tmp_path / "www" / "atlas")

    class Files(Handler):
        def serve(self) -> None:
            path = tmp_path / "www" / unquote(self.path.strip("/"))
            if path.is_file():
                self.give(path.read_bytes())
            else:
                self.answer(404, b"")

    yield from running(Files, Server())


hub = local_hub.hub  # a hub on the loopback, for the real client


# The hub, with its real client


def test_what_was_pushed_is_what_is_pulled(hub: Hub, corpus: Corpus, tmp_path: Path) -> None:
    push_corpus(corpus.path, "lab/atlas", private=True)
    repo = hub.repos["datasets/lab/atlas"]
    assert repo.private
    assert len(repo.commits) == 2  # the empty one and one that holds everything
    held = repo.commits[repo.branches["main"]]
    assert set(held) == {*tree(corpus.path), "README.md"}
    assert "data_files: cells-*.arrow" in held["README.md"].decode()
    for url in ("lab/atlas", "hf://datasets/lab/atlas", "lab/atlas@main", f"lab/atlas@{repo.branches['main']}"):
        out = tmp_path / url.replace("/", "_").replace(":", "")
        assert same(pull_corpus(url, out, threads=3), corpus)
        verify_corpus(out)


def test_a_push_to_a_branch_replaces_what_was_there_as_a_whole(hub: Hub, corpus: Corpus, tmp_path: Path) -> None:
    push_corpus(corpus.path, "lab/atlas")
    small = make(tmp_path / "small", 2, n_cells=100)
    push_corpus(small.path, "lab/atlas", revision="v2")
    assert same(pull_corpus("lab/atlas@v2", tmp_path / "two"), small)
    assert same(pull_corpus("lab/atlas", tmp_path / "one"), corpus)
    push_corpus(small.path, "lab/atlas")
    repo = hub.repos["datasets/lab/atlas"]
    assert sorted(n for n in repo.commits[repo.branches["main"]] if n.startswith("cells")) == [
        "cells-00000.arrow",
        "cells-00001.arrow",
    ]


def test_a_push_sends_nothing_twice_and_nothing_damaged(
    hub: Hub, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push_corpus(corpus.path, "lab/atlas")
    before = sum(method == "PUT" for method, *_ in hub.asked)
    assert before == len(corpus.manifest["shards"]) + 1
    push_corpus(corpus.path, "lab/atlas", revision="again")
    assert sum(method == "PUT" for method, *_ in hub.asked) == before
    copy = Path(shutil.copytree(corpus.path, tmp_path / "copy"))
    shard = copy / "cells-00001.arrow"
    shard.write_bytes(b"\0" + shard.read_bytes()[1:])
    hub.asked.clear()
    with pytest.raises(SystemExit):
        main(["corpus", "push", str(copy), "lab/other"])
    assert "cells-00001.arrow: sha256 is" in capsys.readouterr().err
    assert hub.asked == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("lab/nowhere", "there is no such data set, or it is private"),
        ("lab/atlas@v9", "data set lab/atlas has no revision 'v9'"),
        ("lab/empty", "has no file manifest.json"),
        ("hf://models/lab/atlas", "a corpus on the hub is a data set"),
        ("atlas", "neither a hub id"),
        ("./lab/atlas/x", "neither a hub id"),
    ],
)
def test_what_is_not_there_is_said(hub: Hub, corpus: Corpus, tmp_path: Path, url: str, message: str) -> None:
    from huggingface_hub import HfApi

    push_corpus(corpus.path, "lab/atlas")
    HfApi().create_repo("lab/empty", repo_type="dataset")
    with pytest.raises(InputError, match=message):
        pull_corpus(url, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hub_that_refuses_a_push_is_one_message(hub: Hub, corpus: Corpus) -> None:
    with pytest.raises(InputError, match=r"other/atlas: the hub did not take the corpus .*403"):
        push_corpus(corpus.path, "other/atlas")
    asked = len(hub.asked)
    for name in ("no name", "atlas", "file:///tmp/atlas", "s3://bucket/atlas", "./lab/atlas"):
        with pytest.raises(InputError, match=r"a push goes to a data set of the hub, org/name .* copy the folder"):
            push_corpus(corpus.path, name)
    assert len(hub.asked) == asked


def test_offline_is_said(hub: Hub, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    push_corpus(corpus.path, "lab/atlas")
    open_remote("lab/atlas", tmp_path / "cache").read(np.arange(corpus.n_cells))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"cannot be reached: .* offline"):
        pull_corpus("lab/atlas", tmp_path / "out")
    asked = len(hub.asked)
    found = open_remote("lab/atlas", tmp_path / "cache").read(np.arange(corpus.n_cells))
    np.testing.assert_array_equal(found.counts, corpus.read(np.arange(corpus.n_cells)).counts)
    assert len(hub.asked) == asked


def test_a_broken_download_from_the_hub_goes_on(hub: Hub, corpus: Corpus, tmp_path: Path) -> None:
    push_corpus(corpus.path, "lab/atlas")
    hub.cut["cells-00002.arrow"] = 9000
    with pytest.raises(InputError, match=r"cells-00002\.arrow: the download broke off 5 times"):
        pull_corpus("lab/atlas", tmp_path / "out")
    hub.cut.clear()
    hub.asked.clear()
    assert same(pull_corpus("lab/atlas", tmp_path / "out"), corpus)
    assert min(hub.starts("cells-00002.arrow")) >= 8192
    assert not hub.starts("cells-00000.arrow")


# A web server


def test_a_pull_from_the_web(web: Server, corpus: Corpus, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    found = pull_corpus(f"{web.url}/atlas/", tmp_path / "deep" / "out", progress=lambda *call: calls.append(call))
    assert same(found, corpus)
    size = sum(len(data) for name, data in tree(corpus.path).items() if name != "manifest.json")
    assert max(calls) == (size, size)
    web.asked.clear()
    assert same(pull_corpus(f"{web.url}/atlas", tmp_path / "deep" / "out"), corpus)
    assert [path for _, path, _ in web.asked] == ["/atlas/manifest.json"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on_where_it_was(web: Server, corpus: Corpus, tmp_path: Path, ranges: bool) -> None:
    web.cut["cells-00001.arrow"], web.ranges = 10_000, ranges
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"broke off 5 times .*the same command goes on from there"):
        pull_corpus(f"{web.url}/atlas", out, threads=1)
    with pytest.raises(InputError, match=r"no manifest\.json"):
        Corpus.open(out)
    assert (out / PENDING).is_file()
    part = out / ".cells-00001.arrow.part"
    assert 0 < part.stat().st_size <= 10_000
    kept = part.stat().st_size
    web.cut.clear()
    web.asked.clear()
    assert same(pull_corpus(f"{web.url}/atlas", out), corpus)
    assert web.starts("cells-00001.arrow") == [kept]
    for name in ("cells-00000.arrow", "genes.tsv", "obs.parquet"):
        assert not web.starts(name)


def test_a_line_that_breaks_once_is_not_even_noticed(
    web: Server, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.cut["cells-00003.arrow"] = 5000
    monkeypatch.setattr(time, "sleep", lambda seconds: web.cut.clear())
    assert same(pull_corpus(f"{web.url}/atlas", tmp_path / "out"), corpus)


def test_an_altered_file_is_refused_and_not_kept(web: Server, corpus: Corpus, tmp_path: Path) -> None:
    shard = tmp_path / "www" / "atlas" / "cells-00002.arrow"
    sound = shard.read_bytes()
    shard.write_bytes(sound[:500] + bytes([sound[500] ^ 1]) + sound[501:])
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"cells-00002\.arrow: sha256 is .*altered there or on the way"):
        pull_corpus(f"{web.url}/atlas", out)
    assert not (out / "manifest.json").exists()
    assert not list(out.glob("*cells-00002*"))
    shard.write_bytes(sound)
    assert same(pull_corpus(f"{web.url}/atlas", out), corpus)


def test_a_damaged_part_is_begun_again(web: Server, corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "out"
    web.cut["cells-00004.arrow"] = 3000
    with pytest.raises(InputError):
        pull_corpus(f"{web.url}/atlas", out)
    web.cut.clear()
    (out / ".cells-00004.arrow.part").write_bytes(b"x" * 2000)
    (out / "cells-00000.arrow").write_bytes(b"y" * (out / "cells-00000.arrow").stat().st_size)
    assert same(pull_corpus(f"{web.url}/atlas", out), corpus)


def test_a_short_file_is_no_whole_one(web: Server, tmp_path: Path) -> None:
    with open(tmp_path / "www" / "atlas" / "cells-00000.arrow", "r+b") as file:
        file.truncate(2000)
    with pytest.raises(InputError, match=r"2,000 of [\d,]+ bytes came|416"):
        pull_corpus(f"{web.url}/atlas", tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=99), "http.*/atlas.*format version 99"),
        (lambda m: m["shards"][0].update(file="../../evil"), r"names a file '\.\./\.\./evil'"),
        (lambda m: m["obs"].update(file="manifest.json"), "names a file 'manifest.json'"),
        (lambda m: m.update(content="0" * 64), "altered after the build"),
    ],
)
def test_a_manifest_that_cannot_be_believed_is_refused(
    web: Server, tmp_path: Path, change: object, message: str
) -> None:
    path = tmp_path / "www" / "atlas" / "manifest.json"
    text = json.loads(path.read_text())
    change(text)  # type: ignore[operator]
    path.write_text(json.dumps(text))
    with pytest.raises(InputError, match=message):
        pull_corpus(f"{web.url}/atlas", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_things_in_the_way_are_not_touched(web: Server, corpus: Corpus, tmp_path: Path) -> None:
    make(tmp_path / "other", 3, n_cells=100)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("text")
    web.cut["cells-00001.arrow"] = 100
    with pytest.raises(InputError, match="broke off"):
        pull_corpus(f"{web.url}/atlas", tmp_path / "begun")
    shutil.rmtree(tmp_path / "www" / "atlas")
    shutil.copytree(make(tmp_path / "newer", 4).path, tmp_path / "www" / "atlas")
    before = {name: tree(tmp_path / name) for name in ("other", "mine", "begun")}
    for name, words in (
        ("other", "already holds another corpus"),
        ("mine", "holds thesis.doc"),
        ("begun", "the beginning of another corpus"),
    ):
        with pytest.raises(InputError, match=words):
            pull_corpus(f"{web.url}/atlas", tmp_path / name)
    assert {name: tree(tmp_path / name) for name in before} == before


def test_a_full_disk_is_said_before_anything_is_written(
    web: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror.shutil, "disk_usage", lambda path: Mem(free=1000))
    with pytest.raises(InputError, match=r"are still to come, 1\.0 kB are free on this disk.*bounded cache"):
        pull_corpus(f"{web.url}/atlas", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@dataclass
class Mem:
    free: int


def test_a_server_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be reached"):
        pull_corpus("http://127.0.0.1:9/atlas", tmp_path / "out")


# Object stores, through fsspec


def test_a_pull_through_fsspec(corpus: Corpus, tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for name, data in tree(corpus.path).items():
        store.pipe_file(f"/bucket/atlas/{name}", data)
    assert same(pull_corpus("memory://bucket/atlas", tmp_path / "m"), corpus)
    assert same(pull_corpus(f"file://{corpus.path}", tmp_path / "f"), corpus)
    store.rm("/bucket", recursive=True)
    with pytest.raises(InputError, match=r"memory://bucket/atlas: has no file manifest\.json"):
        pull_corpus("memory://bucket/atlas", tmp_path / "gone")


@pytest.mark.parametrize(
    ("url", "message"), [("s3://bucket/atlas", "pip install s3fs"), ("nosuch://x/y", "no protocol 'nosuch'")]
)
def test_a_protocol_that_is_not_installed_names_its_package(
    url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(places._PACKAGES, "s3", "s3fs")
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(InputError, match=message):
        pull_corpus(url, tmp_path / "out")


def test_a_folder_of_this_disk_is_not_looked_for_on_the_hub(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parts").mkdir()
    shutil.copytree(corpus.path, tmp_path / "parts" / "train")
    monkeypatch.chdir(tmp_path)
    for url in ("parts/train", "./parts/train", str(tmp_path / "parts" / "train")):
        with pytest.raises(InputError, match=r"is a folder on this disk, .* say file:///") as caught:
            pull_corpus(url, tmp_path / "out")
    copied = pull_corpus(str(caught.value).partition("say ")[2].partition(";")[0], tmp_path / "out")
    assert same(copied, corpus)


def test_addresses_are_told_apart() -> None:
    for url, kind in (
        ("org/name", HubDataset),
        ("org/name@v1.0", HubDataset),
        ("hf://datasets/org/name@main", HubDataset),
        ("https://host/x", WebFolder),
        ("s3://bucket/x", FsspecFolder),
    ):
        assert type(open_place(url)) is kind


# Through a bounded cache


def test_reading_elsewhere_is_reading_here(web: Server, corpus: Corpus, tmp_path: Path) -> None:
    remote = open_remote(f"{web.url}/atlas", tmp_path / "cache")
    assert (remote.n_cells, remote.corpus_id) == (corpus.n_cells, corpus.corpus_id)
    assert remote.vocab == corpus.vocab
    assert remote.obs.equals(corpus.obs)
    for first, last in ((0, 10), (85, 95), (0, corpus.n_cells), (corpus.n_cells - 1, corpus.n_cells)):
        here, there = corpus.read(np.arange(first, last)), remote.read(np.arange(first, last))
        for name in ("cell_id", "source", "total", "lengths", "genes", "counts"):
            np.testing.assert_array_equal(getattr(here, name), getattr(there, name))
    for rows, error in (([3, 2], ValueError), ([0, 2], ValueError), ([], ValueError), ([10**6], IndexError)):
        with pytest.raises(error):
            remote.read(np.array(rows, np.int64))


def bytes_under(folder: Path) -> int:
    """Of the shards there; the stream reads ahead meanwhile, and may remove one between its being listed and measured."""
    held = 0
    for path in folder.glob("*/*cells-*"):
        with contextlib.suppress(FileNotFoundError):
            held += path.stat().st_size
    return held


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_the_cache_stays_within_its_bound(web: Server, corpus: Corpus, tmp_path: Path, shards: int) -> None:
    largest = max(entry["bytes"] for entry in corpus.manifest["shards"])
    remote = open_remote(f"{web.url}/atlas", tmp_path / "cache", cache_bytes=shards * largest)
    seen = []
    for number, batch in enumerate(remote.stream(0, batch=30)):
        assert bytes_under(tmp_path / "cache") <= shards * largest
        seen += batch.cell_id.tolist()
        if number == 26:
            break
    n = corpus.n_cells
    assert seen == [int(corpus.cell_ids[i % n]) for i in range(27 * 30)]
    with pytest.raises(InputError, match="its largest shard has"):
        open_remote(f"{web.url}/atlas", tmp_path / "small", cache_bytes=largest - 1)


def test_the_shard_used_longest_ago_goes_first(web: Server, corpus: Corpus, tmp_path: Path) -> None:
    largest = max(entry["bytes"] for entry in corpus.manifest["shards"])
    remote = open_remote(f"{web.url}/atlas", tmp_path / "cache", cache_bytes=2 * largest)
    for row in (0, 100, 0, 200):  # shards 0, 1, 0, 2
        remote.read(np.arange(row, row + 1))
        remote._tables.clear()
    assert sorted(path.name for path in remote.folder.glob("*.arrow")) == ["cells-00000.arrow", "cells-00002.arrow"]


@pytest.mark.parametrize("world", [1, 3])
def test_processes_share_an_epoch_and_resume_from_cells_seen(
    web: Server, corpus: Corpus, tmp_path: Path, world: int
) -> None:
    n = corpus.n_cells
    epoch: list[int] = []
    for rank in range(world):
        remote = open_remote(f"{web.url}/atlas", tmp_path / "cache")
        part = (rank + 1) * n // world - rank * n // world
        stream = remote.stream(0, batch=7, rank=rank, world=world)
        whole = [next(stream).cell_id.tolist() for _ in range(part // 7 + 3)]
        epoch += [cell for batch in whole for cell in batch][:part]
        for step in (1, 5, part // 7):
            again = remote.stream(step * 7 * world, batch=7, rank=rank, world=world)
            assert next(again).cell_id.tolist() == whole[step]
    assert sorted(epoch) == list(range(n))
    with pytest.raises(InputError, match="cannot have read in equal parts"):
        next(remote.stream(7, batch=7, rank=0, world=2))


def test_the_cache_serves_when_the_server_is_gone(web: Server, corpus: Corpus, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    open_remote(f"{web.url}/atlas", cache).read(np.arange(corpus.n_cells))
    shutil.rmtree(tmp_path / "www")
    web.asked.clear()
    remote = open_remote(f"{web.url}/atlas", cache)
    everything = np.arange(corpus.n_cells)
    np.testing.assert_array_equal(remote.read(everything).genes, corpus.read(everything).genes)
    assert {path for _, path, _ in web.asked} == {"/atlas/manifest.json"}
    with pytest.raises(InputError, match="has no file"):
        open_remote(f"{web.url}/atlas", tmp_path / "another")


def test_a_damaged_cache_is_mended(web: Server, corpus: Corpus, tmp_path: Path) -> None:
    remote = open_remote(f"{web.url}/atlas", tmp_path / "cache")
    remote.read(np.arange(200))
    shard = remote.folder / "cells-00001.arrow"
    shard.write_bytes(b"z" * shard.stat().st_size)
    found = open_remote(f"{web.url}/atlas", tmp_path / "cache").read(np.arange(200))
    np.testing.assert_array_equal(found.counts, corpus.read(np.arange(200)).counts)


def test_interruptions_are_told_from_errors() -> None:
    with pytest.raises(Interrupted, match="TimeoutError"), places._Translated("u", "f"):
        raise TimeoutError("slow")
    with pytest.raises(InputError, match="not permitted"), places._Translated("u", "f"):
        raise PermissionError("no")
    with pytest.raises(KeyboardInterrupt), places._Translated("u", "f"):
        raise KeyboardInterrupt

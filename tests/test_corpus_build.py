"""Building at scale: the same bytes whoever reads and however often it is killed, cells that come twice, cells that come later."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from expresser.cli import main
from expresser.corpus import append, shuffle, workers
from expresser.corpus.append import append_corpus, lost_counts
from expresser.corpus.build import build_corpus
from expresser.corpus.duplicates import Seen
from expresser.corpus.onepass import SourcePass
from expresser.corpus.packing import NotRaw, Packer, take_rows
from expresser.corpus.rawcounts import prove_raw
from expresser.corpus.selection import subset_corpus
from expresser.corpus.store import Corpus
from expresser.corpus.stream import Stream
from expresser.corpus.verify import verify_corpus
from expresser.corpus.workshop import workshop
from expresser.errors import InputError
from expresser.genes import GeneVocab
from tests.test_corpus import IDS, N_GENES, VOCAB, bytes_of, everything, make, random_counts

ARGUMENTS: dict = {"genes": VOCAB, "min_genes": 3, "shard_rows": 64, "batch_rows": 20, "obs_columns": ["donor"]}


def files(folder: Path, heights: tuple[int, ...] = (120, 90, 60), first: int = 0) -> list[Path]:
    """Files of cells of all genes in another order each."""
    paths = []
    for number, height in enumerate(heights, start=first):
        order = np.random.default_rng(number).permutation(N_GENES)
        data = make(random_counts(height, N_GENES, number), [IDS[t] for t in order], f"{'ABCDEFGH'[number]}")
        data.obs["donor"] = [f"d{i % 3}" for i in range(height)]
        paths.append(folder / f"{'abcdefgh'[number]}.h5ad")
        data.write_h5ad(paths[-1])
    return paths


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def calm(paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The undisturbed build in one process."""
    return build_corpus(paths, tmp_path_factory.mktemp("calm") / "corpus", **ARGUMENTS)


@pytest.fixture(scope="module")
def calm_first(paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Of the first file alone."""
    return build_corpus(paths[:1], tmp_path_factory.mktemp("first") / "corpus", **ARGUMENTS)


# One pass


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_packing_is_proving_then_aligning(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    n_tokens = data.draw(st.integers(1, 130))
    kind = data.draw(st.sampled_from([np.float32, np.float64, np.int64, np.uint16, np.int8, np.bool_]))
    entries = data.draw(
        st.lists(st.tuples(st.integers(0, columns - 1), st.integers(0, 3)), min_size=rows * 3, max_size=rows * 3)
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(entries)), min_size=rows - 1, max_size=rows - 1)))
    block = sparse.csr_matrix(
        (
            np.array([v for _, v in entries], kind),
            np.array([c for c, _ in entries], np.int32),
            [0, *cuts, len(entries)],
        ),
        shape=(rows, columns),
    )
    tokens = np.array(data.draw(st.lists(st.integers(-1, n_tokens - 1), min_size=columns, max_size=columns)), np.int32)
    least = data.draw(st.integers(1, 3))
    packer = Packer(tokens, n_tokens, np.dtype(np.uint16), least)
    packed = packer.pack(block)

    counts = prove_raw(block, first_row=0, cells=np.arange(rows), genes=np.arange(columns), where="here")
    onto = sparse.csr_matrix(
        (np.ones((tokens >= 0).sum(), int), (np.flatnonzero(tokens >= 0), tokens[tokens >= 0])), (columns, n_tokens)
    )
    dense = (counts @ onto).toarray()
    assert packed.n_genes.tolist() == (dense > 0).sum(1).tolist()
    assert packed.rows.tolist() == np.flatnonzero((dense > 0).sum(1) >= least).tolist()
    assert packed.total.tolist() == dense[packed.rows].sum(1).tolist()
    at = [np.flatnonzero(row) for row in dense[packed.rows]]
    assert packed.genes.tolist() == [gene for genes in at for gene in genes]
    assert packed.counts.tolist() == [row[g] for row, genes in zip(dense[packed.rows], at) for g in genes]
    assert packer.sums.tolist() == np.asarray(counts.sum(0)).ravel().tolist()


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan, np.inf, 2.0**32])
def test_what_is_no_count_is_not_packed_and_leaves_no_trace(value: float) -> None:
    packer = Packer(np.array([1, 0], np.int32), 2, np.dtype(np.uint16), 1)
    with pytest.raises(NotRaw):
        packer.pack(sparse.csr_matrix(np.array([[7.0, value]])))
    assert packer.pack(sparse.csr_matrix(np.array([[0.0, 5.0]]))).counts.tolist() == [5]


def test_features_that_are_no_genes_are_not_looked_at(tmp_path: Path) -> None:
    counts = random_counts(30, N_GENES, 1) + 1
    data = make(np.hstack([counts, counts]), [*IDS, *(f"chr1:{i}-{i + 9}" for i in range(N_GENES))], "m")
    data.X = data.X.multiply(np.repeat([1, 0.5], N_GENES)).tocsr()
    data.var["feature_types"] = np.repeat(["Gene Expression", "Peaks"], N_GENES)
    corpus = build_corpus([data], tmp_path / "c", genes=VOCAB)
    np.testing.assert_array_equal(everything(corpus), counts)
    assert corpus.manifest["sources"][0]["genes"]["counts_kept"] == 1


def test_take_rows_is_take(calm: Corpus) -> None:
    batch, rows = calm.read(np.arange(40)), np.array([3, 39, 3, 0])
    one, other = take_rows(batch, rows), batch.take(rows)
    assert all(
        getattr(one, name).tolist() == getattr(other, name).tolist()
        for name in ("cell_id", "genes", "counts", "lengths")
    )
    assert len(take_rows(batch, rows[:0])) == 0


# Several processes


class Threads(ThreadPoolExecutor):
    """In place of a pool of processes, each of which imports for seconds: what a job raises is pickled, as between processes."""

    def __init__(self, workers_: int, *, mp_context: object, initializer: object, initargs: tuple) -> None:
        super().__init__(workers_)
        workers._shared.update(done=initargs[0], stop=initargs[1])

    def submit(self, function: Callable, /, *args: object) -> Future:  # type: ignore[override]
        def run() -> object:
            try:
                return function(*args)
            except Exception as error:
                raise pickle.loads(pickle.dumps(error)) from None  # noqa: S301

        return super().submit(run)


def test_bytes_do_not_depend_on_the_number_of_workers(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ProcessPoolExecutor", Threads)
    memory = anndata.read_h5ad(paths[1])
    memory.obs_names = [f"{name}'" for name in memory.obs_names]
    inputs = [paths[0], memory, *paths[1:]]
    calls: list[tuple[str, int, int]] = []
    for number in (1, 2, 3):
        out = tmp_path / str(number)
        told = (lambda *call: calls.append(call)) if number == 2 else None
        build_corpus(inputs, out, **ARGUMENTS, deduplicate="counts", workers=number, progress=told)
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "2") == bytes_of(tmp_path / "3")
    dropped = [source["dropped"].get("duplicates") for source in Corpus.open(tmp_path / "2").manifest["sources"]]
    assert dropped[:2] + dropped[3:] == [0, 0, 0]
    assert dropped[2] == Corpus.open(tmp_path / "2").manifest["sources"][1]["cells"]
    read = [done for stage, done, total in calls if stage == "read" and total == 360]
    assert read == sorted(read)
    assert read[-1] == 360

    # And an error is the same error.
    wrong = anndata.read_h5ad(paths[2])
    wrong.X = sparse.csr_matrix(wrong.X * 0.5)
    wrong.write_h5ad(tmp_path / "wrong.h5ad")
    said = []
    for number in (1, 2):
        with pytest.raises(InputError) as caught:
            build_corpus([paths[0], tmp_path / "wrong.h5ad"], tmp_path / "c", **ARGUMENTS, workers=number)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "does not hold raw counts" in said[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3", "wrong.h5ad"]


def test_a_process_of_its_own_packs_the_same_bytes(
    calm: Corpus, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One, for all files: each takes seconds to start.
    pool = workers.ProcessPoolExecutor
    monkeypatch.setattr(workers, "ProcessPoolExecutor", lambda _, **options: pool(1, **options))
    done = []
    build_corpus(paths, tmp_path / "c", **ARGUMENTS, workers=2, progress=lambda *told: done.append(told))
    assert bytes_of(tmp_path / "c") == bytes_of(calm.path)
    assert ("read", 270, 270) in done
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


# Killed


SMALL = (
    "from expresser.corpus import onepass, shuffle\n"
    "onepass.CHUNK_ROWS, shuffle.BUCKET_ROWS, shuffle.PIECE_ROWS, shuffle.HELD_ENTRIES = 25, 64, 11, 300\n"
)
KILLED = f"""
import json, os, signal, sys
import numpy as np
from scipy import sparse
{SMALL}
from expresser.corpus import append, build, packing
from expresser.genes import GeneVocab

job = json.loads(sys.argv[1])
job["arguments"]["genes"] = GeneVocab.load(job["genes"])

def run(moment):
    calls = 0

    def told(stage, done, total):
        nonlocal calls
        if stage == moment["stage"]:
            calls += 1
            if calls == moment["call"]:
                os.kill(os.getpid(), signal.SIGKILL)

    if moment["stage"] in ("manifest", "last"):
        module = append if "append" in moment else build
        write = module.write_manifest

        def written(*args):
            if moment["stage"] == "last" or module is build:
                write(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        module.write_manifest = written
    if "append" in moment:
        append.append_corpus(moment["out"], moment["append"], progress=told)
    else:
        build.build_corpus(job["paths"], moment["out"], progress=told, **job["arguments"])

# The compiled loops once, not in every child.
packer = packing.Packer(np.zeros(1, np.int32), 1, np.dtype(np.uint16), 1)
packer.pack(sparse.csr_matrix(np.ones((1, 1), np.float32)))

for moment in job["moments"]:
    pid = os.fork()
    if pid == 0:
        run(moment)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL, moment
"""


def kill(tmp_path: Path, paths: list[Path], moments: list[dict]) -> None:
    """Run a build (an append of moment["append"]) for each moment and SIGKILL it there."""
    VOCAB.save(tmp_path / "genes.tsv")
    arguments = {key: value for key, value in ARGUMENTS.items() if key != "genes"}
    job = {"paths": [str(path) for path in paths], "genes": str(tmp_path / "genes.tsv"), "arguments": arguments}
    subprocess.run([sys.executable, "-c", KILLED, json.dumps(job | {"moments": moments})], check=True)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from expresser.corpus import onepass

    monkeypatch.setattr(onepass, "CHUNK_ROWS", 25)
    for name, value in (("BUCKET_ROWS", 64), ("PIECE_ROWS", 11), ("HELD_ENTRIES", 300)):
        monkeypatch.setattr(shuffle, name, value)


# (stage, call, inputs finished). "read" calls: 5 of a, 4 of b, 3 of c. Shards of 64 rows, pieces of at most 11.
MOMENTS = [
    ("read", 3, 0),
    ("read", 7, 1),
    ("read", 10, 2),
    ("write", 1, 3),
    ("write", 14, 3),
    ("write", 25, 3),
    ("manifest", 1, 3),
]
# Where appends are killed: while reading and writing; with all files moved in, twice; with the new manifest in its place, twice.
APPENDS = {
    "read6": ("read", 6),
    "write8": ("write", 8),
    "moved": ("manifest", 1),
    "other": ("manifest", 1),
    "last": ("last", 1),
    "last2": ("last", 1),
}


@pytest.fixture(scope="module")
def killed(paths: list[Path], calm_first: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of builds that were killed, one for each of MOMENTS by its name, "other" and "cut" at the third.

    In its "appends" those of `paths[1:]` to copies of `calm_first` that were, one for each of APPENDS, and an unharmed "calm".
    One interpreter forks for all: to start one takes longer than all that is killed.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    folder = tmp_path_factory.mktemp("killed")
    moments = [{"stage": stage, "call": call, "out": str(folder / f"{stage}{call}")} for stage, call, _ in MOMENTS]
    moments += [moments[2] | {"out": str(folder / name)} for name in ("other", "cut")]
    for name in (*APPENDS, "calm"):
        shutil.copytree(calm_first.path, folder / "appends" / name)
    more = [str(path) for path in paths[1:]]
    moments += [
        {"stage": stage, "call": call, "out": str(folder / "appends" / name), "append": more}
        for name, (stage, call) in APPENDS.items()
    ]
    kill(folder, paths, moments)
    return folder


def test_a_killed_build_goes_on_to_the_same_bytes(
    paths: list[Path], calm: Corpus, killed: Path, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    written: list[str] = []
    batches = SourcePass.batches

    def spy(self: SourcePass, genes: np.dtype) -> object:
        opened.append(self.source.name)
        return batches(self, genes)

    from expresser.corpus import shardsteps

    shard_name = shardsteps.shard_name
    monkeypatch.setattr(SourcePass, "batches", spy)
    monkeypatch.setattr(shardsteps, "shard_name", lambda number: written.append(str(number)) or shard_name(number))
    for stage, call, finished in MOMENTS:
        out = killed / f"{stage}{call}"
        assert not out.exists()
        assert (out.parent / f".{out.name}.building").is_dir()
        opened.clear()
        written.clear()
        build_corpus(paths, out, **ARGUMENTS)
        assert opened == ["a", "b", "c"][finished:]
        if stage == "manifest":
            assert written == []
        if (stage, call) == ("write", 25):
            assert "0" not in written
            assert "1" not in written
        assert bytes_of(out) == bytes_of(calm.path)
        assert not (out.parent / f".{out.name}.building").exists()


def test_what_an_earlier_build_left_is_judged(
    paths: list[Path], killed: Path, tmp_path: Path, small_steps: None
) -> None:
    changed = ARGUMENTS | {"seed": 5}  # not gone on with
    other = build_corpus(paths, killed / "other", **changed)
    assert bytes_of(other.path) == bytes_of(build_corpus(paths, tmp_path / "fresh", **changed).path)
    bucket = max((killed / ".cut.building").glob("bucket-*"), key=lambda path: path.stat().st_size)
    os.truncate(bucket, 10)
    with pytest.raises(InputError, match=r"10 bytes, .* were written: .* run the same command again"):
        build_corpus(paths, killed / "cut", **ARGUMENTS)
    assert not (killed / ".cut.building").exists()


def test_two_builds_at_once(paths: list[Path], tmp_path: Path) -> None:
    told = rf"process {os.getpid()} on .* is at work on it"
    with workshop(tmp_path / "c"), ThreadPoolExecutor(1) as other, pytest.raises(InputError, match=told):
        other.submit(build_corpus, paths, tmp_path / "c", **ARGUMENTS).result()
    assert build_corpus(paths, tmp_path / "c", **ARGUMENTS).n_cells > 200
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_cells_of_a_source_that_was_not_finished_do_not_come_twice(
    paths: list[Path], calm: Corpus, tmp_path: Path, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large source is in the buckets long before it is on record: what a kill leaves there is cut off."""

    def leave(stage: str, done: int, total: int) -> None:
        if done > 40:
            for file in open_files:
                file.flush()
            shutil.copytree(tmp_path / ".c.building", tmp_path / "left")  # what a kill would leave
            raise KeyboardInterrupt

    open_files: list[Any] = []
    honest = shuffle.Scatter._append

    def spied(self: shuffle.Scatter, *args: Any) -> None:
        honest(self, *args)
        open_files[:] = self._writers.values()

    with monkeypatch.context() as patch:
        patch.setattr(shuffle.Scatter, "_append", spied)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(paths, tmp_path / "c", progress=leave, **ARGUMENTS)
    (tmp_path / "left").rename(tmp_path / ".c.building")
    assert any(path.stat().st_size for path in (tmp_path / ".c.building").glob("bucket-*"))
    assert bytes_of(build_corpus(paths, tmp_path / "c", **ARGUMENTS).path) == bytes_of(calm.path)


@pytest.mark.slow
def test_workers_end_with_a_killed_parent_and_their_work_is_used(tmp_path: Path) -> None:
    paths = files(tmp_path, (4000, 3000, 2000))
    VOCAB.save(tmp_path / "genes.tsv")
    program = (
        "import os, signal, sys\n"
        "from expresser.corpus.build import build_corpus\n"
        "from expresser.genes import GeneVocab\n"
        "def told(stage, done, total):\n"
        "    if stage == 'write':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    build_corpus(sys.argv[3:], sys.argv[2], genes=GeneVocab.load(sys.argv[1]), min_genes=3, workers=3, progress=told)\n"
    )
    (tmp_path / "program.py").write_text(program)
    arguments = [str(tmp_path / "genes.tsv"), str(tmp_path / "out"), *map(str, paths)]
    done = subprocess.run([sys.executable, str(tmp_path / "program.py"), *arguments], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while any(str(tmp_path / "program.py") in command for command in commands()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(str(tmp_path / "program.py") in command for command in commands())
    went_on = build_corpus(paths, tmp_path / "out", genes=VOCAB, min_genes=3)
    assert bytes_of(went_on.path) == bytes_of(build_corpus(paths, tmp_path / "calm", genes=VOCAB, min_genes=3).path)


def commands() -> list[str]:
    """Command lines of all processes."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(entry.read_text())
        except OSError:
            continue
    return found


# Cells that come twice


@given(st.lists(st.lists(st.integers(0, 30), max_size=20), max_size=12))
def test_seen_is_a_set(parts: list[list[int]]) -> None:
    seen, met = Seen(), set()
    for part in parts:
        expected = []
        for key in part:
            expected.append(key not in met)
            met.add(key)
        assert seen.new(np.array(part, np.uint64)).tolist() == expected


@pytest.fixture
def twice() -> list[anndata.AnnData]:
    """b repeats: 0-9 a's 0-9 with names and counts, 10-19 a's names with other counts, 20-29 a's counts under other names."""
    a, b = random_counts(40, N_GENES, 1) + 1, random_counts(40, N_GENES, 2) + 1
    b[:10], b[20:30] = a[:10], a[20:30]
    names = [f"A{i}" for i in range(20)] + [f"B{i}" for i in range(20, 40)]
    one, two = make(a, IDS, "A"), make(b, IDS, "B")
    two.obs_names = names
    one.obs["study"], two.obs["study"] = ["x"] * 40, ["x"] * 15 + ["y"] * 24 + [None]
    return [one, two]


@pytest.mark.parametrize(
    ("arguments", "dropped"),
    [
        ({"deduplicate": "barcode"}, [*range(10)]),
        ({"deduplicate": "counts"}, [*range(10), *range(20, 30)]),
        ({"deduplicate": "source"}, []),  # two files are two sources
        ({"deduplicate": "source", "source_column": "study"}, [*range(15)]),
    ],
)
def test_duplicates_are_dropped_and_counted(
    twice: list[anndata.AnnData], tmp_path: Path, arguments: dict, dropped: list[int]
) -> None:
    corpus = build_corpus(twice, tmp_path / "c", genes=VOCAB, **arguments)
    first, second = corpus.manifest["sources"]
    assert first["dropped"]["duplicates"] == 0
    assert second["dropped"]["duplicates"] == len(dropped)
    for source in (first, second):
        assert source["cells_read"] == source["cells"] + sum(source["dropped"].values())
    kept = [i for i in range(40) if i not in dropped]
    dense = np.vstack([twice[0].X.toarray(), twice[1].X.toarray()[kept]])
    np.testing.assert_array_equal(everything(corpus), dense)
    assert corpus.obs["barcode"].tolist() == [*twice[0].obs_names, *twice[1].obs_names[kept]]
    assert second["nnz"] == (dense[40:] > 0).sum()
    verify_corpus(corpus.path)
    # What is dropped when both are built is dropped when the second is appended.
    build_corpus(twice[:1], tmp_path / "one", genes=VOCAB, **arguments)
    longer = append_corpus(tmp_path / "one", twice[1:])
    np.testing.assert_array_equal(everything(longer), dense)
    assert longer.manifest["sources"][1]["dropped"] == second["dropped"]


def test_a_barcode_listed_twice_in_one_file(tmp_path: Path) -> None:
    data = make(random_counts(30, N_GENES, 1) + 1, IDS, "A")
    data.obs_names = ["same"] * 3 + [f"c{i}" for i in range(27)]
    assert build_corpus([data], tmp_path / "c", genes=VOCAB, deduplicate="source").n_cells == 28


def test_rules_of_duplicates_that_are_none(twice: list[anndata.AnnData], tmp_path: Path) -> None:
    for arguments, message in (
        ({"deduplicate": "name"}, "must be one of barcode, source, counts"),
        ({"source_column": "study"}, "deduplicate=None does not ask"),
        ({"deduplicate": "source", "source_column": "dataset"}, "'dataset' is in none of the inputs"),
    ):
        with pytest.raises(InputError, match=message):
            build_corpus(twice, tmp_path / "c", genes=VOCAB, **arguments)


# Cells that come later


def test_appending_gives_the_cells_of_a_build_of_all(paths: list[Path], calm: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "c"
    first = build_corpus(paths[:1], out, **ARGUMENTS)
    before = bytes_of(out)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("cells-*")}
    ids = [first.corpus_id]
    for path in paths[1:]:
        corpus = append_corpus(out, [path])
        ids.append(corpus.corpus_id)
        verify_corpus(out)
    assert len(set(ids)) == 3
    np.testing.assert_array_equal(everything(corpus), everything(calm))
    pd.testing.assert_frame_equal(corpus.obs, calm.obs)
    assert corpus.manifest["sources"] == calm.manifest["sources"]
    assert corpus.manifest["nnz"] == calm.manifest["nnz"]
    assert [(part["sources"], part["cells"], part["to"]) for part in corpus.manifest["appended"]] == [
        (1, source["cells"], to) for source, to in zip(corpus.manifest["sources"][1:], ids)
    ]
    after = bytes_of(out)
    assert {name: after[name] for name in times} == {name: before[name] for name in times}
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times
    listed = [corpus.manifest[key]["file"] for key in ("genes", "obs")] + [s["file"] for s in corpus.manifest["shards"]]
    assert sorted(after) == sorted([*listed, "manifest.json"])
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    # Within a part rows are in the seeded order, and the stream mixes all parts.
    order = np.argsort(
        shuffle.order_keys(0, np.arange(first.n_cells, corpus.n_cells, dtype=np.uint32))[: ids_of(corpus, 1)]
    )
    assert (corpus.cell_ids[first.n_cells :][: ids_of(corpus, 1)] == first.n_cells + order).all()
    stream = Stream(corpus, np.arange(corpus.n_cells), seed=1, global_batch=64, max_tokens=10**6, max_genes=N_GENES)
    ((_, batches),) = stream.steps(0, 64)
    assert set(np.concatenate([batch.source for batch in batches]).tolist()) == {0, 1, 2}
    with pytest.raises(InputError, match="some of these inputs were appended"):
        build_corpus(paths, out, **ARGUMENTS)


def ids_of(corpus: Corpus, part: int) -> int:
    return corpus.manifest["appended"][part - 1]["cells"]


def test_what_cannot_be_appended(paths: list[Path], calm: Corpus, tmp_path: Path) -> None:
    out = build_corpus(paths[:1], tmp_path / "c", **ARGUMENTS).path
    before = bytes_of(out)
    big = make(random_counts(30, N_GENES, 5) + 70_000, IDS, "X")
    mouse = make(random_counts(30, N_GENES, 6) + 1, [f"ENSMUSG{i:011d}" for i in range(N_GENES)], "M")
    empty = make(np.zeros((3, N_GENES)), IDS, "E")
    for inputs, message in (
        ([], "no inputs"),
        ([paths[1], paths[0]], r"a.h5ad: is in .* already, as 'a'"),
        ([paths[1], paths[1]], "are the same data"),
        ([big], r"largest count of the inputs is 70,\d+, .* build it again"),
        ([mouse], "mouse"),
        ([empty], "no cell is left"),
    ):
        with pytest.raises(InputError, match=message):
            append_corpus(out, inputs)
    part = subset_corpus(calm, tmp_path / "part", cells=50)
    with pytest.raises(InputError, match="by a split or a subset"):
        append_corpus(part.path, paths[:1])
    assert bytes_of(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "part"]


def test_a_label_that_no_longer_fits_becomes_text(tmp_path: Path) -> None:
    data = [make(random_counts(20, N_GENES, i) + 1, IDS, "ABCD"[i]) for i in range(4)]
    data[0].obs["age"] = range(20)
    data[1].obs["age"] = [0.5] * 20
    data[3].obs["age"] = ["old"] * 20
    build_corpus(data[:1], tmp_path / "c", genes=VOCAB, obs_columns=["age"])
    assert append_corpus(tmp_path / "c", data[1:3]).obs["age"].tolist()[18:22] == [18.0, 19.0, 0.5, 0.5]
    corpus = append_corpus(tmp_path / "c", data[3:])
    assert corpus.obs["age"].tolist()[20:21] + corpus.obs["age"].tolist()[60:61] == ["0.5", "old"]
    assert corpus.obs["age"][40:60].isna().all()
    names = [source["name"] for source in corpus.manifest["sources"]]
    assert names == ["anndata", "anndata (2)", "anndata (3)", "anndata (4)"]


def test_an_appended_input_with_other_genes_is_told_of(paths: list[Path], tmp_path: Path) -> None:
    build_corpus(
        paths[:1], tmp_path / "c", **(ARGUMENTS | {"genes": GeneVocab.from_names(IDS[:45]), "min_counts_kept": 0.5})
    )
    corpus = append_corpus(tmp_path / "c", paths[1:2])
    ((name, share),) = lost_counts(corpus)
    assert name == "b"
    assert 0.1 < share < 0.5


def test_a_killed_append_leaves_the_old_corpus_and_goes_on(
    paths: list[Path], calm_first: Corpus, killed: Path, tmp_path: Path, small_steps: None
) -> None:
    old, folder = calm_first, killed / "appends"
    outs = [folder / name for name in (*APPENDS, "calm")]
    new = append_corpus(outs[-1], paths[1:])
    moved = [shard["file"] for shard in new.manifest["shards"][len(old.manifest["shards"]) :]] + ["obs-00003.parquet"]
    for out in outs[:3]:
        assert verify_corpus(out) == (moved if out.name == "moved" else [])
        assert Corpus.open(out).corpus_id == old.corpus_id
        assert append_corpus(out, paths[1:]).corpus_id == new.corpus_id
        assert bytes_of(out) == bytes_of(outs[-1])
        assert not (folder / f".{out.name}.appending").exists()
    # What was moved in for an append that another takes the place of does not stay.
    assert verify_corpus(outs[3]) == moved
    assert append_corpus(outs[3], paths[2:]).manifest["obs"]["file"] == "obs-00002.parquet"
    assert verify_corpus(outs[3]) == []
    # Killed with nothing left to do but to tidy up: the same append finds its inputs there and tidies, another one too.
    for out in outs[4:6]:
        assert Corpus.open(out).corpus_id == new.corpus_id
        assert verify_corpus(out) == ["obs.parquet"]
    with pytest.raises(InputError, match=r"is in .* already"):
        append_corpus(outs[4], paths[1:])
    assert bytes_of(outs[4]) == bytes_of(outs[-1])
    more = files(tmp_path, (40,), first=3)
    assert bytes_of(append_corpus(outs[5], more).path) == bytes_of(append_corpus(outs[-1], more).path)
    assert not list(folder.glob(".*"))


def test_an_append_that_another_was_quicker_than_changes_nothing(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = build_corpus(paths[:1], tmp_path / "c", **ARGUMENTS).path
    checked = append.check_numbers

    def meanwhile(*numbers: int) -> None:
        monkeypatch.setattr(append, "check_numbers", checked)
        append_corpus(out, paths[1:2])
        checked(*numbers)

    monkeypatch.setattr(append, "check_numbers", meanwhile)
    with pytest.raises(InputError, match="another process appended to it meanwhile"):
        append_corpus(out, paths[2:])
    assert [source["name"] for source in Corpus.open(out).manifest["sources"]] == ["a", "b"]
    assert verify_corpus(out) == []


# The commands


def test_build_and_append_on_the_command_line(
    paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    VOCAB.save(tmp_path / "genes.tsv")
    out = str(tmp_path / "c")
    words = ["--genes", str(tmp_path / "genes.tsv"), "--min-genes", "3", "--deduplicate", "barcode", "--out", out]
    main(["corpus", "build", str(paths[0]), *words])
    main(["corpus", "append", out, str(paths[1])])
    assert len(Corpus.open(tmp_path / "c").manifest["sources"]) == 2
    assert "of 2 sources" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["corpus", "append", out, str(paths[1])])
    assert "is in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["corpus", "build", str(paths[0]), "--workers", "0", "--out", str(tmp_path / "d")])
    assert "--workers is 0" in capsys.readouterr().err

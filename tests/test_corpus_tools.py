"""Tools around a corpus: what they leave is a corpus, no cell is lost or invented, and every planted fault is found."""

import dataclasses
import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from expresser.cli import main
from expresser.corpus import derive, manifest
from expresser.corpus.append import append_corpus
from expresser.corpus.build import build_corpus
from expresser.corpus.dealing import deal, parse_shares
from expresser.corpus.histograms import histogram_lines, log_histogram
from expresser.corpus.info import corpus_info, info_text
from expresser.corpus.info_page import info_page
from expresser.corpus.labels import commonest, labels_sha256, read_labels
from expresser.corpus.leaks import Shared, count_fingerprints, shared
from expresser.corpus.selection import subset_corpus
from expresser.corpus.splitting import report_text, split_corpus
from expresser.corpus.store import Corpus
from expresser.corpus.verify import find_faults, verify_corpus
from expresser.errors import InputError
from expresser.genes import GeneVocab

N_GENES = 50
IDS = [f"ENSG{i:011d}" for i in range(N_GENES)]
SYMBOLS = [f"GENE{i}" for i in range(N_GENES)]
VOCAB = GeneVocab.from_names(IDS, SYMBOLS)
SHARES = {"train": 0.6, "valid": 0.2, "test": 0.2}


def sample(cells: int, seed: int, prefix: str, **obs: list) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 2.0, size=(cells, N_GENES)))
    return anndata.AnnData(
        sparse.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(obs, index=[f"{prefix}{i}" for i in range(cells)]),
        var=pd.DataFrame(index=IDS),
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files: donors of uneven size over two of them, labels missing in the third, numbers and truth values."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(4)
    donors = rng.choice([f"d{i}" for i in range(12)], 300, p=rng.dirichlet(np.ones(12) * 3)).tolist()
    samples = {
        "a": sample(180, 1, "A", donor=donors[:180], age=[20 + i % 3 for i in range(180)], sick=[True, False] * 90),
        "b": sample(120, 2, "B", donor=donors[180:], age=[20.5] * 120, sick=[False] * 120),
        "c": sample(40, 3, "C", cell_type=["B cell", "T cell", "B=x", ""] * 10),
    }
    for name, data in samples.items():
        data.write_h5ad(folder / f"{name}.h5ad")
    return [folder / f"{name}.h5ad" for name in samples]


@pytest.fixture(scope="module")
def corpus(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build(files, tmp_path_factory.mktemp("tools") / "corpus")


def build(files: list[Path], out: Path, **changes: object) -> Corpus:
    arguments: dict = {"genes": VOCAB, "min_genes": 3, "min_counts_kept": 0.0, "shard_rows": 128, "batch_rows": 50}
    return build_corpus(files, out, **(arguments | {"obs_columns": ["donor", "cell_type", "age", "sick"]} | changes))


@pytest.fixture
def copied(corpus: Corpus, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus.path, tmp_path / "copy"))


def names(corpus: Corpus) -> list[tuple[str, str]]:
    """(source, barcode) by row."""
    obs = corpus.obs.iloc[corpus.cell_ids]
    return list(zip(obs["source"].astype(str), obs["barcode"]))


def cells(corpus: Corpus) -> dict[tuple[str, str], tuple]:
    """What a cell is, by its lasting name: gene ids with counts, total, labels."""
    batch = corpus.read(np.arange(corpus.n_cells))
    ids, ends = corpus.vocab.ids, batch.offsets
    obs = corpus.obs.drop(columns=["source", "barcode"]).astype(str).iloc[batch.cell_id]
    return {
        name: (
            tuple(ids[batch.genes[a:b]]),
            tuple(batch.counts[a:b].tolist()),
            int(total),
            tuple(labels),
        )
        for name, a, b, total, labels in zip(
            names(corpus), ends[:-1], ends[1:], batch.total, obs.itertuples(index=False)
        )
    }


# Dealing groups


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 400), min_size=3, max_size=30),
    st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.3, 0.2), (0.34, 0.33, 0.33)]),
    st.integers(0, 5),
)
def test_no_single_move_brings_shares_nearer_and_no_side_is_empty(sizes: list[int], parts: tuple, seed: int) -> None:
    groups = {f"g{i}": n for i, n in enumerate(sizes)}
    shares = dict(zip(("train", "valid", "test"), parts))
    side_of = deal(groups, shares, seed)
    assert side_of == deal(dict(reversed(groups.items())), shares, seed)

    def off(sides: dict[str, str]) -> float:
        have = {side: sum(groups[g] for g, s in sides.items() if s == side) for side in shares}
        return sum(abs(have[side] - shares[side] * sum(sizes)) for side in shares)

    assert set(side_of.values()) == set(shares)
    for group, side in side_of.items():
        if sum(s == side for s in side_of.values()) > 1:
            assert all(off(side_of | {group: other}) >= off(side_of) - 1e-4 for other in shares if other != side)


def test_groups_that_can_meet_the_shares_do_and_seeds_differ() -> None:
    groups = {f"donor{i}": 10 for i in range(20)}
    found = [deal(groups, {"train": 0.8, "valid": 0.1, "test": 0.1}, seed) for seed in range(30)]
    for side_of in found:
        assert sorted(side_of.values()) == ["test"] * 2 + ["train"] * 16 + ["valid"] * 2
    held = [tuple(sorted(g for g, s in side_of.items() if s == "test")) for side_of in found]
    assert len(set(held)) > 20
    # Each group is held out about as often as any other: large ones are not always kept for training.
    uneven = {f"g{i}": 5 + 15 * (i % 2) for i in range(40)}
    tests = [deal(uneven, {"train": 0.5, "test": 0.5}, seed) for seed in range(60)]
    often = np.array([sum(side_of[g] == "test" for side_of in tests) for g in uneven])
    assert (abs(often - 30) < 15).all()


@pytest.mark.parametrize(
    "words",
    [["train=0.8"], ["train=0.8", "test=0.3"], ["train=x", "test=1"], ["a/b=0.5", "c=0.5"], ["a=0.5", "a=0.5"]],
)
def test_shares_that_are_none_are_refused(words: list[str]) -> None:
    with pytest.raises(InputError, match="--shares"):
        parse_shares(words)


def test_fewer_groups_than_sides_are_refused() -> None:
    with pytest.raises(InputError, match="2 groups cannot be dealt to 3 sides"):
        deal({"a": 3, "b": 4}, SHARES, 0)


# Splits


@pytest.mark.parametrize("by", ["donor", "source"])
def test_a_split_is_the_whole_in_parts_by_whole_groups(corpus: Corpus, tmp_path: Path, by: str) -> None:
    report = split_corpus(
        corpus, tmp_path / "parts", by=by, shares=SHARES, missing="own-group", shard_rows=60, batch_rows=20
    )
    sides = {side: Corpus.open(tmp_path / "parts" / side) for side in SHARES}
    together: dict = {}
    for side, part in sides.items():
        verify_corpus(part.path)
        found = cells(part)
        assert len(found) == part.n_cells == report.cells[side] > 0
        assert not together.keys() & found.keys()
        together |= found
        here = [name for name in names(corpus) if name in found]
        assert names(part) == here  # the order on disk is kept
        assert part.vocab == corpus.vocab
        assert part.manifest["derived_from"]["corpus_id"] == corpus.corpus_id
        assert part.manifest["derived_from"]["rule"]["side"] == side
        for entry in part.manifest["sources"]:
            assert entry["cells_read"] == entry["cells"] + sum(entry["dropped"].values())
    assert together == cells(corpus)
    groups = [set(part.obs[by].astype(str)) for part in sides.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert report.same_counts.cells == report.same_names.cells == 0
    assert "none" in report_text(report, tmp_path)


def test_the_same_split_is_the_same_and_ids_follow_content_alone(corpus: Corpus, tmp_path: Path) -> None:
    for out in ("one", "two"):
        split_corpus(corpus, tmp_path / out, by="donor", shares=SHARES, missing="drop")
    ids = [[Corpus.open(tmp_path / out / side).corpus_id for side in SHARES] for out in ("one", "two")]
    assert ids[0] == ids[1]
    assert len({*ids[0], corpus.corpus_id}) == 4
    # The same cells by two rules, in other shards: one content, one id.
    first = subset_corpus(corpus, tmp_path / "b", where=["source=b"])
    again = subset_corpus(corpus, tmp_path / "not", without=["source=a", "source=c"], shard_rows=33, batch_rows=7)
    assert first.corpus_id == again.corpus_id
    assert first.manifest["derived_from"]["rule"] != again.manifest["derived_from"]["rule"]
    assert first.corpus_id != subset_corpus(corpus, tmp_path / "fewer", where=["source=b"], cells=119).corpus_id


@pytest.mark.parametrize("missing", ["refuse", "train", "drop", "own-group"])
def test_cells_without_a_label(corpus: Corpus, tmp_path: Path, missing: str) -> None:
    out = tmp_path / "parts"
    if missing == "refuse":
        with pytest.raises(InputError, match=r"40 of 340 cells have no 'donor'.*--missing drop"):
            split_corpus(corpus, out, by="donor", shares=SHARES)
        assert not out.exists()
        return
    report = split_corpus(corpus, out, by="donor", shares=SHARES, missing=missing)
    assert (report.unlabelled, report.dropped) == (40, 40 if missing == "drop" else 0)
    assert sum(report.cells.values()) == 340 - report.dropped
    holding = [side for side in SHARES if Corpus.open(out / side).obs["donor"].isna().any()]
    assert len(holding) == (0 if missing == "drop" else 1)
    assert missing != "train" or holding == ["train"]


def test_what_leaks_all_the_same_is_counted(tmp_path: Path) -> None:
    data = sample(60, 9, "x", donor=[f"d{i % 6}" for i in range(60)])
    data.X = data.X[[12 if i == 6 else 0 if i == 7 else i for i in range(60)]]  # 7 is 0: two donors; 6 is 12: one donor
    corpus = build_corpus([data], tmp_path / "c", genes=VOCAB, min_genes=3, obs_columns=["donor"])
    for seed in range(20):
        side_of = deal({f"d{i}": 10 for i in range(6)}, {"a": 0.5, "b": 0.5}, seed)
        report = split_corpus(corpus, tmp_path / str(seed), by="donor", shares={"a": 0.5, "b": 0.5}, seed=seed)
        assert report.same_counts == (Shared(1, 2) if side_of["d0"] != side_of["d1"] else Shared(0, 0))
        if report.same_counts.cells:
            assert "warning: sides share cells" in report_text(report, tmp_path)
            break
    else:
        pytest.fail("no seed parted the two donors")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=30))
def test_shared_keys_are_those_of_sets(pairs: list[tuple[int, int]]) -> None:
    found = shared(np.array([k for k, _ in pairs], np.uint64), np.array([s for _, s in pairs], np.int8))
    sides: dict[int, set[int]] = {}
    for key, side in pairs:
        sides.setdefault(key, set()).add(side)
    leaking = {key for key, of in sides.items() if len(of) > 1}
    assert (found.keys, found.cells) == (len(leaking), sum(key in leaking for key, _ in pairs))


def test_fingerprints_tell_cells_apart_by_genes_and_counts(corpus: Corpus) -> None:
    batch = corpus.read(np.arange(corpus.n_cells))
    keys = count_fingerprints(batch)
    assert len(np.unique(keys)) == len(keys)
    rows = np.random.default_rng(0).permutation(len(batch))
    np.testing.assert_array_equal(count_fingerprints(batch.take(rows)), keys[rows])
    counts = batch.counts.copy()
    counts[batch.offsets[5]] += 1
    changed = count_fingerprints(dataclasses.replace(batch, counts=counts))
    assert np.flatnonzero(changed != keys).tolist() == [5]


# Subsets


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"where": ["donor=d1", "donor=d3"]}, lambda o: o["donor"].isin(["d1", "d3"])),
        ({"where": ["donor=d1", "sick=true"]}, lambda o: (o["donor"] == "d1") & (o["sick"] == True)),  # noqa: E712
        ({"where": ["age=20.5"]}, lambda o: o["age"] == 20.5),
        ({"where": ["age=21"]}, lambda o: o["age"] == 21),
        ({"where": ["cell_type=B=x"]}, lambda o: o["cell_type"] == "B=x"),
        ({"where": ["cell_type="]}, lambda o: o["cell_type"].isna()),
        ({"without": ["donor=", "source=b"]}, lambda o: o["donor"].notna() & (o["source"] != "b")),
        ({"sources": ["a", "c"]}, lambda o: o["source"] != "b"),
        ({"where": ["barcode=A3", "barcode=B7"]}, lambda o: o["barcode"].isin(["A3", "B7"])),
    ],
)
def test_a_subset_is_the_cells_that_fit_the_rule(corpus: Corpus, tmp_path: Path, rule: dict, expected: object) -> None:
    kept = set(corpus.obs.index[expected(corpus.obs)])  # type: ignore[operator]
    part = subset_corpus(corpus, tmp_path / "s", **rule, shard_rows=64, batch_rows=30)
    verify_corpus(part.path)
    whole = cells(corpus)
    wanted = [name for name, row in zip(names(corpus), corpus.cell_ids) if int(row) in kept]
    assert names(part) == wanted
    assert cells(part) == {name: whole[name] for name in wanted}
    assert part.obs["barcode"].tolist() == [corpus.obs["barcode"][i] for i in sorted(kept)]


def test_random_subsets_are_nested_and_depend_on_the_seed(corpus: Corpus, tmp_path: Path) -> None:
    few, more, other = (
        set(names(subset_corpus(corpus, tmp_path / f"{n}-{seed}", cells=n, seed=seed)))
        for n, seed in ((30, 0), (100, 0), (30, 1))
    )
    assert (len(few), len(more)) == (30, 100)
    assert few < more
    assert len(few & other) < 15
    assert few != set(names(corpus)[:30])


def test_fewer_genes_are_the_corpus_built_with_them(corpus: Corpus, files: list[Path], tmp_path: Path) -> None:
    kept = [3, 7, 8, 20, 31, 32, 33, 47]
    file = tmp_path / "genes.txt"
    file.write_text("\n".join([SYMBOLS[i] if i % 2 else IDS[i] for i in reversed(kept)] + ["NOSUCH", ""]))
    part = subset_corpus(corpus, tmp_path / "s", genes=file, min_genes=3, shard_rows=128, batch_rows=50)
    verify_corpus(part.path)
    assert part.vocab.ids.tolist() == [IDS[i] for i in kept]
    vocab = GeneVocab.from_names([IDS[i] for i in kept], [SYMBOLS[i] for i in kept])
    built = build(files, tmp_path / "built", genes=vocab, min_genes=3)
    assert cells(part) == cells(built)
    vocab.save(tmp_path / "genes.tsv")
    assert subset_corpus(corpus, tmp_path / "t", genes=tmp_path / "genes.tsv", min_genes=3).corpus_id == part.corpus_id
    assert part.manifest["sources"][0]["genes"]["counts_kept"] is None
    info_text(corpus_info(part.path))


def test_a_subset_of_a_split_remembers_both(corpus: Corpus, tmp_path: Path) -> None:
    split_corpus(corpus, tmp_path / "parts", by="source", shares={"x": 0.6, "y": 0.4})
    part = Corpus.open(tmp_path / "parts" / "y")
    small = subset_corpus(part, tmp_path / "small", cells=10)
    origin = small.manifest["derived_from"]
    assert origin["corpus_id"] == part.corpus_id
    assert origin["derived_from"]["corpus_id"] == corpus.corpus_id
    assert corpus.corpus_id[:12] in info_text(corpus_info(part.path))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"where": ["tissue=x"]}, r"no obs column 'tissue'; the corpus has source, barcode, donor"),
        ({"where": ["donor=d99"]}, r"no cell has donor=d99. The commonest values \(cells\) are 'd\d+'"),
        ({"where": ["age=old"]}, "holds numbers, 'old' is none"),
        ({"where": ["donor"]}, "COLUMN=VALUE"),
        ({"where": ["donor=d1", "cell_type=T cell"]}, "no cell is left of 340"),
        ({"cells": 341}, "341 cells were asked for, 340 of 340 fit"),
        ({"cells": 0}, "0 cells were asked for"),
        ({"min_genes": 51}, "no cell is left"),
        ({"where": ["__import__('os').system('true')=1"]}, "no obs column"),
    ],
)
def test_rules_that_fit_nothing_are_refused(corpus: Corpus, tmp_path: Path, rule: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        subset_corpus(corpus, tmp_path / "s", **rule)
    assert list(tmp_path.iterdir()) == []


def test_genes_of_nobody_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("Actb\nGapdh\n")
    with pytest.raises(InputError, match=r"none of its 2 genes .*begins with 'ENSG00000000000'"):
        subset_corpus(corpus, tmp_path / "s", genes=tmp_path / "g.txt")


def test_what_is_there_is_not_touched_and_failures_leave_nothing(
    corpus: Corpus, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("text")
    with pytest.raises(InputError, match="mine: is there already"):
        subset_corpus(corpus, tmp_path / "mine")
    with pytest.raises(InputError, match="mine: is there already"):
        split_corpus(corpus, tmp_path / "mine", by="source", shares=SHARES)
    done = []

    def fail(self: object, *arguments: object) -> None:
        done.append(1)
        raise RuntimeError

    monkeypatch.setattr(derive, "write_manifest", fail)
    with pytest.raises(RuntimeError):
        split_corpus(corpus, tmp_path / "parts", by="source", shares=SHARES)
    assert done
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_parts_with_the_same_counts_and_other_labels_are_other_corpora(tmp_path: Path) -> None:
    # Two cells of one file with one profile: which of them was chosen shows in their labels alone.
    data = sample(20, 9, "x", donor=[f"d{i % 4}" for i in range(20)], age=[1.0, np.nan] * 10, sick=[True] * 20)
    data.X = data.X[[0] * 20]
    corpus = build_corpus([data], tmp_path / "c", genes=VOCAB, min_genes=1, obs_columns=["donor", "age", "sick"])
    parts = [subset_corpus(corpus, tmp_path / f"{i}", where=[f"barcode=x{i}"]) for i in range(3)]
    assert len({part.manifest["content"] for part in parts}) == 1
    assert len({part.corpus_id for part in parts}) == 3
    # How the table is stored is no part of it, one label is.
    stored = pq.read_table(tmp_path / "c" / "obs.parquet")
    pq.write_table(stored, tmp_path / "other.parquet", row_group_size=3, compression="none")
    expected = labels_sha256(tmp_path / "c" / "obs.parquet")
    assert labels_sha256(tmp_path / "other.parquet") == expected
    for column, value in (("donor", "d9"), ("donor", None), ("age", 0.0), ("sick", None), ("barcode", "y")):
        values = stored[column].to_pylist()
        values[3] = value
        place, field = stored.column_names.index(column), stored.schema.field(column)
        pq.write_table(stored.set_column(place, field, pa.array(values, field.type)), tmp_path / "other.parquet")
        assert labels_sha256(tmp_path / "other.parquet") != expected
    rewritten(parts[0].path, "obs.parquet", lambda t: t.set_column(2, "donor", pa.array(["d3"])))
    assert "holds other labels than the manifest says" in " ".join(map(str, find_faults(parts[0].path)))


def test_a_part_remembers_what_was_appended_to_the_whole(files: list[Path], tmp_path: Path) -> None:
    build(files[:1], tmp_path / "c", obs_columns=["donor"])
    append_corpus(tmp_path / "c", files[1:2])
    corpus = append_corpus(tmp_path / "c", files[2:])
    part = subset_corpus(corpus, tmp_path / "s", sources=["a", "c"])
    origin = part.manifest["derived_from"]
    assert origin["corpus_id"] == corpus.corpus_id
    assert [(entry["inputs"], entry["cells"]) for entry in origin["appended"]] == [(["b"], 120), (["c"], 40)]
    small = corpus_info(subset_corpus(part, tmp_path / "t", cells=30).path)
    assert small["appended"] == origin["appended"]
    assert {source["name"]: source["appended"] for source in small["sources"]} == {"a": None, "c": 2}
    assert "appended  2: c (40 cells) (to the corpus this one comes from)" in info_text(small)


def test_a_derived_corpus_is_never_taken_for_a_finished_build(
    corpus: Corpus, files: list[Path], tmp_path: Path
) -> None:
    part = subset_corpus(corpus, tmp_path / "s", cells=100)
    with pytest.raises(InputError, match="already holds another corpus"):
        build(files, part.path)


@pytest.mark.slow
def test_pretraining_on_a_subset_works(tiny_corpus: Path, tiny_recipe, tmp_path: Path) -> None:
    from pretrain.loop import pretrain

    part = subset_corpus(Corpus.open(tiny_corpus), tmp_path / "s", cells=80)
    few = dataclasses.replace(tiny_recipe, data=dataclasses.replace(tiny_recipe.data, max_steps=4))
    pretrain(few, part.path, tmp_path / "run", quiet=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["corpus_id"] == part.corpus_id


# Labels and info


def test_labels_by_column_are_those_of_obs(corpus: Corpus) -> None:
    for column in corpus.obs.columns:
        labels = read_labels(corpus, column)
        assert (labels.isna() == corpus.obs[column].isna()).all()
        assert labels.dropna().astype(str).tolist() == corpus.obs[column].dropna().astype(str).tolist()
        values, numbers = corpus.labels(column)
        by_row = labels.iloc[corpus.cell_ids]
        assert [values[n] for n in numbers] == ["nan" if absent else str(v) for v, absent in zip(by_row, by_row.isna())]
    counts = corpus.obs["donor"].value_counts()
    assert [n for _, n in commonest(read_labels(corpus, "donor"), 3)] == counts.head(3).tolist()


@settings(deadline=None)
@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=60), st.integers(1, 20))
def test_every_value_is_in_its_bin(values: list[int], bins: int) -> None:
    found = log_histogram(np.array(values, np.uint32), bins)
    assert found.cells.sum() == len(values)
    for low, high, n in zip(found.edges[:-1], found.edges[1:], found.cells):
        assert n == sum(low <= max(v, 1) < high for v in values)
    assert len(histogram_lines(found)) == len(found.cells) <= bins


def test_histogram_lines_read_well() -> None:
    found = log_histogram(np.array([1, 1, 1, 1, 10, 10, 99]), 2)
    assert histogram_lines(found, width=4) == [" 1 –  9  ████ 4", "10 – 99  ███  3"]


def test_info_keeps_its_contract_and_counts_all_cells(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    main(["corpus", "info", str(corpus.path), "--json"])
    info = json.loads(capsys.readouterr().out)
    assert (info["cells"], info["genes"], info["nnz"]) == (340, 50, corpus.manifest["nnz"])
    assert [source["name"] for source in info["sources"]] == ["a", "b", "c"]
    assert sum(info["histograms"]["depth"]["cells"]) == 340
    assert info["commonest"]["cell_type"][0][1] == 10
    main(["corpus", "info", str(corpus.path)])
    text = capsys.readouterr().out
    assert "bytes a cell" in text
    assert "█" in text
    in_b = corpus.source_ids == 1
    assert info["sources"][1]["median_depth"] == np.median(corpus.totals[in_b])


def test_info_tells_what_was_dropped_and_what_was_appended(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = sample(50, 1, "Z")  # the counts of a's first cells, and a cell without any
    twice.X = sparse.vstack(
        [anndata.read_h5ad(files[0]).X[:49], sparse.csr_matrix((1, N_GENES), dtype=np.float32)]
    ).tocsr()
    twice.write_h5ad(tmp_path / "twice.h5ad")
    build(files[:1], tmp_path / "c", obs_columns=["donor"], deduplicate="counts")
    append_corpus(tmp_path / "c", [files[1], tmp_path / "twice.h5ad"])
    append_corpus(tmp_path / "c", files[2:])
    folder = str(tmp_path / "c")
    main(["corpus", "info", folder, "--json", "--html", str(tmp_path / "c.html")])
    info = json.loads(capsys.readouterr().out)
    assert info["dropped"] == {"empty": 1, "few genes": 0, "duplicates": 49}
    assert info["cells"] + sum(info["dropped"].values()) == info["cells_read"] == 390
    assert [(part["inputs"], part["cells"]) for part in info["appended"]] == [(["b", "twice"], 120), (["c"], 40)]
    assert [source["appended"] for source in info["sources"]] == [None, 1, 1, 2]
    main(["corpus", "info", folder])
    text = capsys.readouterr().out
    for line in (
        "dropped   50 of 390 cells read: 1 empty, 0 few genes, 49 duplicates",
        "appended  1: b, twice (120 cells)",
        "appended  2: c (40 cells)",
    ):
        assert line in text.splitlines()
    row = next(line for line in text.splitlines() if line.startswith("twice"))
    assert row.split()[:5] == ["twice", "0", "1", "0", "49"]
    assert row.split()[-1] == "1"
    page = (tmp_path / "c.html").read_text()
    for words in ("dropped: duplicates", "49 duplicates", "Appended after the build: 1: b, twice (120 cells); 2: c"):
        assert words in page
    # Where nothing was looked for or appended, nothing is said of it.
    build(files, tmp_path / "plain")
    text = info_text(corpus_info(tmp_path / "plain"))
    assert "duplicates" not in text
    assert "appended" not in text


def test_the_page_of_a_corpus_holds_its_figures_tables_and_origin(corpus: Corpus, tmp_path: Path) -> None:
    page = tmp_path / "c.html"
    info_page(corpus_info(corpus.path), page)
    text = page.read_text()
    assert text.count("<svg") == 2
    for words in ("Counts a cell", "Genes a cell", "donor: commonest values", "B cell", corpus.corpus_id, "anndata"):
        assert words in text
    part = subset_corpus(corpus, tmp_path / "s", cells=5)
    info_page(corpus_info(part.path), page)
    assert corpus.corpus_id in page.read_text()


# Verify


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_all_faults_are_listed_at_once(copied: Path) -> None:
    assert find_faults(copied) == []
    flip(copied / "cells-00000.arrow")
    (copied / "cells-00001.arrow").unlink()
    with open(copied / "cells-00002.arrow", "r+b") as file:
        file.truncate(1000)
    flip(copied / "genes.tsv")
    flip(copied / "obs.parquet")
    for deep in (True, False):
        with pytest.raises(InputError, match="5 of 5 files are not what was written") as caught:
            verify_corpus(copied, deep=deep, threads=3)
        for words in (
            "cells-00000.arrow: sha256 is",
            "cells-00001.arrow: missing",
            "cells-00002.arrow: 1,000 bytes, the manifest says",
            "genes.tsv: sha256 is",
            "obs.parquet: sha256 is",
        ):
            assert words in str(caught.value)


def test_a_newer_manifest_is_refused_by_every_tool(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(text | {"format_version": 99}))
    out = str(tmp_path / "out")
    for words in (
        ["verify"],
        ["info"],
        ["split", "--by", "source", "--out", out],
        ["subset", "--cells", "3", "--out", out],
    ):
        with pytest.raises(SystemExit):
            main(["corpus", words[0], str(copied), *words[1:]])
        assert "format version 99" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_progress_counts_every_byte_and_every_cell(corpus: Corpus) -> None:
    calls: list[tuple[str, int, int]] = []
    verify_corpus(corpus.path, progress=lambda *call: calls.append(call), threads=4)
    size = sum((corpus.path / entry["file"]).stat().st_size for entry in corpus.manifest["shards"])
    size += sum((corpus.path / corpus.manifest[key]["file"]).stat().st_size for key in ("genes", "obs"))
    assert max(done for stage, done, _ in calls if stage == "checksums") == size
    assert calls[-1] == ("rows", 340, 340)


def rewritten(folder: Path, name: str, change: object) -> None:
    """Replace a file and make the manifest's checksums agree, as only a faulty program would."""
    text = json.loads((folder / "manifest.json").read_text())
    if name.endswith(".arrow"):
        with pa.memory_map(str(folder / name)) as file:
            batches = [change(batch) for batch in pa.ipc.open_stream(file)]  # type: ignore[operator]
        with pa.OSFile(str(folder / "new"), "wb") as sink, pa.ipc.new_stream(sink, batches[0].schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        shutil.move(folder / "new", folder / name)
    else:
        pq.write_table(change(pq.read_table(folder / name)), folder / name)  # type: ignore[operator]
    for entry in (text["obs"], *text["shards"]):
        if entry["file"] == name:
            entry |= manifest.file_entry(folder / name)
    (folder / "manifest.json").write_text(json.dumps(text))


def test_deep_checks_find_what_checksums_cannot(copied: Path) -> None:
    ones = pa.array(np.ones(50, np.uint32))
    rewritten(copied, "cells-00000.arrow", lambda b: b.set_column(2, "total", ones[: len(b)]))
    rewritten(copied, "cells-00002.arrow", lambda b: b.set_column(1, "source", pa.array(np.full(len(b), 7, np.uint16))))
    assert find_faults(copied, deep=False) == []
    faults = find_faults(copied)
    assert [fault.file for fault in faults] == ["cells-00000.arrow", "cells-00002.arrow"]
    assert "row 0 (cell id" in faults[0].what
    assert "total is not the sum of counts" in faults[0].what
    assert "a source beyond the manifest's 3" in faults[1].what


def test_deep_checks_find_repeated_cells_and_foreign_labels(copied: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(copied, tmp_path / "other"))
    rewritten(copied, "obs.parquet", lambda t: t.set_column(0, "source", pa.array(["a"] * len(t))))
    assert any("which source a cell came from" in str(fault) for fault in find_faults(copied))
    zeros = pa.array(np.zeros(50, np.uint32))
    rewritten(other, "cells-00001.arrow", lambda b: b.set_column(0, "cell_id", zeros[: len(b)]))
    found = " ".join(map(str, find_faults(other)))
    assert "content digest differs" in found
    assert "cell ids are not each of 0 … 339 once" in found


# Commands


def test_the_commands_end_to_end(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = str(corpus.path)
    main(["corpus", "verify", folder, "--deep"])
    assert "every row obeys the laws" in capsys.readouterr().out
    main(["corpus", "split", folder, "--by", "donor", "--missing", "drop", "--out", "parts", "--seed", "3"])
    said = capsys.readouterr().out
    assert "parts/train: " in said
    assert "cells without donor: 40; left out: 40" in said
    words = ["--where", "donor=d1", "donor=d2", "--not", "sick=true", "--source", "a", "b", "--cells", "10"]
    main(["corpus", "subset", folder, *words, "--out", "some"])
    assert "10 cells x 50 genes" in capsys.readouterr().out
    Path("some/obs-00002.parquet").write_bytes(b"of an append that was killed")
    Path("some/notes.txt").write_text("mine")
    capsys.readouterr()
    main(["corpus", "verify", "some"])
    assert "\nobs-00002.parquet: no part of it; left by an append that was killed" in capsys.readouterr().out
    main(["corpus", "info", "some", "--html", "page.html"])
    assert Path("page.html").is_file()


@pytest.mark.parametrize("verb", ["build", "info", "verify", "split", "subset", "push", "pull"])
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["corpus", verb, "--help"])
    assert caught.value.code == 0
    assert f"expresser corpus {verb} " in capsys.readouterr().out

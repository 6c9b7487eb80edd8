"""A study reads the same from every container, pairs by name, and refuses what is no raw count, swapped or ambiguous."""

import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from expresser.errors import InputError
from expresser.regions import Regions
from expresser.simulate import simulate_multiome
from translate.align import align_genes, match_genes, match_regions, take_columns
from translate.data import PairingWarning, Study, read_study
from translate.joining import JoiningWarning
from translate.pairing import pairing_evidence

CELLS = [f"ACGTACGTAC{a}{b}{c}-1" for a in "ACGT" for b in "ACGT" for c in "AC"]
GENES = ["TP53", "GATA1", "CD3E", "XIST", "MS4A1", "LYZ"]
IDS = [f"ENSG{i:011d}" for i in range(1, 7)]
CHROMS = ["chr17", "chrX", "chr11", "chrX", "chr11", "chr12"]
PEAKS = ["chr1:100-600", "chr2:50-90", "chr10:5-700", "chrX:1-20"]


def rna(cells: list[str] = CELLS, seed: int = 0) -> ad.AnnData:
    counts = np.random.default_rng(seed).poisson(1.0, (len(cells), len(GENES)))
    return ad.AnnData(
        sparse.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame({"cell_type": [f"t{i % 3}" for i in range(len(cells))]}, index=cells),
        var=pd.DataFrame({"gene_ids": IDS, "chrom": CHROMS, "tss": np.arange(6) * 100}, index=GENES),
    )


def atac(cells: list[str] = CELLS, seed: int = 1) -> ad.AnnData:
    counts = np.random.default_rng(seed).poisson(0.7, (len(cells), len(PEAKS)))
    return ad.AnnData(
        sparse.csr_matrix(counts.astype(np.float32)), obs=pd.DataFrame(index=cells), var=pd.DataFrame(index=PEAKS)
    )


def joint() -> ad.AnnData:
    """10x: both in one matrix, features in mixed order."""
    r, a = rna(), atac()
    order = np.random.default_rng(3).permutation(10)
    var = pd.DataFrame(
        {
            "gene_ids": [*IDS, *PEAKS],
            "feature_types": ["Gene Expression"] * 6 + ["Peaks"] * 4,
            "interval": [f"{c}:{t - 10}-{t + 10}" for c, t in zip(CHROMS, np.arange(6) * 100 + 10)] + PEAKS,
        },
        index=[*GENES, *PEAKS],
    )
    x = sparse.hstack([r.X, a.X], format="csr")
    return ad.AnnData(sparse.csr_matrix(x[:, order]), obs=r.obs.copy(), var=var.iloc[order])


def tenx_h5(adata: ad.AnnData, path: Path) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        matrix = sparse.csr_matrix(adata.X)
        group["data"], group["indices"], group["indptr"] = matrix.data.astype(np.int32), matrix.indices, matrix.indptr
        group["shape"] = np.array([adata.n_vars, adata.n_obs])
        group["barcodes"] = adata.obs_names.to_numpy(dtype="S")
        for key, values in (
            ("id", adata.var["gene_ids"]),
            ("name", adata.var_names),
            ("feature_type", adata.var["feature_types"]),
        ):
            group[f"features/{key}"] = np.asarray(values, dtype="S")
    return path


def frames(study: Study) -> dict[str, pd.DataFrame]:
    """Each modality as a table of named cells and features, which any container must give."""
    return {
        m: pd.DataFrame(
            part.matrix.toarray(), index=part.obs.index.astype(str), columns=part.var.index.astype(str)
        ).sort_index(axis=1)
        for m, part in study.measured.items()
    }


# ---- every container -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["h5ad", "joint_rna", "joint_mudata", "joint_h5ad", "10x_h5", "zarr", "dense", "csc"])
def test_every_container_gives_the_same_study(how: str, tmp_path: Path):
    r, a = rna(), atac()
    if how == "h5ad":
        r.write_h5ad(tmp_path / "r.h5ad")
        a.write_h5ad(tmp_path / "a.h5ad")
        study = read_study(rna=tmp_path / "r.h5ad", atac=str(tmp_path / "a.h5ad"))
    elif how == "zarr":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Writing zarr v2", category=UserWarning)
            r.write_zarr(tmp_path / "r.zarr")
        study = read_study(rna=tmp_path / "r.zarr", atac=a)
    elif how == "joint_rna":
        study = read_study(rna=joint())
    elif how == "joint_mudata":
        study = read_study(mudata=joint())
    elif how == "joint_h5ad":
        joint().write_h5ad(tmp_path / "j.h5ad")
        study = read_study(rna=tmp_path / "j.h5ad", atac=tmp_path / "j.h5ad")
    elif how == "10x_h5":
        study = read_study(mudata=tenx_h5(joint(), tmp_path / "j.h5"))
    else:
        r.X, a.X = (
            (r.X.toarray(), a.X.toarray()) if how == "dense" else (sparse.csc_matrix(r.X), sparse.csc_matrix(a.X))
        )
        study = read_study(rna=r, atac=a)
    for m, frame in frames(read_study(rna=rna(), atac=atac())).items():
        pd.testing.assert_frame_equal(frames(study)[m], frame)
    table = study.measured["rna"].var
    assert dict(zip(table.index, table["ensembl_id"])) == dict(zip(GENES, IDS))
    for part in study.measured.values():
        assert part.matrix.dtype == np.float32
        assert part.matrix.has_canonical_format
        assert (part.matrix.data != 0).all()


@pytest.mark.parametrize("names", [("rna", "atac"), ("gex", "peaks"), ("Gene", "ATAC")])
def test_mudata_in_memory_and_on_disk(names: tuple[str, str], tmp_path: Path):
    mudata = pytest.importorskip("mudata")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = mudata.MuData(dict(zip(names, (rna(), atac()))))
        mdata.obs["leiden"] = ["a", "b"] * (len(CELLS) // 2)
        mdata.write(tmp_path / "m.h5mu")
    for data in (mdata, tmp_path / "m.h5mu"):
        study = read_study(mudata=data)
        for m, frame in frames(read_study(rna=rna(), atac=atac())).items():
            pd.testing.assert_frame_equal(frames(study)[m], frame)
        assert list(study.obs["leiden"][:3]) == ["a", "b", "a"]
        assert list(study.obs["cell_type"][:3]) == ["t0", "t1", "t2"]
    with pytest.raises(InputError, match=r"a MuData holds RNA and ATAC: give it, or files of RNA and of ATAC"):
        read_study(mudata=mdata, rna=rna())


def test_unknown_modality_names_are_listed():
    mudata = pytest.importorskip("mudata")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = mudata.MuData({"x": rna(), "y": atac()})
    with pytest.raises(InputError, match=r"\['x', 'y'\] is known.*or give RNA and ATAC"):
        read_study(mudata=mdata)


@pytest.mark.parametrize("kind", ["frame", "array", "h5ad", "antibodies", "given"])
def test_protein_from_obsm_or_a_joint_object(kind: str, tmp_path: Path):
    r = rna()
    counts = np.random.default_rng(5).poisson(9.0, (len(CELLS), 3)).astype(np.float32)
    names = ["CD3", "CD19", "CD14"]
    r.obsm["protein_expression"] = pd.DataFrame(counts, index=r.obs_names, columns=names)
    study_of = {"rna": r, "protein": "obsm:protein_expression"}
    if kind in ("array", "h5ad"):
        r.obsm["protein_expression"], r.uns["protein_names"] = counts, np.array(names)
    if kind == "h5ad":
        r.write_h5ad(tmp_path / "r.h5ad")
        study_of["rna"] = tmp_path / "r.h5ad"
    if kind == "antibodies":
        var = pd.DataFrame(
            {"feature_types": ["Gene Expression"] * 6 + ["Antibody Capture"] * 3}, index=[*GENES, *names]
        )
        study_of = {"rna": ad.AnnData(sparse.hstack([r.X, counts], format="csr"), obs=r.obs, var=var)}
    if kind == "given":
        study_of = {
            "rna": r,
            "protein": ad.AnnData(counts, obs=pd.DataFrame(index=CELLS), var=pd.DataFrame(index=names)),
        }
    study = read_study(**study_of)
    assert study.modalities == ("rna", "protein")
    assert list(study.measured["protein"].var.index) == names
    assert np.array_equal(study.measured["protein"].matrix.toarray(), counts)


def test_an_unnamed_or_absent_table_of_proteins_says_what_to_do():
    r = rna()
    r.obsm["adt"] = np.ones((len(CELLS), 2))
    with pytest.raises(InputError, match=r"obsm\['adt'\] has 2 columns and no names.*uns\['adt_names'\]"):
        read_study(rna=r, protein="obsm:adt")
    with pytest.raises(InputError, match=r"obsm\['prot'\] is not there; obsm has \['adt'\]"):
        read_study(rna=r, protein="obsm:prot")


# ---- pairing by name -------------------------------------------------------------------------------------------------


def test_cells_of_one_name_are_one_cell_and_those_with_everything_come_first():
    r, a = rna(CELLS[:20]), atac(CELLS[10:][::-1])
    study = read_study(rna=r, atac=a, check_pairing=False)
    assert list(study.paired) == list(range(10))
    assert list(study.obs.index) == CELLS[10:20] + CELLS[:10] + CELLS[20:][::-1]
    for m, adata in (("rna", r), ("atac", a)):
        for i, name in enumerate(study.obs.index):
            row = study.rows[m][i]
            assert (row >= 0) == (name in adata.obs_names)
            if row >= 0:
                assert np.array_equal(study.measured[m].matrix[row].toarray(), adata[name].X.toarray())
    assert study.obs["cell_type"].isna().sum() == 12
    assert repr(study) == "Study(32 cells, 10 with everything; rna 20 x 6, atac 22 x 4)"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 31), unique=True, min_size=1))
def test_a_selection_is_the_same_cells(cells: list[int]):
    study = read_study(rna=rna(CELLS[:20]), atac=atac(CELLS[10:]))
    part = study.select(np.array(cells))
    assert list(part.obs.index) == [study.obs.index[i] for i in cells]
    for m in ("rna", "atac"):
        assert np.array_equal(part.has(m), study.has(m)[cells])
        there = np.flatnonzero(part.has(m))
        expected = study.of(m, np.array(cells)[there])
        assert np.array_equal(part.of(m, there).matrix.toarray(), expected.matrix.toarray())
        assert list(part.of(m, there).obs.index) == [part.obs.index[i] for i in there]


def test_asking_for_what_a_cell_lacks_raises():
    study = read_study(rna=rna(CELLS[:20]), atac=atac(CELLS[10:]))
    with pytest.raises(InputError, match=r"12 of 32 cells have no rna.*study.has\('rna'\)"):
        study.of("rna", np.arange(32))
    with pytest.raises(InputError, match="protein was not measured; there is rna, atac"):
        study.of("protein", np.arange(2))


def test_columns_of_obs_fill_up_and_disagreements_are_told_apart():
    r, a = rna(CELLS[:20]), atac(CELLS[10:])
    a.obs["cell_type"] = ["t0", "t1", "t2"] * 7 + ["t0"]
    r.obs["batch"], a.obs["batch"], a.obs["depth"] = "b1", "b2", np.arange(22)
    r.obs["state"] = pd.Categorical(["nan", *["s"] * 19])
    study = read_study(rna=r, atac=a)
    assert study.obs.loc[CELLS[0], "batch"] == "b1"
    assert study.obs.loc[CELLS[31], "atac:batch"] == "b2"
    assert study.obs.loc[CELLS[0], "state"] is None
    assert study.obs.loc[CELLS[15], "depth"] == 5
    same = read_study(rna=rna(), atac=ad.AnnData(atac().X, obs=rna().obs, var=atac().var))
    assert list(same.obs.columns) == ["cell_type"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda n: n.removesuffix("-1"), r"rna without the ending '-1' and the like, 32 of 32 rna cells would match"),
        (lambda n: f"{n}_sample2", r"atac without what stands after the last '_', 32 of 32"),
        (lambda n: f"S1#{n}", r"atac without what stands before the last '#', 32 of 32"),
        (
            lambda n: f"x{CELLS.index(n)}",
            r"cells are paired by name\. If they are different cells, give them as .*\(rna_only, atac_only\)",
        ),
    ],
)
def test_no_shared_cell_shows_names_and_what_would_match(change, says: str):
    with pytest.raises(InputError, match=says) as error:
        read_study(rna=rna(), atac=atac([change(name) for name in CELLS]))
    for name in (*CELLS[:2], *map(change, CELLS[:2])):
        assert repr(name) in str(error.value)


def test_more_cells_of_one_modality_keep_common_genes_and_the_paired_files_peaks():
    other = [f"s2_{name}" for name in CELLS[:5]]
    r2 = rna(other, seed=7)[:, [5, 3, 2, 1]].copy()
    r2.var_names = ["LYZ", "XIST_old", "CD3E", "GATA1"]  # the id finds XIST
    a2 = atac([f"s3_{name}" for name in CELLS[:7]], seed=8)
    a2.var_names = ["chr1:550-560", "chr2-50-90", "chr10_699_900", "chr1:5-101"]
    with pytest.warns(
        JoiningWarning, match="rna: 4 genes are in all 2 files and are kept; left out are 2 of 6 in AnnD"
    ):
        study = read_study(rna=rna(), atac=atac(), rna_only=[r2], atac_only=[a2])
    assert study.n_cells == 44
    assert len(study.paired) == 32
    rows = study.of("rna", np.flatnonzero(study.obs.index.isin(other)))
    assert list(rows.var.index) == ["GATA1", "CD3E", "XIST", "LYZ"]
    assert np.array_equal(rows.matrix.toarray(), r2.X.toarray()[:, [3, 2, 1, 0]])
    peaks = study.of("atac", np.flatnonzero(study.obs.index.str.startswith("s3_"))).matrix.toarray()
    x = a2.X.toarray() > 0
    assert np.array_equal(peaks, np.column_stack([x[:, 0] | x[:, 3], x[:, 1], x[:, 2], np.zeros(7)]))


def named(adata: ad.AnnData, sample: str) -> ad.AnnData:
    adata.obs_names = [f"{sample}_{name}" for name in adata.obs_names]
    return adata


def test_files_of_several_samples_are_their_cells_one_below_the_other(tmp_path: Path):
    files: dict[str, list[ad.AnnData]] = {"rna": [], "atac": []}
    for i, sample in enumerate(("a", "b")):
        r, a = named(rna(seed=i), sample), named(atac(seed=5 + i), sample)
        r.obs["sample"] = sample
        files["rna"].append(r)
        files["atac"].append(a[:, [2, 0, 1, 3]].copy() if i else a)  # the same peaks in another order: counts are kept
    study = read_study(rna=files["rna"], atac=files["atac"], check_pairing=False)
    assert (study.n_cells, len(study.paired)) == (64, 64)
    found = frames(study)
    for m, parts in files.items():
        whole = pd.concat([part.to_df() for part in parts])
        assert found[m].equals(whole[sorted(whole)])
    assert study.obs["sample"].tolist() == ["a"] * 32 + ["b"] * 32
    # Joint files, and paths.
    paths = []
    for sample in ("a", "b"):
        named(joint(), sample).write_h5ad(tmp_path / f"{sample}.h5ad")
        paths.append(tmp_path / f"{sample}.h5ad")
    twice = read_study(rna=paths, check_pairing=False)
    assert len(twice.paired) == 64
    once = frames(read_study(rna=rna(), atac=atac()))
    for m, frame in frames(twice).items():
        assert np.array_equal(frame.to_numpy(), np.vstack([once[m][frame.columns]] * 2))


def test_peaks_of_several_files_are_merged_in_any_order_of_files():
    one, other = named(atac(), "a"), named(atac(seed=9), "b")
    other.var_names = ["chr1:500-700", "chr2:60-70", "chrX:1-20", "chr9:5-9"]
    more = named(atac(seed=4), "c")
    more.var_names = ["chr1:650-690", "chr2:60-61", "chr9:5-9", "chr20:1-9"]
    union = ["chr1:100-700", "chr2:50-90", "chr9:5-9", "chr10:5-700", "chrX:1-20"]
    says = r"2 files with different peaks are merged into 5.* closed in .*: 1 for AnnData in memory \(4 peaks\), 1 for"
    with pytest.warns(JoiningWarning, match=says):
        study = read_study(atac=[one, other], atac_only=[more])
    x, y, z = ((part.X.toarray() > 0).astype(int) for part in (one, other, more))
    none = np.zeros(32, int)
    expected = np.vstack(
        [
            np.column_stack([x[:, 0], x[:, 1], none, x[:, 2], x[:, 3]]),
            np.column_stack([y[:, 0], y[:, 1], y[:, 3], none, y[:, 2]]),
            np.column_stack([z[:, 0], z[:, 1], z[:, 2], none, none]),  # re-pooled: no peak of its own
        ]
    )
    assert list(study.measured["atac"].var.index) == union
    assert np.array_equal(study.measured["atac"].matrix.toarray(), expected)
    with pytest.warns(JoiningWarning):
        turned = read_study(atac=[other, one], atac_only=[more])
    assert frames(turned)["atac"].loc[study.obs.index].equals(frames(study)["atac"])
    with pytest.warns(JoiningWarning):  # nothing is paired: all of them
        assert read_study(atac_only=[one, more]).measured["atac"].n_features == 7
    far = named(atac(), "d")
    far.var_names = [f"chr3:{i}00-{i}50" for i in range(1, 5)]
    with pytest.raises(InputError, match=r"0 of AnnData in memory's 4 peaks overlap one of the 4 given"):
        read_study(atac=[one, far])


def test_samples_that_share_names_or_match_nothing_are_refused_with_a_way_out():
    with pytest.raises(InputError, match=r"32 of its 32 cells have names that another rna file has.* all modalities"):
        read_study(rna=[rna(), rna(seed=3)], atac=[atac(), atac(seed=4)])
    pairs = {"rna": [named(rna(), "a"), named(rna(), "b")], "atac": [named(atac(), "a"), named(atac(), "bb")]}
    with pytest.raises(
        InputError, match=r"no cell is in both rna .*'b_ACGT.*'bb_ACGT.* 32 of 32 rna cells would match"
    ):
        read_study(**pairs)
    few = rna()[:, :3].copy()
    few.var_names, few.var["gene_ids"] = ["x", "y", "TP53"], ["", "", IDS[0]]
    with pytest.warns(JoiningWarning, match="1 genes are in all 2 files"):
        read_study(rna=[named(rna(), "a"), named(few, "b")])
    few.var_names, few.var["gene_ids"] = ["x", "y", "z"], ""
    with pytest.raises(InputError, match=r"rna: 0 genes are in all 2 files, at least 20% .*Ensembl id"):
        read_study(rna=[named(rna(), "a"), named(few, "b")])


def test_proteins_of_several_samples_are_those_that_all_have():
    given = []
    for sample, names in (("a", ["CD3", "CD4", "CD8"]), ("b", ["CD8", "CD19", "CD3"])):
        r = named(rna(), sample)
        r.obsm["adt"] = pd.DataFrame(np.arange(96).reshape(32, 3), columns=names, index=r.obs_names)
        given.append(r)
    with pytest.warns(JoiningWarning, match=r"protein: 2 proteins .* left out are 1 of 3 in .*, 1 of 3 in"):
        study = read_study(rna=given, protein="obsm:adt")
    assert len(study.paired) == 64
    x = np.arange(96).reshape(32, 3)
    assert list(study.measured["protein"].var.index) == ["CD3", "CD8"]
    assert np.array_equal(study.measured["protein"].matrix.toarray(), np.vstack([x[:, [0, 2]], x[:, [2, 0]]]))


def test_a_panel_named_by_gene_points_at_the_source():
    part = read_study(rna=rna()).measured["rna"]
    wanted = pd.DataFrame({"ensembl_id": "", "symbol": ""}, index=[f"G{i}" for i in range(600)])
    with pytest.raises(InputError, match=r"0 of 600 genes of the model are among its 6.* source protein \(--source"):
        align_genes(part, wanted)


def test_unpaired_studies_and_single_modalities_are_read():
    study = read_study(rna_only=[rna(CELLS[:9])], atac_only=[atac(CELLS[9:])])
    assert len(study.paired) == 0
    assert study.has("rna").sum() == 9
    assert len(read_study(atac=atac()).paired) == 32
    with pytest.raises(InputError, match="32 of its 32 cells have names that another rna file has"):
        read_study(rna=rna(), rna_only=[rna()])
    assert read_study(rna_only=rna(CELLS[:9])).n_cells == 9
    with pytest.raises(InputError, match="nothing to read"):
        read_study()


# ---- names -----------------------------------------------------------------------------------------------------------


def test_prefixes_and_blanks_are_cleaned_from_names():
    r = rna()
    r.var_names = [f"hg19_{name}" for name in GENES]
    r.obs_names = [f" {name}" for name in CELLS]
    del r.var["gene_ids"]
    study = read_study(rna=r, atac=atac())
    assert list(study.measured["rna"].var.index) == GENES
    assert len(study.paired) == 32


def test_shared_symbols_give_way_to_ids_and_else_are_refused():
    r = rna()
    r.var_names = ["TP53", "GATA1", "TP53", "XIST", "MS4A1", "LYZ"]
    assert list(read_study(rna=r).measured["rna"].var.index) == [IDS[0], "GATA1", IDS[2], *GENES[3:]]
    del r.var["gene_ids"]
    with pytest.raises(InputError, match=r"1 gene names occur more than once \('TP53'\).*var_names_make_unique"):
        read_study(rna=r)


@pytest.mark.parametrize(("where", "says"), [("rna", "cell names"), ("atac", "cell names"), ("peaks", "peak names")])
def test_repeated_names_are_refused_with_a_way_out(where: str, says: str):
    r, a = rna(), atac()
    if where == "peaks":
        a.var_names = ["chr1:100-600", "chr1-100-600", "chr2:1-2", "chr2:3-4"]
    else:
        (r if where == "rna" else a).obs_names = ["A", " A", *CELLS[2:]]
    with pytest.raises(InputError, match=f"1 {says} occur more than once"):
        read_study(rna=r, atac=a)


def test_genes_get_places_from_a_table_by_id_else_symbol(tmp_path: Path):
    r = rna()
    r.var = pd.DataFrame({"gene_ids": [IDS[0], *[""] * 5]}, index=GENES)
    table = pd.DataFrame(
        {
            "ensembl_id": [IDS[0], "ENSG00000000077", "ENSG00000000088", "ENSG00000000099"],
            "symbol": ["OTHER", "CD3E", "XIST", "XIST"],
            "chrom": ["17", "chr11", "chrX", "chr3_alt"],
            "tss": [7, 11, 23, 3],
        }
    )
    table.to_csv(tmp_path / "t.tsv.gz", sep="\t", index=False)
    gtf = tmp_path / "g.gtf"
    gtf.write_text(
        "".join(
            f'chr{c}\tx\tgene\t{s}\t{e}\t.\t{d}\t.\tgene_id "{i}"; gene_type "protein_coding"; gene_name "{n}";\n'
            for c, s, e, d, i, n in (
                ("17", 7, 99, "+", IDS[0], "OTHER"),
                ("11", 2, 11, "-", "ENSG00000000077", "CD3E"),
                ("X", 23, 40, "+", "ENSG00000000088", "XIST"),
            )
        )
    )
    for genes in (table, tmp_path / "t.tsv.gz", gtf):
        var = read_study(rna=r, genes=genes).measured["rna"].var
        assert list(var["chrom"]) == ["chr17", "", "chr11", "chrX", "", ""]
        assert list(var["tss"]) == [7, -1, 11, 23, -1, -1]
    with pytest.raises(InputError, match="need the columns ensembl_id or symbol"):
        read_study(rna=r, genes=table.drop(columns="chrom"))


def test_a_table_of_places_goes_before_the_files_own():
    table = pd.DataFrame({"symbol": ["TP53"], "chrom": ["chr9"], "tss": [5]})
    var = read_study(rna=rna(), genes=table).measured["rna"].var
    assert list(var["chrom"]) == ["chr9", *CHROMS[1:]]
    assert list(var["tss"]) == [5, 100, 200, 300, 400, 500]
    var = read_study(mudata=joint()).measured["rna"].var.loc[GENES]  # 10x's interval: its middle
    assert list(var["chrom"]) == CHROMS
    assert list(var["tss"]) == [10, 110, 210, 310, 410, 510]


# ---- values ----------------------------------------------------------------------------------------------------------


def broken(adata: ad.AnnData, value: float) -> ad.AnnData:
    x = adata.X.toarray()
    x[3, 1] = value
    adata.X = sparse.csr_matrix(x)
    return adata


@pytest.mark.parametrize(("value", "says"), [(0.5, "whole"), (-1, "negative"), (np.nan, "finite"), (np.inf, "finite")])
def test_what_is_no_raw_count_is_refused_by_cell_and_feature(value: float, says: str):
    with pytest.raises(InputError, match=rf"does not hold raw counts.*{says}.*'{CELLS[3]}'.*'GATA1'"):
        read_study(rna=broken(rna(), value))
    with pytest.raises(
        InputError, match=rf"atac needs counts or 0/1.*'{CELLS[3]}', peak 'chr2:50-90', value {value}.*1 of the first"
    ):
        read_study(atac=broken(atac(), value))


def test_another_layer_with_counts_is_pointed_at_and_read():
    a = atac()
    a.layers["counts"] = a.X.copy()
    a.X = a.X * 0.3
    with pytest.raises(InputError, match=r"layer 'counts' holds whole numbers"):
        read_study(atac=a)
    for layer in ("counts", {"atac": "counts"}):
        assert frames(read_study(atac=a, layer=layer))["atac"].equals(frames(read_study(atac=atac()))["atac"])
    assert read_study(rna=rna(), atac=a, layer={"atac": "counts"}).modalities == ("rna", "atac")


def test_empty_matrices_are_refused():
    for empty in (rna()[:0].copy(), rna()[:, :0].copy()):
        with pytest.raises(InputError, match="is empty"):
            read_study(rna=empty)
    zero = rna()
    zero.X = zero.X * 0
    with pytest.raises(InputError, match="32 cells x 6 genes, all zero"):
        read_study(rna=zero)


def test_swapped_transposed_or_missing_inputs_are_recognised(tmp_path: Path):
    with pytest.raises(InputError, match=r"rna of .*'chr1:100-600'.*Are rna and atac swapped"):
        read_study(rna=atac(), atac=rna())
    with pytest.raises(InputError, match=r"atac of .*'TP53', 'GATA1'.*no peaks.*swapped"):
        read_study(atac=rna())
    with pytest.raises(InputError, match=r"cell barcodes.*Transpose"):
        read_study(rna=rna().T)
    with pytest.raises(InputError, match="there is no such file"):
        read_study(rna=tmp_path / "absent.h5ad")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(InputError, match=r"Accepted: an AnnData, \.h5ad"):
        read_study(rna=tmp_path / "x.txt")
    with pytest.raises(InputError, match="no feature is of this modality: feature_types has only"):
        read_study(atac=ad.AnnData(rna().X, var=pd.DataFrame({"feature_types": "Gene Expression"}, index=GENES)))
    with pytest.raises(InputError, match="neither MuData nor an object whose"):
        read_study(mudata=rna())


def test_inputs_are_left_as_they_were():
    r, a = rna(), atac()
    before = r.X.copy(), a.X.copy(), r.var.copy()
    study = read_study(rna=r, atac=a)
    for part in study.measured.values():
        part.matrix.data[:] = 7
    assert np.array_equal(r.X.toarray(), before[0].toarray())
    assert np.array_equal(a.X.toarray(), before[1].toarray())
    assert r.var.equals(before[2])


# ---- alignment -------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 6), st.integers(1, 8), st.integers(0, 9))
def test_taking_columns_is_dense_indexing(seed: int, n: int, wide: int, absent: int):
    rng = np.random.default_rng(seed)
    x = rng.poisson(0.7, (n, wide)).astype(np.float32)
    columns = np.concatenate([rng.permutation(wide)[: rng.integers(0, wide + 1)], np.full(absent, -1)])
    rng.shuffle(columns)
    matrix = sparse.csr_matrix(x)
    rows = rng.permutation(n)[: rng.integers(0, n + 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("translate.align._ENTRIES", 2)  # several steps
        taken, some = take_columns(matrix, columns), take_columns(matrix, columns, rows)
    assert np.array_equal(taken.toarray(), np.where(columns >= 0, x[:, columns], 0))
    assert np.array_equal(some.toarray(), taken.toarray()[rows])
    assert taken.has_canonical_format
    assert some.has_canonical_format
    taken.data[:] = -1
    assert np.array_equal(matrix.toarray(), x)


def test_genes_match_by_id_then_name_then_symbol_and_once():
    def table(rows: list[tuple[str, str, str]]) -> pd.DataFrame:
        return pd.DataFrame(
            {"ensembl_id": [r[1] for r in rows], "symbol": [r[2] for r in rows]}, index=[r[0] for r in rows]
        )

    wanted = table(
        [("A", "E1", "A"), ("B", "", "B"), ("E9", "E9", "C"), ("D", "", "D"), ("F", "", "S"), ("G", "", "S")]
    )
    var = table([("B", "E1", "B"), ("x", "", "B"), ("C", "", "C"), ("d1", "", "D"), ("d2", "", "D"), ("s", "", "S")])
    # A by id takes the column named B; B then by symbol, E9 by symbol; D and S belong to two.
    assert list(match_genes(wanted, var)) == [0, 1, 2, -1, -1, -1]


def test_regions_match_whatever_their_order_and_chromosomes():
    given_ = Regions.parse(["chr2:5-9", "chr1:5-9", "chrX:1-3", "chr1:5-10"])
    wanted = Regions.parse(["chr1:5-10", "chr3:5-9", "chr2:5-9", "chr1:4-9"])
    assert list(match_regions(wanted, given_)) == [3, -1, 0, -1]


# ---- are equal names equal cells? ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def multiome() -> tuple[ad.AnnData, ad.AnnData]:
    made = simulate_multiome(n_cells=400, n_genes=300, n_peaks=900, n_types=4, seed=2)
    return made.rna, made.atac


def test_true_pairs_pass_and_shuffled_ones_are_reported(multiome):
    r, a = multiome
    evidence = pairing_evidence(read_study(rna=r, atac=a))  # a warning would be an error
    assert evidence.supported
    assert evidence.structure > evidence.structure_shuffled
    shuffled = a[np.random.default_rng(0).permutation(a.n_obs)].copy()
    shuffled.obs_names = a.obs_names
    with pytest.warns(PairingWarning, match=r"400 cells of one name: correlation of depths .* different cells\?"):
        study = read_study(rna=r, atac=shuffled)
    assert not pairing_evidence(study).supported
    read_study(rna=r, atac=shuffled, check_pairing=False)


def test_permuted_files_are_the_same_pairs(multiome):
    r, a = multiome
    shuffled = a[np.random.default_rng(0).permutation(a.n_obs)].copy()  # names move along
    assert pairing_evidence(read_study(rna=r, atac=shuffled)) == pairing_evidence(read_study(rna=r, atac=a))


def test_too_few_pairs_give_no_verdict(multiome):
    r, a = multiome
    study = read_study(rna=r[:40].copy(), atac=a[:40].copy())
    with pytest.raises(InputError, match="40 cells have counts of RNA and of ATAC; at least 50"):
        pairing_evidence(study)


# ---- real files ------------------------------------------------------------------------------------------------------


REAL = {
    "bmmc_setA": ("bmmc_setA_rna", "bmmc_setA_atac", 500, 1134, 600, 0.9),
    "bmmc_setB": ("bmmc_setB_rna", "bmmc_setB_atac", 500, 600, 600, 0.9),
    "scicar": ("scicar_a549_rna", "scicar_a549_atac_binary", 2641, 1185, 52761, 0.8),
    "snare": ("snare_h1_rna", "snare_h1_atac", 385, 18666, 36954, 0.65),
}


@pytest.fixture(scope="module")
def coding(realdata: Path) -> pd.DataFrame:
    table = pd.read_csv(realdata / "annotation" / "gene_tss_hg38.tsv.gz", sep="\t", dtype=str)
    return table[table["biotype"] == "protein_coding"]


@pytest.mark.realdata
@pytest.mark.parametrize("name", REAL)
def test_real_multiomes_are_read_paired_and_placed(name: str, realdata: Path, coding: pd.DataFrame):
    rna_file, atac_file, cells, genes, peaks, placed = REAL[name]
    folder = realdata / "multiome"
    study = read_study(  # true pairs: no warning
        rna=folder / f"{rna_file}.h5ad",
        atac=folder / f"{atac_file}.h5ad",
        genes=coding,
    )
    assert (len(study.paired), study.measured["rna"].n_features, study.measured["atac"].n_features) == (
        cells,
        genes,
        peaks,
    )
    assert (study.measured["rna"].var["chrom"] != "").mean() > placed
    shuffled = ad.read_h5ad(folder / f"{atac_file}.h5ad")
    names = shuffled.obs_names
    shuffled = shuffled[np.random.default_rng(1).permutation(cells)].copy()
    shuffled.obs_names = names
    with pytest.warns(PairingWarning, match="different cells"):
        read_study(rna=folder / f"{rna_file}.h5ad", atac=shuffled)


@pytest.mark.realdata
def test_real_cite_counts_are_read(realdata: Path):
    study = read_study(rna=realdata / "cite" / "pbmc_5k_protein_v3.h5ad", protein="obsm:protein_expression")
    assert (len(study.paired), study.measured["rna"].n_features) == (200, 16581)
    assert study.measured["protein"].n_features == 29
    assert "CD3_TotalSeqB" in study.measured["protein"].var.index

"""Peaks start from the genes around them: means worked out by hand, the size of Xavier's weights, and nothing else is moved."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from translate_toys import ATAC, CONFIGS, POLARBEAR, toy_anndata, toy_measured

from expresser.errors import InputError
from expresser.genes import GeneVocab
from expresser.regions import Regions
from translate.blocks import SparseLinear
from translate.covariates import BatchColumn, LabelColumn
from translate.fitting import build
from translate.gene_peaks import peak_gene_weights
from translate.genenames import GenePlaces
from translate.heads import START, OpenHead
from translate.peak_start import gene_places, peak_table, start_peaks
from translate.preprocess import AtacInput, RnaInput
from translate.sailer import SailerConfig
from translate.sailerx import SailerxConfig
from translate.study import DataWarning
from translate.system import System

D = 5  # dimensions of a gene's embedding
SIZES = (70, 30, 15, 5)  # peaks of the toys' chromosomes
SAILER = SailerConfig(atac=ATAC, hidden=(8, 4), latent=3)
KINDS = BatchColumn("kind", ("a", "b"))
SETTLED = {
    "polarbear": {"batch": KINDS},
    "scact": {"label": LabelColumn("kind", ("a", "b")), "batch": KINDS},
}
SYSTEMS: dict[str, tuple[str, Any]] = {
    **{name: (name, replace(config, **SETTLED.get(name, {}))) for name, config in CONFIGS.items()},
    "babel, independent": ("babel", replace(CONFIGS["babel"], shared=False)),
    "polarbear, uneven": ("polarbear", replace(POLARBEAR, atac_hidden=None, layers=2, **SETTLED["polarbear"])),
    "sailer": ("sailer", SAILER),
    "sailer, dense": ("sailer", replace(SAILER, network="dense", hidden=(16, 8))),
    "sailer, told by batch": ("sailer", replace(SAILER, batch=KINDS)),
    "sailerx": ("sailerx", SailerxConfig(atac=ATAC, hidden=(8, 4), latent=6, alignment=1e3)),
}
FOUND: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "babel": (("atac_encoder.first.weight",), ("atac_decoder.head.weight",)),
    "babel, independent": (
        tuple(f"atac_encoder_to_{to}.first.weight" for to in ("rna", "atac")),
        tuple(f"atac_decoder_from_{source}.head.weight" for source in ("rna", "atac")),
    ),
    "scmog": (("atac_encoder_to_rna.first.weight",), ("atac_decoder.head.weight",)),
    "polarbear": (("atac_encoder.first.weight",), ("atac_decoder.head.weight",)),
    "polarbear, uneven": (("atac_encoder.first.weight",), ("atac_decoder.head.weight",)),
    "scact": (("atac_encoder.hidden.first.weight",), ("atac_decoder.head.weight",)),
    "sailer": (("encoder.hidden.first.weight",), ("decoder.head.weight",)),
    "sailer, dense": (("encoder.hidden.first.weight",), ("decoder.head.weight",)),
    "sailer, told by batch": (("encoder.hidden.first.weight",), ("decoder.head.weight",)),
    "sailerx": (("encoder.hidden.first.weight",), ("decoder.head.weight",)),
}


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    """Toy cells, their chromosomes of very different sizes."""
    made = toy_anndata(60, sizes=SIZES)
    cells = np.arange(60)
    return {
        "rna": RnaInput.fit(toy_measured(made["rna"], "rna"), cells, CONFIGS["babel"].rna),
        "atac": AtacInput.fit(toy_measured(made["atac"], "atac"), cells, ATAC),
    }


@pytest.fixture(scope="module")
def given(inputs) -> tuple[Regions, torch.Tensor, np.ndarray]:
    """Peaks, a standardised row of each, and which are known: two thirds."""
    regions, rng = inputs["atac"].regions, np.random.default_rng(1)
    known = rng.random(len(regions)) < 2 / 3
    table = torch.from_numpy(rng.normal(size=(len(regions), D)).astype(np.float32))
    table[torch.from_numpy(~known)] = 0.0
    return regions, table, known


def network(name: str, inputs: dict[str, Any]) -> System:
    system, config = SYSTEMS[name]
    own = {"atac": inputs["atac"]} if system.startswith("sailer") else inputs
    return build(system, config, own, 0)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def started(name: str, inputs, given, *, outputs: bool = True, seed: int = 0) -> tuple[System, dict, dict, int]:
    """A system, its weights before and after, and how many layers started."""
    system = network(name, inputs)
    before = weights(system)
    layers = start_peaks(system, *given, outputs=outputs, seed=seed)
    return system, before, weights(system), layers


def parts(system: System, name: str) -> tuple[tuple[int, ...], int]:
    """Blocks that Xavier's weights of a layer are drawn for, and how many columns are to start."""
    layer = system.get_submodule(name.removesuffix(".weight"))
    if isinstance(layer, SparseLinear):
        return layer.bounds, layer.weight.shape[1]
    assert isinstance(layer, OpenHead)
    direct = getattr(system.get_submodule(name.removesuffix(".head.weight")), "wide", layer.weight.shape[1])
    return (layer.bounds if layer.per_block else (0, layer.bounds[-1])), direct


# ---- rows of peaks -----------------------------------------------------------------------------------------------------

GENES = pd.DataFrame(
    {"chrom": ["chr1", "chr1", "chr2", "chr2", "", "chr3"], "tss": [10_000, 20_000, 5_000, -1, 7, 500]}
)
TABLE = np.array([[1, 0], [0, 3], [-2, 5], [50, 50], [70, 70], [4, -4]], np.float32)
PEAKS = Regions.of(
    ["chr1", "chr1", "chr1", "chr2", "chr2", "chr3", "chr4"],
    np.array([9_900, 14_000, 500_000, 4_000, 60_000, 100_501, 0]),
    np.array([10_100, 14_501, 500_500, 4_501, 60_500, 101_000, 500]),
)


def test_a_peak_is_the_weighted_mean_of_the_genes_around_it():
    """chr1:9900 covers gene 0 (weight 2) and ends 9,901 bases before gene 1; chr1:14000 lies 4,000 and 5,500 from them; one
    peak has no gene within 100,000 bases, one no gene on its chromosome, and one is a base too far."""
    a, b = 2.0, math.exp(-9_901 / 5_000)
    c, d = math.exp(-4_000 / 5_000), math.exp(-5_500 / 5_000)
    means = np.array([[a, 3 * b], [c, 3 * d], [-2, 5], [-2, 5]]) / np.array([[a + b], [c + d], [1], [1]])
    centred = means - means.mean(axis=0)
    expected = centred / np.sqrt((centred**2).mean())
    rows, known = peak_table(PEAKS, GENES, TABLE)
    assert known.tolist() == [True, True, False, True, True, False, False]
    np.testing.assert_allclose(rows[known], expected, rtol=1e-5)
    assert not rows[~known].any()


def test_the_last_base_within_reach_is_near():
    one_nearer = Regions.of(["chr3", "chr1"], np.array([100_500, 9_900]), np.array([101_000, 10_100]))
    assert peak_table(one_nearer, GENES, TABLE)[1].all()


def test_rows_are_centred_and_of_unit_mean_square_over_the_peaks_that_have_one(inputs):
    regions, rng = inputs["atac"].regions, np.random.default_rng(0)
    genes = inputs["rna"].var[["chrom", "tss"]]
    genes = genes.assign(tss=np.where(genes["chrom"] == "chr10", -1, genes["tss"]))
    rows, known = peak_table(regions, genes, rng.normal(3, 2, (len(genes), D)).astype(np.float32))
    assert 0 < known.sum() < len(regions)
    assert (known == (np.array(regions.chroms)[regions.chrom] != "chr10")).all()
    np.testing.assert_allclose(rows[known].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose((rows[known] ** 2).mean(), 1, rtol=1e-5)


def test_scale_and_offset_of_the_gene_table_do_not_matter():
    ours, known = peak_table(PEAKS, GENES, TABLE)
    others, _ = peak_table(PEAKS, GENES, TABLE * 8 + np.float32([1, -2]))
    np.testing.assert_allclose(others[known], ours[known], atol=1e-5)


def test_order_of_genes_does_not_matter_and_that_of_peaks_is_theirs():
    order, turn = np.array([5, 2, 0, 4, 1, 3]), np.array([6, 3, 0, 5, 1, 4, 2])
    ours, known = peak_table(PEAKS, GENES, TABLE)
    rows, also = peak_table(PEAKS.take(turn), GENES.iloc[order], TABLE[order])
    np.testing.assert_array_equal(also, known[turn])
    np.testing.assert_allclose(rows, ours[turn], rtol=1e-5)


def test_no_gene_near_a_peak_is_refused_with_numbers_and_ways_out():
    nowhere = GENES.assign(tss=[-1, -1, 900_000, -1, -1, -1])
    with pytest.raises(
        InputError, match=r"none of 7 peaks .* \(1 of its 6 genes have a place\).*--genes.*--peak-start"
    ):
        peak_table(PEAKS, nowhere, TABLE)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_peaks_that_the_table_cannot_tell_apart_are_refused(value):
    """Else what rounding leaves of their differences would be scaled up."""
    with pytest.raises(InputError, match="genes near 4 of 7 peaks have one and the same embedding"):
        peak_table(PEAKS, GENES, np.full((6, 3), value, np.float32))


# ---- places of genes ---------------------------------------------------------------------------------------------------

VOCAB = pd.DataFrame(
    {
        "gene_id": ["ENSG00000000001", "ENSG00000000002", "ENSG00000000003", "ENSG00000000004", "LONE"],
        "symbol": ["A", "B", "C", "D", "LONE"],
        "chrom": ["chr1", "2", "chrX", "chr3", "chr4"],
        "start": [100, 50_000, 7, None, 40],
        "end": [900, 60_000, 70, None, 60],
        "strand": ["+", "-", "", "+", "-"],
    }
)


def var_of(**columns: list) -> pd.DataFrame:
    """As `translate.genenames.gene_table` gives it; index: the symbols."""
    return pd.DataFrame({"ensembl_id": columns.pop("ids"), **columns}, index=pd.Index(columns["symbol"], dtype=object))


def test_transcription_starts_at_the_end_that_the_strand_says():
    """No strand or no interval: no place. Chromosomes are named as UCSC names them."""
    places = gene_places(GeneVocab(VOCAB).table, None)
    assert places["chrom"].tolist() == ["chr1", "chr2", "", "", "chr4"]
    assert places["tss"].tolist() == [100, 60_000, -1, -1, 60]
    assert places.index.tolist() == VOCAB["gene_id"].tolist()


def test_places_are_those_of_the_same_vocabulary_given_as_a_file(tmp_path):
    vocab = GeneVocab(VOCAB)
    vocab.save(tmp_path / "genes.tsv")
    chrom, tss = GenePlaces.read(tmp_path / "genes.tsv").find(vocab.ids, vocab.symbols)
    ours = gene_places(vocab.table, None)
    known = tss >= 0
    np.testing.assert_array_equal(ours["tss"], tss)
    np.testing.assert_array_equal(ours["chrom"].to_numpy()[known], chrom[known])


def test_places_of_the_study_win_where_it_has_any():
    """By id, or by symbol where a gene has no id; what the study does not know comes from the vocabulary."""
    study = var_of(
        ids=["ENSG00000000003", "ENSG00000000001", "", "ENSG00000000002", "ENSG00000000009"],
        symbol=["C", "A", "LONE", "B", "E"],
        chrom=["chrX", "chr1", "chr4", "", "chr9"],
        tss=[8, 105, 65, -1, 9],
    )
    places = gene_places(GeneVocab(VOCAB).table, study)
    assert places["chrom"].tolist() == ["chr1", "chr2", "chrX", "", "chr4"]
    assert places["tss"].tolist() == [105, 60_000, 8, -1, 65]


def test_a_study_without_places_leaves_those_of_the_vocabulary():
    study = var_of(ids=["ENSG00000000001"], symbol=["A"], chrom=["chr1"], tss=[-1])
    ours = gene_places(GeneVocab(VOCAB).table, study)
    pd.testing.assert_frame_equal(ours, gene_places(GeneVocab(VOCAB).table, None))


@pytest.mark.parametrize("moved", [{"tss": [20_100, 85_000]}, {"chrom": ["chr2", "chr1"]}])
def test_a_vocabulary_of_another_build_is_left_out(moved):
    """Both genes that study and vocabulary have moved: by more than 10,000 bases, or to another chromosome."""
    ids = ["ENSG00000000001", "ENSG00000000002"]
    columns = {"ids": ids, "symbol": ["A", "B"], "chrom": ["chr1", "chr2"], "tss": [100, 60_000]} | moved
    with pytest.warns(DataWarning, match="2 of 2 genes start elsewhere"):
        places = gene_places(GeneVocab(VOCAB).table, var_of(**columns))
    assert places["tss"].tolist() == [*columns["tss"], -1, -1, -1]
    assert places["chrom"].tolist() == [*columns["chrom"], "", "", ""]


def test_a_vocabulary_of_which_half_the_genes_moved_is_kept():
    ids = ["ENSG00000000001", "ENSG00000000002"]
    study = var_of(ids=ids, symbol=["A", "B"], chrom=["chr1", "chr2"], tss=[100, 70_001])
    assert gene_places(GeneVocab(VOCAB).table, study)["tss"].tolist() == [100, 70_001, -1, -1, 60]


# ---- layers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize("name", SYSTEMS)
def test_layers_that_read_peaks_start_and_with_outputs_those_that_predict_them(name, outputs, inputs, given):
    """Nothing else moves: RNA's layers, biases, scMOG's critics, which read peaks too."""
    _, before, after, layers = started(name, inputs, given, outputs=outputs)
    readers, heads = FOUND[name]
    wanted = {*readers, *(heads if outputs else ())}
    assert {key for key in before if not torch.equal(before[key], after[key])} == wanted
    assert layers == len(wanted)
    if name == "scmog":
        assert before["atac_critic.first.weight"].shape[0] == len(given[0])


@pytest.mark.parametrize("name", SYSTEMS)
def test_known_peaks_are_one_line_of_the_table_in_each_block_at_xaviers_size(name, inputs, given):
    """An RMS of √(2 / (inputs + outputs)) over the block's known peaks and the units that it has; padding stays 0, unknown peaks
    and what confounders give directly keep what they had, bit for bit."""
    system, before, after, _ = started(name, inputs, given)
    _, table, known = given
    mask = torch.from_numpy(known)
    for layer in (key for found in FOUND[name] for key in found):
        bounds, columns = parts(system, layer)
        old, new = before[layer], after[layer]
        assert torch.equal(new[~mask], old[~mask])
        assert torch.equal(new[:, columns:], old[:, columns:])
        for a, b in pairwise(bounds):
            own, units = mask[a:b], (old[a:b] != 0).any(dim=0)
            rows = new[a:b, :columns][own]
            assert (rows[:, ~units[:columns]] == 0).all()
            rows = rows[:, units[:columns]]
            xavier = math.sqrt(2 / (b - a + int(units.sum())))
            assert float(rows.square().mean().sqrt()) == pytest.approx(xavier, rel=1e-5)
            line = torch.linalg.lstsq(table[a:b][own].double(), rows.double()).solution
            torch.testing.assert_close(table[a:b][own].double() @ line, rows.double(), atol=1e-6, rtol=1e-5)


def test_the_checks_above_see_padding_and_confounders(inputs, given):
    """Chromosomes of one, two and four units, outputs with depth and batches beside the hidden units."""
    padded = weights(network("polarbear, uneven", inputs))["atac_encoder.first.weight"]
    bounds = (0, *np.cumsum(SIZES).tolist())
    assert len({int((padded[a:b] != 0).any(dim=0).sum()) for a, b in pairwise(bounds)}) > 2
    for name, beside in (("sailer", 1), ("sailer, told by batch", 3), ("scact", 3)):
        system = network(name, inputs)
        head = FOUND[name][1][0]
        assert system.state_dict()[head].shape[1] == parts(system, head)[1] + beside


def test_fresh_weights_have_the_size_that_is_aimed_at(inputs):
    """Xavier's own, of a layer with enough weights to tell."""
    layer = SparseLinear((0, 3000), 32)
    assert float(layer.weight.detach().square().mean().sqrt()) == pytest.approx(math.sqrt(2 / 3032), rel=0.01)


@pytest.mark.parametrize("name", ["babel", "scmog"])
def test_a_seed_decides_and_readers_start_alike_with_and_without_outputs(name, inputs, given):
    (readers, heads), one = FOUND[name], started(name, inputs, given)[2]
    again = started(name, inputs, given)[2]
    other = started(name, inputs, given, seed=1)[2]
    alone = started(name, inputs, given, outputs=False)[2]
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in (*readers, *heads))
    assert all(torch.equal(one[key], alone[key]) for key in readers)


def test_chromosomes_and_layers_have_projections_of_their_own(inputs, given):
    """Else unit k of every chromosome would begin as the same question, and both encoders as one."""
    system, _, after, _ = started("babel, independent", inputs, given)
    _, table, known = given
    lines = []
    for key in FOUND["babel, independent"][0]:
        for a, b in pairwise(parts(system, key)[0][:3]):
            own = torch.from_numpy(known[a:b])
            lines.append(torch.linalg.lstsq(table[a:b][own], after[key][a:b][own]).solution.flatten())
    alike = torch.corrcoef(torch.stack(lines)) - torch.eye(4)
    assert float(alike.abs().max()) < 0.5


def test_layers_of_rna_are_left_where_there_are_as_many_genes_as_peaks():
    made = toy_anndata(60, n_genes=40, n_peaks=40)
    rna = RnaInput.fit(toy_measured(made["rna"], "rna"), np.arange(60), CONFIGS["babel"].rna)
    inputs = {"rna": rna, "atac": AtacInput.fit(toy_measured(made["atac"], "atac"), np.arange(60), ATAC)}
    regions = inputs["atac"].regions
    assert len(rna.var) == len(regions) == 40
    table = torch.from_numpy(np.random.default_rng(0).normal(size=(40, D)).astype(np.float32))
    _, before, after, _ = started("scmog", inputs, (regions, table, np.ones(40, bool)))
    assert {key for key in before if not torch.equal(before[key], after[key])} == {
        *FOUND["scmog"][0],
        *FOUND["scmog"][1],
    }


def test_peaks_near_one_gene_only_start_alike(inputs):
    """However far from it they lie; and peaks of other genes otherwise."""
    regions = inputs["atac"].regions
    genes = pd.DataFrame({"chrom": ["chr1", "chr1", "chr2", "chr2"], "tss": [0, 150_000, 90_000, 180_000]})
    near = (peak_gene_weights(regions, genes) > 0).toarray()
    rows, known = peak_table(regions, genes, np.random.default_rng(2).normal(size=(4, D)).astype(np.float32))
    system = network("scmog", inputs)
    start_peaks(system, regions, torch.from_numpy(rows), known, outputs=True, seed=0)
    for key in (key for found in FOUND["scmog"] for key in found):
        weight = system.state_dict()[key]
        firsts = []
        for gene in (0, 2):
            only = np.flatnonzero(near[:, gene] & (near.sum(axis=1) == 1))
            assert len(only) > 1
            torch.testing.assert_close(weight[only], weight[only[:1]].expand(len(only), -1), atol=1e-6, rtol=1e-5)
            firsts.append(weight[only[0]])
        assert not torch.allclose(*firsts)


def test_cells_whose_open_peaks_have_the_same_sum_of_rows_start_as_one(inputs, given):
    """Whichever peaks they are."""
    regions, table, _ = given
    known = np.ones(len(regions), bool)
    table = table.clone()
    table[1] = table[3] + table[4] - table[2]  # cells {1, 2} and {3, 4} have one sum
    system = network("sailer, dense", inputs)
    start_peaks(system, regions, table, known, outputs=False, seed=0)
    weight = system.state_dict()["encoder.hidden.first.weight"]
    torch.testing.assert_close(weight[1] + weight[2], weight[3] + weight[4])


def test_a_start_at_base_rates_keeps_the_direction_of_peaks(inputs, given):
    """`translate.heads` multiplies by `START` what stands there."""
    system, _, after, _ = started("babel", inputs, given)
    head: Any = system.get_submodule("atac_decoder.head")
    head.start_at(torch.full((len(given[0]),), 0.2))
    torch.testing.assert_close(head.weight.detach(), after["atac_decoder.head.weight"] * START)


def test_a_block_without_known_peaks_stays_as_it_is(inputs, given):
    regions, table, known = given
    known = known & (regions.chrom != 1)
    system = network("babel", inputs)
    before = weights(system)
    assert start_peaks(system, regions, table, known, outputs=True, seed=0) == 2
    for key in ("atac_encoder.first.weight", "atac_decoder.head.weight"):
        new, old = system.state_dict()[key], before[key]
        assert torch.equal(new[regions.chrom == 1], old[regions.chrom == 1])
        assert not torch.equal(new[regions.chrom == 0], old[regions.chrom == 0])


def test_peaks_of_other_chromosomes_do_not_move_a_chromosomes_start(inputs, given):
    """By chromosome, each begins from its own rows alone."""
    regions, table, known = given
    one, two = (network("babel", inputs) for _ in range(2))
    changed = table.clone()
    changed[torch.from_numpy(regions.chrom == 0)] *= -3
    start_peaks(one, regions, table, known, outputs=True, seed=0)
    start_peaks(two, regions, changed, known, outputs=True, seed=0)
    for key in (key for found in FOUND["babel"] for key in found):
        a, b = one.state_dict()[key], two.state_dict()[key]
        assert torch.equal(a[regions.chrom != 0], b[regions.chrom != 0])
        torch.testing.assert_close(b[known & (regions.chrom == 0)], -a[known & (regions.chrom == 0)])


def test_no_layer_of_these_peaks_is_none(inputs, given):
    """Layers of other peaks are left."""
    regions, table, known = given
    system = network("babel", inputs)
    before = weights(system)
    fewer = regions.take(np.arange(50))
    assert start_peaks(system, fewer, table[:50], known[:50], outputs=True, seed=0) == 0
    assert all(torch.equal(before[key], value) for key, value in system.state_dict().items())


def test_a_table_of_other_peaks_is_refused(inputs, given):
    regions, table, known = given
    with pytest.raises(ValueError, match="120 peaks, but a table of 119 and a mask of 119"):
        start_peaks(network("babel", inputs), regions, table[1:], known[1:], outputs=True, seed=0)

"""Laws of warm starts: what was learned is kept to the bit, whatever the order and number of genes; what is new can learn."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expresser import checkpoint
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from expresser.genes import GeneVocab
from expresser.model.cells import Cells, all_folds, cell_key
from pretrain.data import split
from pretrain.evaluate import Held, evaluate, scores
from pretrain.loop import pretrain
from pretrain.objective import Objective
from pretrain.recipes import paper_naive
from pretrain.start import build_model
from pretrain.warm import Source, WarmStart, matched_rows, recalled


def extended(vocab: GeneVocab, n: int = 7) -> GeneVocab:
    """The genes shuffled among `n` new ones."""
    ids = [*vocab.ids, *(f"ENSG{50_000_000_000 + i}" for i in range(n))]
    return GeneVocab.from_names([ids[i] for i in np.random.default_rng(3).permutation(len(ids))])


def warm(recipe, run: Path, vocab: GeneVocab, factors: torch.Tensor | None = None):
    """A model of the recipe on these genes with the run's weights, as the loop builds it."""
    model = build_model(recipe, len(vocab))
    model.set_gene_means(torch.linspace(-9, -1, len(vocab)))
    source = Source.open(run, model.config, vocab)
    source.give(model, factors)
    return model.eval(), source.record


def cells_of(vocab: GeneVocab, genes: np.ndarray, lengths: list[int]) -> Cells:
    """Cells that show these genes (by id), tokens as in the vocabulary."""
    row = {gene: i for i, gene in enumerate(vocab.ids)}
    tokens = torch.tensor([row[gene] for gene in genes])
    n = torch.tensor(lengths)
    counts = 1 + torch.arange(len(tokens)) % 7
    return Cells.from_counts(
        tokens, counts, n, n * 5, cell_key(0, torch.zeros_like(n), torch.arange(len(lengths))), max_genes=40
    )


@pytest.fixture(scope="module")
def trained(tiny_run):
    return checkpoint.load(tiny_run)


def test_on_the_same_genes_validation_begins_where_the_source_ended(tiny_recipe, tiny_run, tiny_corpus):
    corpus = Corpus.open(tiny_corpus)
    model, record = warm(tiny_recipe, tiny_run, corpus.vocab)
    rows = split(corpus, tiny_recipe.data, tiny_recipe.seed).valid[:8]
    held = Held.of(corpus, rows, max_tokens=16384, max_genes=40, rank=0, world=1)
    objective = Objective.of(tiny_recipe.objective)
    found, _ = evaluate(model, corpus, held, objective, seed=0, device=torch.device("cpu"), config=model.config)
    assert scores(found) == json.loads((tiny_run / "metrics.json").read_text())["valid"]
    assert (record.genes_kept, record.genes_new, record.genes_dropped) == (80, 0, 0)


@pytest.mark.parametrize("with_factors", [False, True])
def test_among_new_genes_and_in_another_order_old_genes_are_predicted_to_the_same_bit(
    tiny_recipe, tiny_run, trained, with_factors
):
    vocab = extended(trained.vocab)
    factors = torch.randn(len(vocab), 16, generator=torch.Generator().manual_seed(0)) if with_factors else None
    model, record = warm(tiny_recipe, tiny_run, vocab, factors)
    assert (record.genes_kept, record.genes_new, record.genes_dropped) == (80, 7, 0)
    lengths = [30, 1, 25]
    genes = np.concatenate([np.random.default_rng(i).permutation(trained.vocab.ids)[:n] for i, n in enumerate(lengths)])
    before, after = cells_of(trained.vocab, genes, lengths), cells_of(vocab, genes, lengths)
    asked = all_folds(before, 4)  # for both: which gene is in which fold goes by tokens, and those are others now
    with torch.no_grad():
        a, b = trained.model(before, asked), model(after, asked)
    assert a.prediction.numel() == 55
    assert torch.equal(a.prediction, b.prediction)
    assert torch.equal(a.contextual, b.contextual)


def test_new_genes_take_part_and_learn(tiny_recipe, tiny_run, trained):
    vocab = extended(trained.vocab)
    model, _ = warm(tiny_recipe, tiny_run, vocab)
    new = torch.tensor([gene not in set(trained.vocab.ids) for gene in vocab.ids])
    cells = cells_of(vocab, vocab.ids, [29, 29, 29])
    model(cells, all_folds(cells, 4)).prediction.square().sum().backward()
    assert (model.gene_tokens.weight.grad[new].norm(dim=1) > 0).all()
    assert (model.head.gene_level.weight.grad[new] != 0).all()


def test_new_genes_keep_the_rows_they_were_built_with_and_the_corpuss_levels(tiny_recipe, tiny_run, trained):
    vocab = extended(trained.vocab)
    fresh = build_model(tiny_recipe, len(vocab)).gene_tokens.weight
    model, _ = warm(tiny_recipe, tiny_run, vocab)
    new = torch.tensor([gene not in set(trained.vocab.ids) for gene in vocab.ids])
    assert torch.equal(model.gene_tokens.weight[new], fresh[new])
    assert torch.equal(model.head.gene_level.weight[new, 0], torch.linspace(-9, -1, len(vocab))[new])


def test_factors_are_turned_to_the_axes_of_the_learned_rows(tiny_recipe, tiny_run, trained):
    """A gene with the factors of a known gene begins at that gene's row: here rows are a turn of the factors, which is recovered."""
    vocab = extended(trained.vocab, n=30)
    row = {gene: i for i, gene in enumerate(trained.vocab.ids)}
    learned, old = trained.model.gene_tokens.weight.detach(), [gene in row for gene in vocab.ids]
    like = [row[gene] if gene in row else i % 80 for i, gene in enumerate(vocab.ids)]  # whom a new gene is like
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1))).Q
    factors = 30 * ((learned - learned.mean(0)) @ turn)[like]
    fresh = build_model(tiny_recipe, len(vocab)).gene_tokens.weight
    model, _ = warm(tiny_recipe, tiny_run, vocab, factors)
    new = ~torch.tensor(old)
    moved = (model.gene_tokens.weight - fresh)[new]
    wanted = learned[like][new]
    assert (moved - wanted).norm() < 0.1 * (wanted - learned.mean(0)).norm()


@pytest.mark.parametrize(
    ("changed", "option"),
    [
        ({"d_model": 32}, "--model.d-model 16"),
        ({"n_layers": 2}, "--model.n-layers 1"),
        ({"n_heads": 4}, "--model.n-heads 2"),
        ({"d_ff": 32}, "--model.d-ff 64"),
        ({"n_bins": 11}, "--model.n-bins 10"),
        ({"norm_first": False}, "--model.norm-first"),
        ({"decoder_layers": 2, "decoder_residual": True}, "--model.decoder-layers 1 --model.no-decoder-residual"),
        ({"value_input": "bin_residual"}, "--model.value-input bin"),
        ({"head": "query"}, "--model.head truncated"),
        ({"cell_scale": "cell"}, "--model.cell-scale observed"),
        ({"target_sum": 1e5}, "--model.target-sum 10000.0"),
        ({"architecture": "without_decoder"}, "--model.architecture expresser"),
    ],
)
def test_another_model_is_refused_with_the_options_that_make_it_the_same(
    tiny_recipe, tiny_run, trained, changed, option
):
    recipe = dataclasses.replace(tiny_recipe, model=dataclasses.replace(tiny_recipe.model, **changed))
    with pytest.raises(InputError) as caught:
        Source.open(tiny_run, build_model(recipe, 80).config, trained.vocab)
    assert str(caught.value).endswith(f"say {option}.")
    assert all(f"{name} " in str(caught.value) for name in changed if name not in ("d_ff", "architecture"))


def test_how_much_of_a_cell_is_shown_and_dropout_may_change(tiny_recipe, tiny_run, trained):
    looser = dataclasses.replace(tiny_recipe.model, max_genes=77, dropout=0.2, d_ff=64)  # 64 is what 0 meant
    model, record = warm(dataclasses.replace(tiny_recipe, model=looser), tiny_run, trained.vocab)
    assert model.config.max_genes == 77
    assert record.genes_kept == 80


def test_the_naive_reference_goes_on_from_a_packed_model(tiny_recipe, tiny_run, trained):
    naive = dataclasses.replace(paper_naive(), model=tiny_recipe.model)
    model, _ = warm(naive, tiny_run, trained.vocab)
    theirs = trained.model.state_dict()
    assert model.state_dict().keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in model.state_dict().items())


def test_the_record_names_the_source_and_counts_what_is_lost(tiny_recipe, tiny_run, trained, tmp_path):
    vocab = GeneVocab.from_names([*trained.vocab.ids[10:], "ENSG50000000001"])
    model, record = warm(tiny_recipe, tiny_run, vocab)
    run = json.loads((tiny_run / "model" / "run.json").read_text())
    digest = subprocess.run(
        ["sha256sum", str(tiny_run / "model" / "model.safetensors")], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert record == WarmStart(
        source=str(tiny_run),
        weights_sha256=digest,
        corpus_id=run["corpus_id"],
        step=12,
        cells_seen=96,
        genes_kept=70,
        genes_new=1,
        genes_dropped=10,
        before=None,
    )
    # A model that goes on from this one remembers both, and a run that is resumed needs neither.
    made = {"warm_start": record.to_dict(), "corpus_id": "b" * 64, "genes_sha256": vocab.sha256, "step": 3}
    checkpoint.save(tmp_path / "second", model, vocab, made)
    _, after = warm(tiny_recipe, tmp_path / "second", vocab)
    assert after.before == record.to_dict()
    assert (after.corpus_id, after.step, after.cells_seen) == ("b" * 64, 3, None)
    (tmp_path / "run.json").write_text(json.dumps({"warm_start": after.to_dict()}))
    assert recalled(tmp_path) == after.to_dict()
    (tmp_path / "run.json").write_text("{}")
    assert recalled(tmp_path) is None
    assert recalled(tmp_path / "nowhere") is None


def test_a_source_without_any_gene_of_the_corpus_is_refused(tiny_recipe, tiny_run):
    strange = GeneVocab.from_names(["ENSG50000000001", "ENSG50000000002"])
    with pytest.raises(InputError, match=r"none of its 80 genes .* genes\.tsv as --genes"):
        Source.open(tiny_run, build_model(tiny_recipe, 2).config, strange)
    with pytest.raises(InputError, match="no such folder"):
        Source.open(tiny_run / "absent", build_model(tiny_recipe, 2).config, strange)


def test_genes_known_by_symbol_on_one_side_are_found_by_name():
    ensembl = GeneVocab.from_names(["ENSG00000000001", "ENSG00000000002", "ENSG00000000003"], ["TP53", "GATA1", "KIT"])
    symbols = GeneVocab.from_names(["KIT", "XIST", "TP53"])
    assert matched_rows(symbols, ensembl).tolist() == [2, -1, 0]
    assert matched_rows(ensembl, symbols).tolist() == [2, -1, 0]
    # One symbol for two ids: neither is it.
    double = GeneVocab.from_names(["ENSG00000000001", "ENSG00000000002"], ["TP53", "TP53"])
    assert matched_rows(double, symbols).tolist() == [-1, -1]
    assert matched_rows(symbols, double).tolist() == [-1, -1, -1]


def test_a_row_is_not_given_to_two_genes_of_which_one_is_an_alias():
    import pandas as pd

    theirs = GeneVocab(pd.DataFrame({"gene_id": ["ENSG00000000001"], "symbol": ["TP53"], "alias": ["P53"]}))
    assert matched_rows(GeneVocab.from_names(["P53"]), theirs).tolist() == [0]
    assert matched_rows(GeneVocab.from_names(["P53", "TP53"]), theirs).tolist() == [-1, -1]
    assert matched_rows(GeneVocab.from_names(["P53", "ENSG00000000001"]), theirs).tolist() == [-1, 0]


@given(st.permutations(range(12)), st.sets(st.integers(0, 11), min_size=1), st.sets(st.integers(0, 11), min_size=1))
def test_matching_by_id_is_the_partial_bijection_of_equal_ids(order, ours, theirs):
    ids = [f"ENSG{i:011d}" for i in order]
    a, b = (GeneVocab.from_names([gene for i, gene in enumerate(ids) if i in side]) for side in (ours, theirs))
    rows = matched_rows(a, b)
    assert [b.ids[row] if row >= 0 else None for row in rows] == [
        gene if gene in set(b.ids) else None for gene in a.ids
    ]


# In a run


@pytest.fixture(scope="module")
def wider_corpus(tiny_data, tmp_path_factory) -> Path:
    """The corpus of `tiny_data` with one gene gone and another in its place."""
    from expresser.corpus.build import build_corpus

    cells = tiny_data.copy()
    cells.var_names = [*cells.var_names[:-1], "ENSG50000000001"]
    folder = tmp_path_factory.mktemp("wider") / "corpus"
    build_corpus([cells], folder)
    return folder


@pytest.mark.parametrize("gene_tokens", ["random", "factors"])
def test_a_run_begins_warm_and_goes_on_without_its_source(tiny_recipe, tiny_run, wider_corpus, tmp_path, gene_tokens):
    source = tmp_path / "source"
    shutil.copytree(tiny_run / "model", source)
    noise = 0.002 if gene_tokens == "factors" else None
    recipe = dataclasses.replace(tiny_recipe, start=str(source), gene_tokens=gene_tokens, gene_tokens_noise=noise)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    pretrain(recipe, wider_corpus, whole, quiet=True)
    record = json.loads((whole / "model" / "run.json").read_text())["warm_start"]
    assert (record["genes_kept"], record["genes_new"], record["genes_dropped"]) == (79, 1, 1)
    cold = json.loads((tiny_run / "log.jsonl").read_text().splitlines()[0])["valid"]["mse"]
    assert json.loads((whole / "log.jsonl").read_text().splitlines()[0])["valid"]["mse"] < cold

    pretrain(recipe, wider_corpus, broken, stop_after=2, quiet=True)  # before its first checkpoint
    pretrain(recipe, wider_corpus, broken, resume=True, stop_after=6, quiet=True)
    shutil.rmtree(source)
    pretrain(recipe, wider_corpus, broken, resume=True, quiet=True)
    a, b = (checkpoint.load(run).model.state_dict() for run in (whole, broken))
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(InputError, match=r"another configuration .*start was"):
        pretrain(dataclasses.replace(recipe, start=None), wider_corpus, broken, resume=True, quiet=True)


def test_a_run_resumed_before_its_first_checkpoint_wants_the_same_source(tiny_recipe, tiny_run, tiny_corpus, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_run / "model", source)
    recipe = dataclasses.replace(tiny_recipe, start=str(source))
    pretrain(recipe, tiny_corpus, tmp_path / "run", stop_after=2, quiet=True)
    shutil.rmtree(source)
    shutil.copytree(sorted((tiny_run / "checkpoints").glob("step-*"))[0], source)
    with pytest.raises(InputError, match=r"warm_start\.weights_sha256 was"):
        pretrain(recipe, tiny_corpus, tmp_path / "run", resume=True, quiet=True)


def test_a_run_that_cannot_begin_warm_claims_no_folder(tiny_recipe, tiny_run, tiny_corpus, tmp_path):
    other = dataclasses.replace(
        tiny_recipe, start=str(tiny_run), model=dataclasses.replace(tiny_recipe.model, d_model=32)
    )
    with pytest.raises(InputError, match=r"--model\.d-model 16"):
        pretrain(other, tiny_corpus, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()

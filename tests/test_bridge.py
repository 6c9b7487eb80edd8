"""Laws of the bridge: what a translator takes from a pretrained Expresser, what it keeps of it, and what it does without it."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretrained_toys import DIMS, toy_checkpoint
from translate_toys import CONFIGS, toy_anndata, toy_fit, toy_split, toy_study

from expresser.embed import embed
from expresser.errors import InputError
from translate.batches import sparse_rows
from translate.bridge import Bridge
from translate.bridging import pretrained, start_from_pretrained, with_pretrained
from translate.factor_linear import FactorLinear, standardised
from translate.feed import Feed
from translate.fitting import _inputs, build, fit
from translate.pretrained_cells import PretrainedCells
from translate.pretrained_genes import PretrainedGenes, tokens_of
from translate.rna_layer import RnaLayer
from translate.study import DataWarning
from translate.translator import Translator

SYSTEMS = ("babel", "scmog", "polarbear", "scact")
WAYS: dict[str, dict[str, Any]] = {
    "genes": {},
    "join": {"rna_cells": "join"},
    "replace": {"rna_cells": "replace", "rna_start": "fresh"},
    "blocks": {"rna_cells": "join", "rna_blocks": 1},
    "table": {"rna_output": "table"},
    "peaks": {"peak_start": "both"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    toy_checkpoint(folder)
    return folder


def bridged(system: str, model: Path, **options: Any) -> Any:
    return replace(CONFIGS[system], bridge=Bridge(rna_encoder=str(model), **options))


def network(system: str, model: Path, **options: Any):
    """A network before training, and what it was made from."""
    study, config = toy_study(), bridged(system, model, **options)
    checkpoint, _ = pretrained(str(model))
    inputs = _inputs(study, toy_split(), config, None, None, checkpoint=checkpoint)
    made = build(system, config, inputs, 0)
    fresh = {name: value.clone() for name, value in made.state_dict().items()}
    used = start_from_pretrained(made, checkpoint, inputs, config.bridge, study, 0)
    return made, fresh, used, checkpoint, inputs, study


def leave(system: str, out: Path, **options: Any) -> None:
    """A fit that is interrupted after two epochs."""
    study = toy_study()
    config = replace(CONFIGS[system], **options)
    assert fit(system, study, split=toy_split(), out=out, config=config, stop_after=2) is None


def first_layer(system: torch.nn.Module) -> RnaLayer:
    return next(module for module in system.modules() if isinstance(module, RnaLayer))


# ---- genes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_first_weights_are_a_projection_of_the_gene_table(system, model):
    made, fresh, used, checkpoint, inputs, _ = network(system, model)
    layer, genes = first_layer(made), inputs["rna"].pretrained
    name = next(n for n, m in made.named_modules() if m is layer) + ".weight"
    known = torch.from_numpy(genes.known)
    assert (used["genes"], used["of_genes"], int(known.sum())) == (50, 60, 50)
    assert torch.equal(layer.weight[~known], fresh[name][~known])
    ids = inputs["rna"].var["ensembl_id"].to_numpy()[genes.known]
    rows = standardised(checkpoint.model.gene_tokens.weight.detach()[checkpoint.vocab.resolve(ids).tokens])
    # All of the known weights, a row a gene, are one linear map of the standardised table.
    solved = torch.linalg.lstsq(rows, layer.weight.detach()[known]).solution
    torch.testing.assert_close(rows @ solved, layer.weight.detach()[known], rtol=1e-4, atol=1e-5)
    sizes = [float(w.square().mean().sqrt()) for w in (layer.weight.detach()[known], fresh[name])]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-5)
    same = {n for n, value in made.state_dict().items() if torch.equal(value, fresh[n])}
    assert fresh.keys() - same == {n for n in fresh if n.endswith(".first.weight") and "rna_encoder" in n}


def test_genes_are_matched_by_id_and_by_symbol_only_without_one(model, tmp_path):
    checkpoint, _ = pretrained(str(model))
    var = toy_study().measured["rna"].var.iloc[:4].copy()
    var["symbol"] = list(checkpoint.vocab.symbols[:4])
    by_id = tokens_of(checkpoint.vocab, var)
    assert (checkpoint.vocab.ids[by_id] == var["ensembl_id"].to_numpy()).all()
    var["ensembl_id"] = ["", var["ensembl_id"].iloc[1], "ENSG00000099999", ""]
    assert tokens_of(checkpoint.vocab, var).tolist() == [0, by_id[1], -1, 3]


def test_a_model_that_knows_no_gene_is_refused(model, tmp_path):
    made = toy_anndata()
    made["rna"].var["gene_ids"] = [f"ENSG{70_000 + i:011}" for i in range(60)]
    from translate.data import read_study

    study = read_study(rna=made["rna"], atac=made["atac"], check_pairing=False)
    with pytest.raises(InputError, match=r"knows none of 60 genes .*matched by Ensembl id"):
        toy_fit("babel", tmp_path / "fit", study, bridge=Bridge(rna_encoder=str(model)))
    assert not (tmp_path / "fit").exists()


# ---- cells -----------------------------------------------------------------------------------------------------------


def test_embeddings_are_those_of_embed_over_all_genes_of_the_file(model):
    checkpoint, _ = pretrained(str(model))
    adata = toy_anndata(n_genes=60)["rna"]
    adata.var_names = adata.var["gene_ids"].to_list()
    wanted = embed(adata, checkpoint, copy=True).obsm["X_expresser"]
    study = toy_study()
    few = study.measured["rna"].var.iloc[:20]  # the translator's own genes: the embedding is of the cell all the same
    genes = PretrainedGenes.of(
        checkpoint.model.config.to_dict(), checkpoint.vocab, few, study.measured["rna"].var, reads_cells=True
    )
    module = PretrainedCells(genes)
    module.model.load_state_dict(checkpoint.model.state_dict())
    counts = genes.counts(study.measured["rna"])
    found = module(sparse_rows(counts, (0, counts.shape[1])))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    one = module(sparse_rows(counts[7:8], (0, counts.shape[1])))
    np.testing.assert_allclose(one, wanted[7:8], rtol=1e-4, atol=1e-6)


def test_frozen_weights_are_no_parameters_and_blocks_are(model):
    checkpoint, _ = pretrained(str(model))
    var = toy_study().measured["rna"].var
    genes = PretrainedGenes.of(checkpoint.model.config.to_dict(), checkpoint.vocab, var, var, reads_cells=True)
    frozen, one = PretrainedCells(genes), PretrainedCells(genes, 1)
    assert not list(frozen.parameters())
    assert frozen.state_dict().keys() == one.state_dict().keys()
    names = [name for name, _ in one.named_parameters()]
    assert names
    assert all(
        n.startswith(("model.decoder.0.", "model.head.", "model.expression_tokens", "model.residual")) for n in names
    )
    assert not any(module.training for module in one.train().modules())
    with pytest.raises(InputError, match="this model has 3 blocks"):
        PretrainedCells(genes, 4)


def test_a_cell_without_an_embedding_is_as_the_mean_cell(model):
    made, *_, inputs, study = network("babel", model, **WAYS["replace"])
    layer = first_layer(made)
    embedding = torch.randn(9, DIMS, generator=torch.Generator().manual_seed(0)) + 3
    embedding[4] = 0
    layer.standardise(embedding)
    torch.testing.assert_close(layer.centre, embedding[torch.arange(9) != 4].mean(dim=0))
    cells = Feed.of(study, inputs).batch(np.arange(9), ("rna",), share=9).rna
    found = layer(replace(cells, whole=None, embedding=embedding)).detach()
    torch.testing.assert_close(found[4], layer.bias[0].detach())
    torch.testing.assert_close(found[torch.arange(9) != 4].mean(dim=0), layer.bias[0].detach(), atol=1e-5, rtol=1e-5)


def test_a_part_without_an_embedded_cell_has_gradients_of_nought(model):
    checkpoint, _ = pretrained(str(model))
    var = toy_study().measured["rna"].var
    genes = PretrainedGenes.of(checkpoint.model.config.to_dict(), checkpoint.vocab, var, var, reads_cells=True)
    module = PretrainedCells(genes, 1)
    counts = genes.counts(toy_study().measured["rna"])
    empty = sparse_rows(counts[:0], (0, counts.shape[1]))
    module(empty).sum().backward()
    assert all(float(weight.grad.abs().max()) == 0 for weight in module.parameters())


def test_a_query_with_few_of_the_genes_is_doubted_and_with_fewer_refused(model, tmp_path):
    fitted = toy_fit("babel", tmp_path / "fit", bridge=Bridge(rna_encoder=str(model), **WAYS["join"]))
    rna = toy_anndata()["rna"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        fitted.translate(rna[:, :45].copy(), "atac")
    with pytest.warns(DataWarning, match="it has 30 of the pretrained model's genes, .* had 50"):
        fitted.translate(rna[:, :30].copy(), "atac")
    renamed = rna.copy()
    renamed.var["gene_ids"] = ""
    with pytest.raises(InputError, match="give all genes of the file"):
        fitted.translate(renamed, "atac")


@pytest.mark.parametrize(
    "change", [{"model_type": "bert"}, {"model_type": None}, {"n_heads": 3}, {"vocab_size": 12}, {"d_model": None}]
)
def test_an_altered_record_of_the_pretrained_model_is_refused(change, model, tmp_path):
    toy_fit("babel", tmp_path / "fit", bridge=Bridge(rna_encoder=str(model), **WAYS["join"]))
    path = tmp_path / "fit" / "model" / "inputs.json"
    settings = json.loads(path.read_text())
    told = settings["rna"]["pretrained"]["model"]
    told |= change
    settings["rna"]["pretrained"]["model"] = {key: value for key, value in told.items() if value is not None}
    path.write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"inputs\.json"):
        Translator.load(tmp_path / "fit" / "model")


def test_a_start_keeps_its_own_bridge(model, tmp_path):
    begun = toy_fit("babel", tmp_path / "begun")
    study = toy_study(modalities=("rna", "atac", "protein"))
    with pytest.raises(InputError, match=r"config\.bridge is not that of the model to start from"):
        toy_fit("babel", tmp_path / "more", study, start=begun, bridge=Bridge(rna_encoder=str(model)))


def test_replaced_expression_is_not_read(model):
    made, *_, inputs, study = network("babel", model, **WAYS["replace"])
    layer = first_layer(made)
    assert layer.weight is None
    assert layer.of_cell.weight.shape == (64, DIMS)
    feed = Feed.of(study, inputs)
    batch = feed.batch(np.arange(9), ("rna",), share=9).rna
    other = replace(batch, inputs=replace(batch.inputs, values=torch.randn_like(batch.inputs.values)))
    assert torch.equal(layer(batch), layer(other))
    joined = first_layer(network("babel", model, **WAYS["join"])[0])
    assert not torch.equal(joined(batch), joined(other))


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_last_blocks_train_and_the_rest_does_not(system, model, tmp_path):
    checkpoint, _ = pretrained(str(model))
    fitted = toy_fit(system, tmp_path / "fit", bridge=Bridge(rna_encoder=str(model), **WAYS["blocks"]))
    layer = first_layer(fitted.system)
    before = checkpoint.model.state_dict()
    moved = {name for name, value in layer.cells.model.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("decoder.0.") for name in moved)
    assert all(name.startswith(("decoder.0.", "head.", "expression_tokens", "residual")) for name in moved)


def test_the_blocks_move_at_their_own_rate(model, tmp_path):
    checkpoint, _ = pretrained(str(model))
    before, steps = checkpoint.model.state_dict(), {}
    for share in (0.0, 0.01, 0.1):
        bridge = Bridge(rna_encoder=str(model), rna_cells="join", rna_blocks=1, rna_blocks_lr=share)
        fitted = toy_fit("babel", tmp_path / str(share), bridge=bridge, epochs=1)
        after = first_layer(fitted.system).cells.model.state_dict()
        steps[share] = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert steps[0.0] == 0
    # The first steps of Adam are of the size of its learning rate.
    assert 5 < steps[0.1] / steps[0.01] < 15


# ---- a whole fit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_fitted_folder_needs_no_checkpoint_and_one_cell_gives_what_it_gives_among_many(system, way, model, tmp_path):
    folder = Path(shutil.copytree(model, tmp_path / "pretrained"))
    fitted = toy_fit(system, tmp_path / "fit", bridge=Bridge(rna_encoder=str(folder), **WAYS[way]))
    assert fitted.run["pretrained"]["model"] == str(folder)
    assert fitted.run["taken"]["ways"]
    shutil.rmtree(folder)
    loaded = Translator.load(tmp_path / "fit" / "model")
    rna = toy_anndata()["rna"]
    whole = fitted.translate(rna, "atac").X
    np.testing.assert_allclose(loaded.translate(rna, "atac").X, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loaded.translate(rna[3:4].copy(), "atac").X, whole[3:4], rtol=1e-4, atol=1e-6)


def test_an_interrupted_fit_goes_on_to_the_same_and_asks_for_the_same_model(model, tmp_path):
    options = {"bridge": Bridge(rna_encoder=str(model), **WAYS["blocks"]), "epochs": 4}
    whole = toy_fit("babel", tmp_path / "whole", **options)
    leave("babel", tmp_path / "cut", **options)
    again = toy_fit("babel", tmp_path / "cut", resume=True, **options)
    for name, value in whole.system.state_dict().items():
        assert torch.equal(again.system.state_dict()[name], value), name
    other = Path(shutil.copytree(model, tmp_path / "other"))
    toy_checkpoint(other, seed=1)
    elsewhere = {"bridge": Bridge(rna_encoder=str(other), **WAYS["blocks"]), "epochs": 4}
    leave("babel", tmp_path / "third", **elsewhere)
    toy_checkpoint(other, seed=2)  # the same name, other weights
    with pytest.raises(InputError, match="pretrained"):
        toy_fit("babel", tmp_path / "third", resume=True, **elsewhere)


def test_without_a_bridge_nothing_changes(tmp_path):
    fitted = toy_fit("babel", tmp_path / "fit")
    assert "pretrained" not in fitted.run
    assert fitted.inputs["rna"].pretrained is None
    assert not any("cells" in name for name in fitted.system.state_dict())


def test_proteins_added_to_a_bridged_model_read_the_cells_too(model, tmp_path):
    begun = toy_fit("scmog", tmp_path / "begun", bridge=Bridge(rna_encoder=str(model), **WAYS["join"]))
    study = toy_study(modalities=("rna", "atac", "protein"))
    more = toy_fit("scmog", tmp_path / "more", study, start=begun, bridge=begun.system.config.bridge)
    one, other = (more.system.get_submodule(f"rna_encoder_to_{to}").first for to in ("atac", "protein"))
    for name, value in one.cells.state_dict().items():
        assert torch.equal(other.cells.state_dict()[name], value)
    assert torch.equal(one.centre, other.centre)


def test_output_weights_share_the_table(model):
    made, *_, checkpoint, inputs, _ = network("babel", model, rna_output="table")
    (output,) = [module for module in made.modules() if isinstance(module, FactorLinear)]
    genes = inputs["rna"].pretrained
    rows = checkpoint.model.gene_tokens.weight.detach()[torch.from_numpy(genes.tokens[genes.known])]
    torch.testing.assert_close(output.table, standardised(rows) * DIMS**-0.5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rna_cells": "join"}, "without a pretrained model"),
        ({"rna_encoder": "m", "rna_blocks": 1}, "cell embeddings are not read"),
        ({"rna_encoder": "m", "rna_cells": "join", "rna_blocks": -1}, "must not be negative"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        Bridge(**options)


def test_the_input_comes_back_from_what_it_saves(model):
    checkpoint, _ = pretrained(str(model))
    study, config = toy_study(), bridged("babel", model, rna_cells="join")
    rna = _inputs(study, toy_split(), config, None, None, checkpoint=checkpoint)["rna"]
    again = with_pretrained(rna, checkpoint, config.bridge, study.measured["rna"].var).pretrained
    arrays, settings = again.saved()
    restored = PretrainedGenes.restored(arrays, settings)
    assert restored.vocab == checkpoint.vocab
    assert (restored.tokens == again.tokens).all()
    assert restored.model == again.model
    assert restored.read == again.read == 50

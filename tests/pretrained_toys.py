"""A small Expresser with random weights that says something of the toys' genes, for tests of what starts from it."""

from pathlib import Path

import numpy as np
import torch

from expresser.checkpoint import Checkpoint, load, random_checkpoint, save
from expresser.genes import GeneVocab
from expresser.model.configuration import ExpresserConfig
from expresser.model.modeling import ExpresserModel

DIMS = 8


def toy_checkpoint(folder: Path, *, n_genes: int = 60, unknown: int = 10, more: int = 15, seed: int = 0) -> Checkpoint:
    """It knows all but the last `unknown` of the genes of `translate_toys.toy_anndata`, and `more` others, in an order of its own."""
    ids = [f"ENSG{i:011}" for i in range(n_genes - unknown)] + [f"ENSG{90_000 + i:011}" for i in range(more)]
    order = np.random.default_rng(seed).permutation(len(ids))
    vocab = GeneVocab.from_names([ids[i] for i in order], [f"SYM{i}" for i in order])
    config = ExpresserConfig(
        vocab_size=len(vocab), d_model=DIMS, n_layers=2, n_heads=2, head="additive", value_input="bin_residual"
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        drawn = random_checkpoint(Checkpoint(ExpresserModel(config), vocab, {}, "toy"), seed=seed)
        torch.nn.init.normal_(drawn.model.gene_tokens.weight, std=0.5)
    save(folder, drawn.model, vocab, {"recipe": "toy"})
    return load(folder)

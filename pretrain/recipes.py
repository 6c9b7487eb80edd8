"""Runs as functions. Each returns a typed configuration; a variant calls another and replaces fields."""

from collections.abc import Callable
from dataclasses import replace

from pretrain.config import DataConfig, ModelConfig, ObjectiveConfig, OptimConfig, Recipe


def small() -> Recipe:
    """A model for a laptop or a study of one's own: 1-100 thousand cells, two CPU cores, minutes to an hour.

    expresser pretrain small --corpus corpus/ --out runs/small
    """
    return Recipe(
        name="small",
        model=ModelConfig(
            d_model=64, n_layers=3, n_heads=2, value_input="bin_residual", head="truncated", max_genes=1100
        ),
        optim=OptimConfig(lr=2e-3, token_lr_scale=0.1),
        data=DataConfig(global_batch=8, max_tokens=8192, max_genes=512, epochs=6.0),
        gene_tokens="factors",
        gene_tokens_noise=0.002,
        log_every=50,
        eval_every=500,
        save_every=500,
    )


def demo() -> Recipe:
    """The run inside ``expresser demo``: simulated cells, two CPU cores, about three minutes.

    expresser pretrain demo --corpus corpus/ --out runs/demo
    """
    base = small()
    return replace(
        base,
        name="demo",
        model=replace(base.model, n_layers=2),
        data=replace(base.data, epochs=6.0, valid_cells=128, max_genes=256),
        log_every=20,
        eval_every=200,
        save_every=500,
    )


def paper() -> Recipe:
    """The dissertation's model and pretext to the letter: 12 layers, d 200, post-norm, one random mask, Adam at 1e-4.

    Written for multi-GPU nodes: an epoch of six million cells is 4e17 FLOP. The text gives no batch size: 256 is ours.

    accelerate launch -m pretrain paper --corpus corpus/ --out runs/paper
    """
    return Recipe(
        name="paper",
        model=ModelConfig(norm_first=False, head="paper", cell_scale="cell"),
        objective=ObjectiveConfig(masking="single"),
        optim=OptimConfig(lr=1e-4, schedule="constant", warmup_share=0.0, weight_decay=0.0, beta2=0.999, grad_clip=0.0),
        data=DataConfig(global_batch=256, max_tokens=65536, epochs=5.0),
        eval_every=2000,
        save_every=2000,
    )


def paper_naive() -> Recipe:
    """``paper`` as one would write it first: cells padded to 1,100 genes, ``nn.TransformerEncoder``, float32.

    The reference for every factor of speed that is claimed; it learns the same model as ``paper``.

    expresser pretrain paper_naive --corpus corpus/ --out runs/naive
    """
    base = paper()
    return replace(base, name="paper_naive", implementation="naive", precision="no")


def full() -> Recipe:
    """The paper's size with what was found to learn faster: every gene a target, pre-norm, truncated head, cosine schedule, bf16.

    accelerate launch -m pretrain full --corpus corpus/ --out runs/full
    """
    return Recipe(
        name="full",
        model=ModelConfig(value_input="bin_residual", head="truncated"),
        optim=OptimConfig(lr=5e-4, token_lr_scale=0.1),
        gene_tokens="factors",
        gene_tokens_noise=0.002,
        data=DataConfig(global_batch=256, max_tokens=65536, epochs=3.0),
        eval_every=1000,
        save_every=1000,
    )


def with_random_tokens(base: Recipe) -> Recipe:
    """The recipe with the paper's start of the token table, which then learns as fast as everything else."""
    return replace(base, gene_tokens="random", gene_tokens_noise=None, optim=replace(base.optim, token_lr_scale=None))


RECIPES: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    "small": small,
    "full": full,
    "paper": paper,
    "paper_naive": paper_naive,
}

"""What a pretraining run is: frozen dataclasses, one field for each choice, set in one place."""

from dataclasses import dataclass, field
from typing import Literal

from expresser.errors import InputError
from expresser.model.configuration import CellScale, Head, ValueInput

_WIDEST, _DEEPEST = 1_000_000, 10_000  # beyond which a number is a slip of the keyboard


@dataclass(frozen=True)
class ModelConfig:
    """The model; see :class:`expresser.model.configuration.ExpresserConfig` for what each field means."""

    architecture: Literal["expresser", "without_decoder"] = "expresser"
    """The Expression Transformer, or the paper's ablation with standard encoder layers in the decoder's place."""
    d_model: int = 200
    """Width of the vectors of genes and cells."""
    n_layers: int = 12
    """Layers of the encoder."""
    n_heads: int = 4
    """Heads of attention, which share d_model evenly."""
    d_ff: int = 0
    """Feed-forward width; 0 means 4 * d_model."""
    n_bins: int = 50
    """Expression tokens: equal intervals up to the largest value of a cell."""
    norm_first: bool = True
    """Norms before the sub-layers and one at the end; False: after them, as in the paper."""
    dropout: float = 0.0
    """On attention weights and after each sub-layer."""
    decoder_layers: int = 1
    """Layers of cross-attention; without_decoder: of the standard encoder layers in their place."""
    decoder_residual: bool = False
    """Each decoder layer adds to its queries and has a feed-forward block; False: the paper's, attention alone."""
    value_input: ValueInput = "bin"
    """What attention averages: the bin's embedding (paper), or that plus what the value has above its gene and cell."""
    head: Head = "truncated"
    """How a value is predicted: paper is equation 4.4; truncated, the mean of a count known not to be zero."""
    cell_scale: CellScale = "observed"
    """What a cell's largest value is taken over: all its genes (paper), or those that are shown."""
    max_genes: int = 1100
    """Genes of a cell shown at once; a cell with more gets a random subset."""
    target_sum: float = 1e4
    """Library size that counts are scaled to before log1p."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """Which genes are asked."""

    masking: Literal["all_folds", "single"] = "all_folds"
    """Every gene a target in each step (each fold asked from the others), or the paper's one random mask a cell."""
    masked_share: float = 0.25
    """Share of a cell's genes in one mask; all_folds cuts a cell into round(1 / masked_share) folds."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, linear warm-up, then cosine or constant."""

    lr: float = 1e-3
    """Highest learning rate."""
    token_lr_scale: float | None = None
    """The learning rate of the gene token table as a share of lr; 0 freezes it. None: the same as everything else (1.0, the paper).
    A table that starts from gene factors is worse at gene tasks the further Adam's steps take it from there."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the linear rise."""
    warmup_share: float = 0.02
    """Share of the run spent on the linear rise of the learning rate."""
    final_lr_share: float = 0.05
    """Where the cosine ends, as a share of lr."""
    weight_decay: float = 0.01
    """On matrices of layers only: embeddings, norms and biases are not decayed."""
    beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    beta2: float = 0.98
    """Decay of its mean of squares."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0 does not clip."""


@dataclass(frozen=True)
class DataConfig:
    """Which cells, in what order, how many at once."""

    global_batch: int = 256
    """Cells a step, over all processes."""
    max_tokens: int = 16384
    """Padded tokens of a micro-batch: the one knob for memory. More micro-batches than one are gradient accumulation."""
    max_genes: int | None = None
    """Genes of a cell shown in training, a fresh random subset each time; None: model.max_genes. Attention costs the square, and what
    is learnt from subsets holds for whole cells: validation and use show model.max_genes."""
    epochs: float = 1.0
    """An epoch is as many cells as the training split has. Without source_weights it shows each once."""
    source_weights: str | None = None
    """How often sources are seen. None: each cell equally often, so a source by its size. `equal`: each source as often as another;
    `sqrt`: by the square root of its cells; or `atlas=3,study=1`, a weight for each (`*=1` for all others). A source of n cells with
    share s of an epoch's N cells is then passed through s N / n times an epoch, each of its cells equally often."""
    weigh_by: str | None = None
    """The obs column whose values source_weights weighs: tissue, donor, study … ("nan": no value); None: the input file."""
    length_window: int | None = None
    """Global batches whose cells are sorted by length together: less padding where a process has few cells a step, but a step is then
    of cells of like length. None: each step a random sample."""
    max_steps: int | None = None
    """Stop after this many steps whatever the epochs say; the schedule then ends there."""
    minutes: float | None = None
    """Stop after this much training time (validation and saving not counted); the learning rate then follows the clock. For equal-time
    comparisons and deadlines: such a run depends on the machine's speed and is not reproducible to the bit."""
    valid_share: float = 0.05
    """Cells held out for validation, drawn by cell, or whole groups with valid_by."""
    valid_by: str | None = None
    """An obs column (donor, source …): whole groups are held out, so that no group is on both sides."""
    valid_cells: int = 512
    """Validation looks at no more cells than this."""


@dataclass(frozen=True)
class Recipe:
    """One pretraining run. A recipe is a function that returns one; a variant replaces fields of another."""

    name: str = "custom"
    """What run.json and the page call the run."""
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    implementation: Literal["packed", "naive"] = "packed"
    """naive: nn.TransformerEncoder on cells padded to max_genes; the reference that speed is measured against."""
    gene_tokens: Literal["random", "factors"] = "random"
    """Where the token table starts: random (paper), or random plus principal axes of genes over a sample of training cells, so that
    training begins with what a linear method knows of gene-gene relations."""
    gene_tokens_noise: float | None = None
    """Standard deviation of the random share of a table that starts from factors (whose root mean square is 0.1), for genes with few
    counts most of what they start from. None: that of every other embedding, 0.02."""
    start: str | None = None
    """A model (folder, run or hub id) whose weights the run begins with, genes matched by Ensembl id. Those it does not know begin as
    `gene_tokens` says."""
    precision: Literal["no", "bf16"] = "bf16"
    """bf16 autocast; weights, losses and likelihoods stay float32."""
    strategy: Literal["auto", "ddp", "zero2", "zero3"] = "auto"
    """How processes share the work. ddp: each holds all weights; zero2, zero3: DeepSpeed's shares of gradients and moments, and of
    weights; auto: as the launcher is set up, else ddp. Checkpoints are the same files: a run may go on with another."""
    compile: bool = False
    """torch.compile the forward pass, on micro-batches filled to a few static shapes: for GPUs, and for runs long enough to repay the
    minutes that compiling takes."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune-no-cudagraphs"] = "default"
    """reduce-overhead: CUDA graphs."""
    timeout_minutes: float = 30.0
    """How long a process waits for another that has gone before it gives up."""
    seed: int = 0
    """Of first weights, masks, and the order and subsets of cells."""
    log_every: int = 10
    """Steps between lines of log.jsonl."""
    eval_every: int = 200
    """Steps between validations."""
    save_every: int = 200
    """Steps between checkpoints."""
    keep_last: int = 2
    """Newest checkpoints kept beside the final model, and beside the one with the lowest validation loss."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Where curves go beside log.jsonl: the extras `expresser[tensorboard]`, `expresser[wandb]`; wandb is offline unless logged in."""

    @property
    def train_genes(self) -> int:
        """Genes of a cell that a training step shows at most."""
        return self.data.max_genes or self.model.max_genes

    def check(self) -> None:
        """Raise InputError for the first number that no run can have."""
        model, data, optim, masked = self.model, self.data, self.optim, self.objective.masked_share
        rules = (
            ("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 2^32 - 1"),
            ("log_every", self.log_every, self.log_every >= 1, "1 or more"),
            ("eval_every", self.eval_every, self.eval_every >= 1, "1 or more"),
            ("save_every", self.save_every, self.save_every >= 1, "1 or more"),
            (
                "keep_last",
                self.keep_last,
                self.keep_last >= 1,
                "1 or more: without a checkpoint nothing can be resumed",
            ),
            ("timeout_minutes", self.timeout_minutes, 0 < self.timeout_minutes < 1e6, "above 0"),
            (
                "gene_tokens_noise",
                self.gene_tokens_noise,
                self.gene_tokens_noise is None or 0 <= self.gene_tokens_noise < float("inf"),
                "0 or more",
            ),
            ("data.global_batch", data.global_batch, data.global_batch >= 1, "1 or more"),
            ("data.max_tokens", data.max_tokens, data.max_tokens >= 1, "1 or more"),
            ("data.epochs", data.epochs, 0 < data.epochs < float("inf"), "above 0"),
            (
                "data.length_window",
                data.length_window,
                data.length_window is None or data.length_window >= 1,
                "1 or more",
            ),
            ("data.max_steps", data.max_steps, data.max_steps is None or data.max_steps >= 1, "1 or more"),
            ("data.minutes", data.minutes, data.minutes is None or data.minutes > 0, "above 0"),
            ("data.valid_cells", data.valid_cells, data.valid_cells >= 1, "1 or more"),
            ("data.valid_share", data.valid_share, 0 < data.valid_share < 1, "above 0 and below 1"),
            ("objective.masked_share", masked, 0 < masked <= 0.5, "above 0 and not above 0.5"),
            ("optim.lr", optim.lr, 0 < optim.lr < float("inf"), "above 0"),
            ("optim.final_lr_share", optim.final_lr_share, 0 <= optim.final_lr_share <= 1, "from 0 to 1"),
            ("optim.weight_decay", optim.weight_decay, 0 <= optim.weight_decay < float("inf"), "0 or more"),
            ("optim.beta1", optim.beta1, 0 <= optim.beta1 < 1, "from 0 to below 1"),
            ("optim.beta2", optim.beta2, 0 <= optim.beta2 < 1, "from 0 to below 1"),
            ("optim.grad_clip", optim.grad_clip, 0 <= optim.grad_clip < float("inf"), "0 (no clipping) or more"),
            ("model.d_model", model.d_model, 1 <= model.d_model <= _WIDEST, f"from 1 to {_WIDEST:,}"),
            ("model.d_ff", model.d_ff, 0 <= model.d_ff <= _WIDEST, f"from 0 (4 * d_model) to {_WIDEST:,}"),
            ("model.n_layers", model.n_layers, 0 <= model.n_layers <= _DEEPEST, f"from 0 to {_DEEPEST:,}"),
            (
                "model.decoder_layers",
                model.decoder_layers,
                0 <= model.decoder_layers <= _DEEPEST,
                f"from 0 to {_DEEPEST:,}",
            ),
            ("model.n_bins", model.n_bins, 1 <= model.n_bins <= _WIDEST, f"from 1 to {_WIDEST:,}"),
            ("model.target_sum", model.target_sum, 0 < model.target_sum < float("inf"), "above 0"),
            (
                "optim.token_lr_scale",
                optim.token_lr_scale,
                optim.token_lr_scale is None or 0 <= optim.token_lr_scale < float("inf"),
                "0 or more",
            ),
            ("optim.warmup_share", optim.warmup_share, 0 <= optim.warmup_share < 1, "from 0 to below 1"),
            ("model.max_genes", model.max_genes, model.max_genes >= 2, "2 or more: one gene is predicted from another"),
            ("data.max_genes", data.max_genes, data.max_genes is None or data.max_genes >= 2, "2 or more"),
            (
                "model.n_heads",
                model.n_heads,
                model.n_heads >= 1 and model.d_model % model.n_heads == 0,
                "a divisor of d_model",
            ),
            ("model.dropout", model.dropout, 0 <= model.dropout < 1, "from 0 to below 1"),
        )
        if data.weigh_by is not None and data.source_weights is None:
            raise InputError(
                f"data.weigh_by is {data.weigh_by!r} without weights: say data.source_weights equal, sqrt or NAME=WEIGHT,NAME=WEIGHT…"
            )
        if self.gene_tokens_noise is not None and self.gene_tokens == "random":
            raise InputError(
                f"gene_tokens_noise is {self.gene_tokens_noise} and gene_tokens is random: it is for a start from factors. "
                "For a random table say --gene-tokens-noise None --optim.token-lr-scale None, else it would hardly learn."
            )
        for name, value, holds, rule in rules:
            if not holds:
                raise InputError(f"{name} is {value}: it must be {rule}.")

"""Every choice of the Expression Transformer, by name."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from transformers import PreTrainedConfig

from expresser.errors import InputError
from expresser.foreign import shortened

Head = Literal["paper", "query", "bias", "additive", "truncated"]
ValueInput = Literal["bin", "bin_residual"]
CellScale = Literal["cell", "observed"]
DTYPES = ("float32", "bfloat16", "float16")

_MOST = 2**31 - 1  # of any size: whether the weights are that large, whoever loads them checks
_LEAST = {
    "vocab_size": 1,
    "d_model": 1,
    "n_layers": 0,
    "n_heads": 1,
    "d_ff": 0,
    "n_bins": 1,
    "decoder_layers": 0,
    "max_genes": 2,
}
_CHOICES = {"value_input": ValueInput, "head": Head, "cell_scale": CellScale}
_SWITCHES = ("norm_first", "decoder_residual")
_DTYPE = ("dtype", "torch_dtype")
# Written by transformers beside a model's own fields; nothing here reads them.
_BOOKKEEPING = {
    "model_type",
    "architectures",
    "transformers_version",
    "name_or_path",
    "_name_or_path",
    "id2label",
    "label2id",
}
_BOOKKEEPING |= {
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
}
_BOOKKEEPING |= {"return_dict", "tie_word_embeddings", "use_cache"}


class ExpresserConfig(PreTrainedConfig):
    """Configuration of :class:`ExpresserModel` (dissertation, section 4.2.2; what the text leaves open is a field here).

    Attributes
    ----------
    vocab_size
        Genes ``m``; row ``j`` of the token table ``T`` belongs to gene ``j`` of the vocabulary saved beside the weights.
    d_model, n_layers, n_heads, d_ff
        Width ``d``, encoder layers ``N``, heads ``h``, feed-forward width (0: ``4 * d_model``).
    n_bins
        Expression tokens ``k``: equal intervals on (0, L], L the largest value of the cell.
    norm_first
        Pre-norm with a final norm; False is the original post-norm encoder that the paper cites.
    dropout
        On attention weights and after both sub-layers.
    decoder_layers, decoder_residual
        Cross-attention layers. Without residual a layer is the paper's: attention over bin embeddings, heads projected, nothing else.
        With residual each layer adds to its queries and is followed by a feed-forward block.
    value_input
        What attention averages. ``bin``: the bin embedding (paper). ``bin_residual``: the bin embedding plus a learned direction
        times the value's residual from the gene + cell additive prediction, so that "more than usual for this gene in this
        cell" needs not be read off fifty bins.
    head
        ``paper``: softplus(MLP([P, L])) (equation 4.4). ``query``: softplus(MLP([P, T'_j, L])).
        ``bias``: softplus(MLP([P, L]) + b_j). ``additive``: g_j + c_i + MLP([P, T'_j, L]), where g_j is learned, starts at the
        gene's mean non-zero value, and c_i is the mean of x - g over the cell's observed genes; the last MLP layer starts at zero.
        ``truncated``: the value expected of a count known not to be zero. With rate exp(g_j + MLP([P, T'_j, L, u])) and the cell's
        library size, lambda = rate * total is the count's mean and lambda / (1 - exp(-lambda)) its mean given one or more
        (zero-truncated Poisson); g_j starts at the gene's log share of all counts. u is the value of a single count in this cell.
    cell_scale
        What L is taken over: ``cell`` (paper: all genes of the cell, also when the largest one is masked) or ``observed``.
    max_genes
        Genes of a cell shown at once; a cell with more gets a random subset keyed by (seed, epoch, cell).
    target_sum
        Library size that counts are scaled to before log1p.
    """

    model_type = "expresser"
    # What the libraries around transformers ask for.
    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}  # noqa: RUF012

    vocab_size: int = 18483
    d_model: int = 200
    n_layers: int = 12
    n_heads: int = 4
    d_ff: int = 0
    n_bins: int = 50
    norm_first: bool = True
    dropout: float = 0.0
    decoder_layers: int = 1
    decoder_residual: bool = False
    value_input: ValueInput = "bin"
    head: Head = "additive"
    cell_scale: CellScale = "observed"
    max_genes: int = 1100
    target_sum: float = 1e4
    initializer_range: float = 0.02

    @property
    def feed_forward(self) -> int:
        """Width of the hidden layer of a feed-forward block."""
        return self.d_ff or 4 * self.d_model

    def fault(self) -> str | None:
        """The first field that no network can be built with, in words; None where all can."""
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= _MOST:
                return f"{name} is {shortened(value)}, not a whole number from {least} to {_MOST}"
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                return f"{name} is {shortened(getattr(self, name))}, not one of {', '.join(get_args(choices))}"
        for name in _SWITCHES:
            if type(getattr(self, name)) is not bool:
                return f"{name} is {shortened(getattr(self, name))}, not true or false"
        for name, low, high in (("dropout", 0.0, 1.0), ("target_sum", 0.0, 1e12), ("initializer_range", 0.0, 1e3)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not (low <= value < high) or (name == "target_sum" and not value):
                return f"{name} is {shortened(value)}, not a number from {low:g} to less than {high:g}"
        if self.d_model % self.n_heads:
            return f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}"
        return None


class ExpresserWithoutDecoderConfig(ExpresserConfig):
    """Configuration of :class:`ExpresserWithoutDecoder`, the paper's ablation.

    ``decoder_layers`` then counts the standard encoder layers that stand in the decoder's place; ``n_layers=0`` makes the whole model
    a BERT over gene token + value. ``value_input`` and ``decoder_residual`` have no meaning there.
    """

    model_type = "expresser_without_decoder"


KINDS: dict[str, type[ExpresserConfig]] = {
    kind.model_type: kind for kind in (ExpresserConfig, ExpresserWithoutDecoderConfig)
}


def configuration_of(found: Mapping[str, Any], where: str) -> ExpresserConfig:
    """The configuration that a config.json from anywhere holds: fields of this program's models, and nothing else of it is used.

    Raises
    ------
    InputError
        If it is of another model, asks for code or for another way of loading (`auto_map`, `quantization_config`, an attention
        implementation to be fetched …), or has a field that no network can be built with.
    """
    kind = KINDS.get(found["model_type"]) if isinstance(found.get("model_type"), str) else None
    if kind is None:
        raise InputError(
            f"{where}: not of an Expresser model (model_type is {shortened(found.get('model_type'))}, not {' or '.join(KINDS)})."
        )
    fields = {*_LEAST, *_CHOICES, *_SWITCHES, "dropout", "target_sum", "initializer_range"}
    if strange := sorted(found.keys() - fields - _BOOKKEEPING - {*_DTYPE}):
        raise InputError(
            f"{where}: holds {shortened(strange[0])}, which no Expresser model has. A configuration says sizes and choices; one that "
            "asks for code or for another way of loading is not used. If you trust where it comes from, remove that line, or "
            "update expresser if a newer version wrote it."
        )
    dtype = next((found[name] for name in _DTYPE if found.get(name) is not None), "float32")
    if dtype not in DTYPES:
        raise InputError(f"{where}: dtype is {shortened(dtype)}, not one of {', '.join(DTYPES)}.")
    config = kind(**{name: value for name, value in found.items() if name in fields}, dtype=dtype)
    if fault := config.fault():
        raise InputError(f"{where}: {fault}. Use the config.json that was saved with the weights.")
    return config

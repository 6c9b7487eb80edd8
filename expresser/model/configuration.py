"""Every choice of the Expression Transformer, by name."""

from typing import Literal

from transformers import PreTrainedConfig

Head = Literal["paper", "query", "bias", "additive", "truncated"]
ValueInput = Literal["bin", "bin_residual"]
CellScale = Literal["cell", "observed"]


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


class ExpresserWithoutDecoderConfig(ExpresserConfig):
    """Configuration of :class:`ExpresserWithoutDecoder`, the paper's ablation.

    ``decoder_layers`` then counts the standard encoder layers that stand in the decoder's place; ``n_layers=0`` makes the whole model
    a BERT over gene token + value. ``value_input`` and ``decoder_residual`` have no meaning there.
    """

    model_type = "expresser_without_decoder"

"""The Expression Transformer and its "w/o Decoder" ablation (dissertation, chapter 4) as transformers models."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from expresser.errors import InputError
from expresser.model.cells import Cells, Views
from expresser.model.configuration import ExpresserConfig, ExpresserWithoutDecoderConfig
from expresser.model.layers import DecoderLayer, Encoder
from expresser.model.ragged import Ragged
from expresser.notebook import card


@dataclass
class ExpresserOutput(ModelOutput):
    """What a forward pass returns.

    Attributes
    ----------
    prediction
        Log-normalised value of each query, float32.
    decoded
        What the decoder gathered for each query, before the head (``P``).
    contextual
        Encoder output of each entry (``T'``): depends on which genes the cell expresses, not on how much.
    """

    # A ModelOutput also takes all its fields as one mapping in place of the first: accelerate rebuilds it so under autocast.
    prediction: Float[Tensor, " queries"] | dict[str, Tensor] | None = None
    decoded: Float[Tensor, "queries d"] | None = None
    contextual: Float[Tensor, "entries d"] | None = None


class ExpresserPreTrainedModel(PreTrainedModel):
    """Token table, encoder and head: what the model and its ablation share."""

    config_class = ExpresserConfig
    base_model_prefix = "expresser"
    main_input_name = "cells"

    def __init__(self, config: ExpresserConfig) -> None:
        if fault := config.fault():
            raise InputError(f"configuration: {fault}.")
        super().__init__(config)
        self.gene_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.expression_tokens = nn.Embedding(config.n_bins, config.d_model)
        self.encoder = Encoder(
            config.n_layers,
            config.d_model,
            config.n_heads,
            config.feed_forward,
            dropout=config.dropout,
            norm_first=config.norm_first,
        )
        self.head = _Head(config)

    def _init_weights(self, module: nn.Module) -> None:
        std = 0.0 if getattr(module, "zero_start", False) else self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load from a folder or the hub: safetensors only, and every weight must fit (nothing is silently left random)."""
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["use_safetensors"] = True
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        faults = {
            name: sorted(map(str, info.get(name) or ()))
            for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
        }
        if any(faults.values()):
            listed = "; ".join(f"{name}: {', '.join(keys[:5])}" for name, keys in faults.items() if keys)
            raise InputError(
                f"{pretrained_model_name_or_path}: the weights do not fit the configuration ({listed}). "
                "Load the config.json that was saved with these weights."
            )
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write weights and configuration; which gene a token is, they do not say: `expresser.checkpoint.save` writes a model."""
        if push_to_hub:
            self.push_to_hub()
        super().save_pretrained(save_directory, *args, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: weights without their genes would reach the hub, and nobody could use them."""
        raise InputError(
            "push_to_hub would send weights and config.json alone, and which gene a token is stands in genes.tsv. Push the "
            "model's folder: expresser.hub.push(folder, 'org/name'), or `expresser push FOLDER org/name`."
        )

    def facts(self) -> dict[str, Any]:
        """Size and shape, by name."""
        config = self.config
        return {
            "parameters": sum(weight.numel() for weight in self.parameters()),
            "genes": config.vocab_size,
            "width": config.d_model,
            "layers": f"{config.n_layers} of the encoder, {config.decoder_layers} of the decoder, {config.n_heads} heads",
            "head": config.head,
            "value bins": config.n_bins,
            "device": str(self.device),
        }

    def _repr_html_(self) -> str:
        return card(type(self).__name__, self.facts(), {"modules": repr(self), "configuration": repr(self.config)})

    def encode(self, genes: Int[Tensor, " entries"], rows: Ragged) -> Float[Tensor, "entries d"]:
        """Contextual gene embeddings ``T'``: the encoder sees gene identities only."""
        return self.encoder(self.gene_tokens(genes), rows)

    def set_gene_means(self, means: Float[Tensor, " vocab"]) -> None:
        """Start the additive skip's gene term at the corpus's mean non-zero values; other heads have none."""
        if self.head.gene_level is not None:
            with torch.no_grad():
                self.head.gene_level.weight.copy_(means[:, None])

    def set_gene_tokens(self, factors: Float[Tensor, "vocab d"], *, rms: float = 0.1) -> None:
        """Add a table of gene factors, scaled to this root mean square, to the random start of the token table."""
        with torch.no_grad():
            size = factors.square().mean().sqrt()
            self.gene_tokens.weight.add_(factors * (rms / size) if size > 0 else factors)

    def _scale(self, cells: Cells, views: Views) -> Float[Tensor, " views"]:
        """``L`` of each view: the largest value of the cell, or of what is observed of it."""
        if self.config.cell_scale == "cell":
            whole = torch.maximum(cells.rows.max(cells.values), cells.rest_max)
            return whole[views.cell]
        seen = views.context_rows.max(cells.values[views.context])
        return torch.maximum(seen, cells.rest_max[views.cell])

    def _null(self, cells: Cells, views: Views) -> tuple[Float[Tensor, " views"] | None, Float[Tensor, " seen"] | None]:
        """The cell term of the additive head for each view, and what the head would say of each observed gene without its MLP."""
        if self.head.kind == "truncated":
            null = self.head.truncated_mean(self.head.level(cells.genes), cells.total[cells.rows.row])
            return None, null[views.context]
        if self.head.kind != "additive":
            return None, None
        level = self.head.level(cells.genes)[views.context]
        cell_level = views.context_rows.mean(cells.values[views.context] - level)
        return cell_level, level + cell_level[views.context_rows.row]

    def null_prediction(self, cells: Cells, views: Views) -> Float[Tensor, " queries"] | None:
        """What the head would say of each query if its network said nothing; None for heads without such a null."""
        genes = cells.genes[views.query]
        if self.head.kind == "truncated":
            return self.head.truncated_mean(self.head.level(genes), cells.total[views.cell][views.query_rows.row])
        cell_level, _ = self._null(cells, views)
        return None if cell_level is None else self.head.level(genes) + cell_level[views.query_rows.row]

    def _bins(self, values: Float[Tensor, " seen"], scale: Float[Tensor, " seen"]) -> Int[Tensor, " seen"]:
        """Bin 0 … k-1 of a value in (0, L]; L itself falls into the last."""
        k = self.config.n_bins
        return (torch.ceil(k * values / scale).long() - 1).clamp(0, k - 1)


class _Head(nn.Module):
    """From what the decoder gathered to a log-normalised value (equation 4.4 and the variants of ``config.head``)."""

    def __init__(self, config: ExpresserConfig) -> None:
        super().__init__()
        self.kind, self.target_sum, d = config.head, config.target_sum, config.d_model
        self.sees_query = self.kind in ("query", "additive", "truncated")
        n_scalars = 2 if self.kind == "truncated" else 1
        self.hidden = nn.Linear(d * (2 if self.sees_query else 1) + n_scalars, d)
        self.out = nn.Linear(d, 1)
        has_level = self.kind in ("bias", "additive", "truncated")
        self.gene_level = nn.Embedding(config.vocab_size, 1) if has_level else None
        # Training starts without gene levels (`set_gene_means` gives better ones), and where the head has a null prediction, at it.
        if self.gene_level is not None:
            self.gene_level.zero_start = True  # type: ignore[assignment]
        self.out.zero_start = self.kind in ("additive", "truncated")  # type: ignore[assignment]

    def level(self, genes: Int[Tensor, " entries"]) -> Float[Tensor, " entries"]:
        """The learned scalar g of each gene."""
        assert self.gene_level is not None
        return self.gene_level(genes).squeeze(1)

    def truncated_mean(
        self, log_rate: Float[Tensor, " entries"], total: Float[Tensor, " entries"]
    ) -> Float[Tensor, " entries"]:
        """log1p(target_sum / total * E[count | count > 0]) of a Poisson count with mean exp(log_rate) * total."""
        mean = torch.exp((log_rate + torch.log(total)).clamp(-12.0, 12.0))
        return torch.log1p(self.target_sum / total * mean / -torch.expm1(-mean))

    def forward(
        self,
        decoded: Float[Tensor, "queries d"],
        contextual: Float[Tensor, "queries d"],
        scale: Float[Tensor, " queries"],
        genes: Int[Tensor, " queries"],
        total: Float[Tensor, " queries"],
        cell_level: Float[Tensor, " queries"] | None,
    ) -> Float[Tensor, " queries"]:
        """Predicted value of each query, float32."""
        parts = [decoded, contextual.to(decoded.dtype)] if self.sees_query else [decoded]
        scalars = [scale, torch.log1p(self.target_sum / total)] if self.kind == "truncated" else [scale]
        features = torch.cat([*parts, torch.stack(scalars, 1).to(decoded.dtype)], 1)
        raw = self.out(F.gelu(self.hidden(features))).squeeze(1).float()
        if self.kind == "truncated":
            return self.truncated_mean(self.level(genes) + raw, total)
        if self.kind == "additive":
            assert cell_level is not None
            return self.level(genes) + cell_level + raw
        if self.kind == "bias":
            raw = raw + self.level(genes)
        return F.softplus(raw)


class ExpresserModel(ExpresserPreTrainedModel):
    r"""The Expression Transformer.

    An encoder reads gene identities. A decoder predicts the values of masked genes :math:`\psi` from observed ones by cross-attention,

    .. math:: Q = T'_{\psi}, \quad K = T'_{\phi-\psi}, \quad V = E_{\phi-\psi},

    where :math:`E` embeds the bin of each observed value: values reach a prediction only through gene-gene attention.
    """

    def __init__(self, config: ExpresserConfig) -> None:
        super().__init__(config)
        self.decoder = nn.ModuleList(
            DecoderLayer(
                config.d_model,
                config.n_heads,
                config.feed_forward,
                dropout=config.dropout,
                residual=config.decoder_residual,
            )
            for _ in range(config.decoder_layers)
        )
        if config.decoder_layers > 1 and not config.decoder_residual:
            raise ValueError("decoder_layers > 1 needs decoder_residual=True: the paper's layer forgets its query.")
        sees_residual = config.value_input == "bin_residual"
        if sees_residual and config.head not in ("additive", "truncated"):
            raise ValueError(f"value_input='bin_residual' needs a head with a null prediction, not {config.head!r}.")
        self.residual_direction = nn.Parameter(torch.zeros(config.d_model)) if sees_residual else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.residual_direction is not None:
            nn.init.normal_(self.residual_direction, std=1.0)

    def forward(self, cells: Cells, views: Views) -> ExpresserOutput:
        """Predict each view's queries from its context; the encoder runs once a cell, however many views it has."""
        contextual = self.encode(cells.genes, cells.rows)
        scale = self._scale(cells, views)
        context_view, query_view = views.context_rows.row, views.query_rows.row
        seen = cells.values[views.context]
        bins = self._bins(seen, scale[context_view])

        cell_level, null = self._null(cells, views)
        residual = None if null is None else seen - null

        decoded = query_context = contextual.index_select(0, views.query)
        for layer in self.decoder:
            assert isinstance(layer, DecoderLayer)
            # A value is one of k vectors, so W^V is applied to the table of k and looked up, not to every observed gene.
            table, direction = layer.attention.values(
                self.expression_tokens.weight, self.residual_direction, like=contextual
            )
            values = F.embedding(bins, table)
            if direction is not None and residual is not None:
                values = values + residual[:, None].to(values.dtype) * direction
            decoded = layer(decoded, contextual, values, views.context, views.query_rows, views.context_rows)

        prediction = self.head(
            decoded,
            query_context,
            scale[query_view],
            cells.genes[views.query],
            cells.total[views.cell][query_view],
            None if cell_level is None else cell_level[query_view],
        )
        return ExpresserOutput(prediction=prediction, decoded=decoded, contextual=contextual)


class ExpresserWithoutDecoder(ExpresserPreTrainedModel):
    """The paper's ablation: standard encoder layers in the decoder's place, values added to the observed genes.

    Observed genes enter as contextual token + bin embedding, masked ones as contextual token + a learned mask embedding. Each
    view of a cell therefore needs its own pass through these layers: there is no encoding to share.
    """

    config_class = ExpresserWithoutDecoderConfig

    def __init__(self, config: ExpresserWithoutDecoderConfig) -> None:
        super().__init__(config)
        self.mask_token = nn.Embedding(1, config.d_model)
        self.mixer = Encoder(
            config.decoder_layers,
            config.d_model,
            config.n_heads,
            config.feed_forward,
            dropout=config.dropout,
            norm_first=config.norm_first,
        )
        self.post_init()

    def forward(self, cells: Cells, views: Views) -> ExpresserOutput:
        """Predict each view's queries from its context."""
        contextual = self.encode(cells.genes, cells.rows)
        scale = self._scale(cells, views)
        seen = cells.values[views.context]
        bins = self._bins(seen, scale[views.context_rows.row])
        cell_level, _ = self._null(cells, views)

        rows = Ragged(views.query_rows.lengths + views.context_rows.lengths)
        query_slot = rows.starts[views.query_rows.row] + views.query_rows.offset
        context_slot = (rows.starts + views.query_rows.lengths)[views.context_rows.row] + views.context_rows.offset
        query_context = contextual.index_select(0, views.query)
        tokens = contextual.new_zeros(rows.n_entries, contextual.shape[1])
        tokens = tokens.index_copy(0, query_slot, query_context + self.mask_token.weight.to(contextual.dtype))
        observed = contextual.index_select(0, views.context) + self.expression_tokens(bins).to(contextual.dtype)
        decoded = self.mixer(tokens.index_copy(0, context_slot, observed), rows).index_select(0, query_slot)

        query_view = views.query_rows.row
        prediction = self.head(
            decoded,
            query_context,
            scale[query_view],
            cells.genes[views.query],
            cells.total[views.cell][query_view],
            None if cell_level is None else cell_level[query_view],
        )
        return ExpresserOutput(prediction=prediction, decoded=decoded, contextual=contextual)


NETWORKS: dict[str, type[ExpresserPreTrainedModel]] = {
    ExpresserConfig.model_type: ExpresserModel,
    ExpresserWithoutDecoderConfig.model_type: ExpresserWithoutDecoder,
}


def register() -> None:
    """Make ``AutoConfig`` and ``AutoModel`` know the model and its ablation."""
    AutoConfig.register(ExpresserConfig.model_type, ExpresserConfig, exist_ok=True)
    AutoConfig.register(ExpresserWithoutDecoderConfig.model_type, ExpresserWithoutDecoderConfig, exist_ok=True)
    AutoModel.register(ExpresserConfig, ExpresserModel, exist_ok=True)
    AutoModel.register(ExpresserWithoutDecoderConfig, ExpresserWithoutDecoder, exist_ok=True)


register()

"""Which weights of a pretrained model are its last blocks: those that train on the few cells of another task."""

from expresser.errors import InputError
from expresser.model.modeling import ExpresserPreTrainedModel


def block_parameters(model: ExpresserPreTrainedModel, blocks: int) -> list[str]:
    """Names of the weights of the last `blocks` blocks: the decoder's layers, then the encoder's, from their ends.

    With the last block go the prediction head and what the decoder reads values with; with the encoder's last layer its final
    norm. Gene tokens and gene levels are never trained: few cells would move those of the genes they express alone.

    Raises
    ------
    InputError
        Where the model does not have so many blocks.
    """
    decoder = "mixer.layers" if hasattr(model, "mixer") else "decoder"
    n_decoder, n_encoder = model.config.decoder_layers, model.config.n_layers
    if not 0 <= blocks <= n_decoder + n_encoder:
        raise InputError(
            f"{blocks} blocks are to train, and this model has {n_decoder + n_encoder} blocks ({n_encoder} of the encoder, "
            f"{n_decoder} of the decoder). Give 0 to {n_decoder + n_encoder}."
        )
    if not blocks:
        return []
    of_decoder = min(blocks, n_decoder)
    wanted = [f"{decoder}.{i}." for i in range(n_decoder - of_decoder, n_decoder)]
    wanted += ["head.hidden.", "head.out.", "mask_token.", "expression_tokens.", "residual_direction", "mixer.norm."]
    if blocks > n_decoder:
        wanted += [f"encoder.layers.{i}." for i in range(n_encoder - (blocks - n_decoder), n_encoder)]
        wanted.append("encoder.norm.")
    return [name for name, _ in model.named_parameters() if name.startswith(tuple(wanted))]

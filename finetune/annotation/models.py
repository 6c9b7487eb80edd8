"""The models that an annotation run compares, by name, and what they are like without pretraining."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expresser.checkpoint import Checkpoint, load, random_checkpoint
from expresser.errors import InputError
from finetune.annotation.rows import BASELINES
from finetune.embeddings.reading import model_name, split_spec

RANDOM = "random"


def load_models(models: Sequence[str]) -> dict[str, Checkpoint]:
    """Models by the name of their row: ``NAME=SPEC`` or ``SPEC``."""
    found: dict[str, Checkpoint] = {}
    for spec in models:
        name, where = split_spec(spec)
        name = name or model_name(where)
        if name in found or name in BASELINES or name.split(" ")[0] == RANDOM:
            taken = f"two models are called {name!r}" if name in found else f"{name!r} is the name of a baseline"
            raise InputError(f"models: {taken}. Give another: NAME={where}.")
        found[name] = load(where)
    return found


@dataclass(frozen=True, eq=False)
class Control:
    """A model with random weights: its row, and the model that it is shaped like and shares its vocabulary with."""

    name: str
    like: str
    checkpoint: Checkpoint


def random_controls(checkpoints: Mapping[str, Checkpoint], seed: int) -> list[Control]:
    """One for each shape and vocabulary among the models."""
    found: list[Control] = []
    shapes = []
    for name, checkpoint in checkpoints.items():
        config = checkpoint.model.config.to_dict()
        fields = {k: v for k, v in config.items() if not k.startswith("_") and k != "transformers_version"}
        shape = (fields, checkpoint.vocab.sha256)
        if shape not in shapes:
            shapes.append(shape)
            row = RANDOM if not found else f"{RANDOM} ({name})"
            found.append(Control(row, name, random_checkpoint(checkpoint, seed=seed)))
    return found

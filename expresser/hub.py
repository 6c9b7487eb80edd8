"""Put a model on the hub as one commit: a pretrained model, or a fitted translator."""

import fnmatch
import re
import tempfile
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from expresser import checkpoint
from expresser.checkpoint import Checkpoint
from expresser.errors import InputError
from expresser.foreign import LARGE, SMALL, file_in, read_mapping
from expresser.foreign_tensors import tensor_shapes
from expresser.hub_client import HUB_NAME, commit
from expresser.model_card import PLACE, model_card

# What `translate` writes as one model; the core knows it by its files.
TRANSLATOR_FILES = ("config.json", "model.safetensors", "inputs.json", "inputs.safetensors", "run.json", "README.md")
# Weights as transformers' own push cuts them: beside ours they would be a second model.
_SHARDED = ("model-*-of-*.safetensors", "model.safetensors.index.json")


def push(
    model: str | Path | Checkpoint,
    repo: str,
    *,
    revision: str | None = None,
    private: bool = False,
    license: str | None = None,
) -> str:
    """Upload a model and return the address of the commit; from then on `repo` is a name for it wherever a model is asked for.

    Only the files of the model go up, the run record among them (which names the command, the machine and the sources), and
    never the training state. All are checked first. One commit holds them, and files of an older push that this model does not
    have go with it; what else is in the repository stays. An upload that broke off is repeated by the same call.

    Parameters
    ----------
    model
        The folder of a pretrained model, of a run (its final model, else its newest checkpoint), of a translator or its fit; or
        a loaded checkpoint.
    repo
        org/name; made where it does not exist.
    revision
        A branch, made where it does not exist; None: main.
    private
        Make a new repository private.
    license
        Of the weights, as the hub spells it (apache-2.0, cc-by-4.0 …). None: what the card says, which is `unknown` unless
        somebody wrote it there: what data may be used for, and so what comes of them, is not this program's to say.

    Raises
    ------
    InputError
        If the folder holds no whole model, the name is none, or the hub refuses.
    """
    if not re.fullmatch(HUB_NAME, repo):
        raise InputError(f"{repo}: a push goes to a model of the hub, org/name (revision names a branch).")
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise InputError(
            f"license {license!r}: name it as the hub does, such as apache-2.0, cc-by-4.0, cc-by-nc-4.0 or other "
            "(huggingface.co/docs/hub/repositories-licenses)."
        )
    if isinstance(model, Checkpoint):
        with tempfile.TemporaryDirectory(prefix="expresser-") as temporary:
            folder = checkpoint.save(Path(temporary) / "model", model.model, model.vocab, model.run)
            return push(folder, repo, revision=revision, private=private, license=license)
    folder, files = whole_model(model)
    run = read_mapping(folder / "run.json")
    held: dict[str, Path | bytes] = {name: folder / name for name in files}
    held["README.md"] = _card(folder, run, f"{repo}@{revision}" if revision else repo, license).encode()
    step = f", step {run['step']:,}" if isinstance(run.get("step"), int) else ""
    return commit(
        repo,
        held,
        repo_type="model",
        message=f"{_title(folder, run)}{step}",
        stale=_is_ours,
        what="model",
        revision=revision,
        private=private,
    )


def whole_model(model: str | Path) -> tuple[Path, tuple[str, ...]]:
    """The folder of a model on this disk and the files it consists of, after all of them were read and found whole."""
    if not Path(model).is_dir():
        raise InputError(
            f"{model}: no such folder. A push takes the folder of a model, of a pretraining run or of a translator's fit."
        )
    folder = checkpoint.model_folder(Path(model))
    if (folder / "inputs.json").is_file() or (folder / "inputs.safetensors").is_file():
        if missing := [name for name in TRANSLATOR_FILES if not (folder / name).is_file()]:
            raise InputError(
                f"{folder}: not a whole translator: {', '.join(missing)} missing. One holds {', '.join(TRANSLATOR_FILES)}."
            )
        _check_parts(folder, TRANSLATOR_FILES)
        return folder, TRANSLATOR_FILES
    checkpoint.load(folder)
    return folder, checkpoint.FILES


def _check_parts(folder: Path, files: tuple[str, ...]) -> None:
    """Each is a file of the folder's own; tables of weights are what their head says, records are JSON; how they belong together,
    `translate` knows."""
    for path in (file_in(folder, name) for name in files):
        if path.suffix == ".safetensors":
            tensor_shapes(path)
        elif path.suffix == ".json":
            read_mapping(path, most=LARGE)


def _card(folder: Path, run: dict[str, object], name: str, license: str | None) -> str:
    """The folder's card, as it was written or as people have edited it since, with the model's new name and licence."""
    path = folder / "README.md"
    try:
        text = file_in(folder, path.name, most=SMALL).read_text(encoding="utf-8") if path.exists() else model_card(run)
        text = text.replace(PLACE, name)
        card = ModelCard(text)
    except InputError:
        raise
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: the lines between --- at its head are not what the hub reads ({' '.join(str(error).split())}). "
            "Mend them, or remove the file: it is then written from run.json."
        ) from error
    if license is None:
        return text
    card.data["license"] = license
    return str(card)


def _title(folder: Path, run: dict[str, object]) -> str:
    config = read_mapping(folder / "config.json")
    return f"Translator {config['system']}" if "system" in config else f"Expression Transformer {run.get('recipe', '')}"


def _is_ours(name: str) -> bool:
    return name in {*checkpoint.FILES, *TRANSLATOR_FILES} or any(fnmatch.fnmatch(name, sharded) for sharded in _SHARDED)

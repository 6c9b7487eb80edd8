"""Every annotated shape and type is checked while the tests run; production pays nothing."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Imported before the hook: transformers turns configurations into dataclasses whose __init__ takes fields of the base class,
# which jaxtyping's check of dataclasses does not know.
import expresser.model.configuration  # noqa: F401

_hook = install_import_hook(["expresser", "pretrain", "finetune", "translate"], "beartype.beartype")


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of small real data sets; tests that take it are marked `realdata`."""
    folder = os.environ.get("EXPRESSER_DATA")
    if not folder:
        pytest.skip("EXPRESSER_DATA is not set: no real data to read")
    return Path(folder).resolve()

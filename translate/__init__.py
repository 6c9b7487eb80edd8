"""Translation between modalities of single cells: published systems on one engine, judged beside baselines.

``translate.fit("babel", mdata)`` and ``translate.load(folder)`` give a `translate.model.Model`; `read_study` reads cells.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from translate.data import read_study as read_study
    from translate.model import Model as Model
    from translate.model import fit as fit
    from translate.model import load as load

_AT = {"fit": "translate.model", "load": "translate.model", "Model": "translate.model", "read_study": "translate.data"}


def __getattr__(name: str) -> Any:
    """These names on first use: the commands import this package, and must not wait for torch."""
    if name not in _AT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_AT[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_AT})

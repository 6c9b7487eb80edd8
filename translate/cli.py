"""``expresser translate list|count|fit|tune|predict|embed|…``: the verbs. Heavy imports wait until a command runs."""

from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from expresser.cli import Command
from translate import cli_fit, cli_label, cli_tune
from translate.cli_count import count
from translate.cli_judge import evaluate, openproblems
from translate.cli_match import match
from translate.cli_perturb import perturb
from translate.cli_use import embed, predict


def list_systems() -> None:
    """Say which systems there are: what they need, where they go, when to choose which.

    Example: expresser translate list
    """
    import textwrap

    from translate.registry import SYSTEMS

    for name, kind in SYSTEMS.items():
        published = kind.published
        ways = [f"{source} to {to}" for source, to in published.directions if source != to]
        if kind.embeds:
            ways = [f"an embedding of {source}, and {to} imputed" for source, to in published.directions]
        rows = {
            "gives" if kind.embeds else "directions": ", ".join(ways),
            "needs": published.pairing,
            "choose it for": published.choose,
            "presets": ", ".join(kind.presets),
            "paper": f"{published.reference} doi:{published.doi}",
        }
        print(f"{name}  ({published.name})")
        for label, text in rows.items():
            print(textwrap.fill(text, 110, initial_indent=f"  {label:<14} ", subsequent_indent=" " * 17))
        print()
    print("Options of a system: expresser translate fit SYSTEM --help")


def fit(system: Annotated[str, tyro.conf.Positional]) -> None:
    """Fit a system, judge it on held-out cells beside baselines, and write one page about it.

    Args:
        system: A name of `translate list`; its options: expresser translate fit SYSTEM --help
    """
    raise AssertionError(f"{system}: the options of fit depend on the system; translate.cli_fit parses them.")


def tune(system: Annotated[str, tyro.conf.Positional]) -> None:
    """Fit a grid of configurations, rank them by validation cells, and judge the best one.

    Args:
        system: A name of `translate list`; its options: expresser translate tune SYSTEM --help
    """
    raise AssertionError(f"{system}: the options of tune depend on the system; translate.cli_tune parses them.")


def _systems() -> list[str]:
    from translate.registry import SYSTEMS

    return list(SYSTEMS)


def _tunable() -> list[str]:
    from translate.registry import SYSTEMS

    return [name for name, kind in SYSTEMS.items() if not kind.embeds]


def _run(argv: Sequence[str]) -> None:
    if list(argv[:1]) == ["tune"]:
        cli_tune.run(argv[1:])
        return
    if list(argv[:1]) == ["fit"]:
        cli_fit.run(argv[1:])
        return
    verbs: dict[str, Any] = {
        "list": list_systems,
        "count": count,
        "fit": fit,
        "tune": tune,
        "predict": predict,
        "embed": embed,
        "match": match,
        "evaluate": evaluate,
        "label": cli_label.label,
        "perturb": perturb,
        "openproblems": openproblems,
    }
    tyro.extras.subcommand_cli_from_dict(verbs, prog="expresser translate", description=COMMAND.help, args=list(argv))


COMMAND = Command(
    name="translate",
    summary="Translate between RNA, ATAC and protein of single cells.",
    example=cli_fit.EXAMPLE,
    run=_run,
    named={"fit": _systems, "tune": _tunable},
)

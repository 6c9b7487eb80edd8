"""``expresser demo``: every stage on simulated cells, each through the command that a user would type, and one page about all."""

from pathlib import Path

from rich.console import Console

from expresser.demo.plan import FULL, SMALL, Size, stages
from expresser.demo.running import Record, run_stages

__all__ = ["FULL", "SMALL", "Size", "demo"]


def demo(out: Path, *, seed: int = 0, size: Size = FULL) -> Path:
    """Run all stages and write ``out/report.html``; returns its path. Interrupted, the same call goes on.

    Simulated data, a corpus, pretraining, imputation and cell embeddings, gene tasks, two translators and an embedder, each judged
    on cells it has not seen beside baselines. The numbers of the page, and of ``out/metrics.json``, are those that the commands
    wrote into ``out/runs`` and ``out/cells``.

    Raises
    ------
    InputError
        If ``out`` holds anything but a demo of this size, seed and version.
    """
    from expresser.demo.page import write_page  # here: scanpy and what draws cost seconds, which a refusal need not

    console = Console(stderr=True)
    plan = stages(out, size, seed)
    record = Record(out, size, seed)
    run_stages(plan, record, console)
    console.rule("[bold]Report")
    path = write_page(out, size, seed, plan, record)
    print(f"report: {path}")
    return path

"""How fast a training step is: the paper's recipe written plainly, ours, and encoders of the same size that others pretrain.

    EXPRESSER_DATA=folder python scripts/bench_step.py --threads 2 --out step.jsonl --plot step.svg
    python scripts/bench_step.py --lengths deep --cases paper_naive full --device cuda --cells 256 --max-tokens 65536 --steps 10
    python scripts/bench_step.py --small --steps 2 --cells 4                                         # does it work?

A step is what the loop does with a batch of cells that is in memory: normalise, draw masks, forward, backward, clip, AdamW. Paper's
size: 12 layers, d 200, 4 heads, 18,483 genes. Each case is a process of its own (its peak memory is its own), all take turns on
the same cells, and a ratio is of two steps on the same cells in the same round: median and range over rounds.

Cases:
  paper_naive        every cell padded to 1,100 genes, nn.TransformerEncoder, one random mask a cell, fp32: what factors are against
  paper              the same model and pretext: packed, bf16
  full_fp32, full    every gene a target (all folds of one encoding), packed; fp32 and bf16
  full_512           full, with a fresh subset of at most 512 genes of each cell
  bert               a BERT over genes in order of expression, 15 % masked, bf16 (Geneformer's pretext)
  value_input        gene token + value into nn.TransformerEncoder, one mask a cell, bf16 (scGPT's); value_input_folds: a pass for
                     each of four masks, which is what it takes there to ask every gene

Lengths (non-zero genes a cell): deep, 10x v3 PBMC, most above 1,100; middle, 10x v1 PBMC; shallow, SNARE-seq cell lines. Real cells
and genes from EXPRESSER_DATA; simulated ones of like lengths where it is not set, and the line says so.

One JSON line a case and lengths, appended to --out as it is found; lines that are there are not measured again. `cells_per_s`,
`tokens_per_s` (genes shown, no padding), `targets_per_s` (masked genes predicted), `flops_per_s` (matrix products that the model's
formula needs, backward = 2 x forward; padding is none of them), `mfu` = that over the best matrix product measured here in the
same precision, `peak_mb`, `parameters`, `seconds` and `cpu_seconds` of each step (one thread: where they differ, something else had
the core), and `cells_ratio`, `targets_ratio` against paper_naive as [median, least, most].
"""

import argparse
import tempfile
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from _lines import finished, write
from _step_cases import CASES, Setting, serve
from _step_cells import LENGTHS, corpus, described

from expresser.record import provenance

REFERENCE = "paper_naive"
RATES = ("cells", "tokens", "targets", "flops")


@dataclass
class Runner:
    """A case's process and what it has measured."""

    process: Any
    pipe: Any

    @classmethod
    def start(cls, name: str, setting: Setting) -> "Runner":
        """Load the model in a new process; forking would copy this one's threads' locks."""
        context = get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(name, setting, there), daemon=True)
        process.start()
        there.close()
        return cls(process, here)

    def ask(self, number: int | None) -> dict[str, Any]:
        """A step's measurements, or with None the facts of the process."""
        self.pipe.send(number)
        return self.pipe.recv()

    def stop(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join()


def measure(names: list[str], setting: Setting, steps: int) -> dict[str, dict[str, Any]]:
    """Steps of each case in turn; the first is not counted, and another case begins each round."""
    runners = {name: Runner.start(name, setting) for name in names}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    try:
        for runner in runners.values():
            runner.pipe.recv()  # all have loaded
        for number in range(steps + 1):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                found[name].append(runners[name].ask(number))
                if setting.device == "cpu":
                    print(f"  {setting.lengths} step {number} {name}: {found[name][-1]['seconds']:.2f} s", flush=True)
        facts = {name: runners[name].ask(None) for name in names}
    finally:
        for runner in runners.values():
            runner.stop()
    # Processes of one precision have one ceiling; the best that any of them saw is nearest to it.
    ceilings: dict[str, float] = {}
    for fact in facts.values():
        ceilings[fact["precision"]] = max(ceilings.get(fact["precision"], 0.0), fact["ceiling"])
    return {
        name: summary(found[name][1:], found.get(REFERENCE, [])[1:])
        | facts[name]
        | {"ceiling": ceilings[facts[name]["precision"]]}
        for name in names
    }


def summary(steps: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds, and ratios of rounds."""
    line: dict[str, Any] = {f"{what}_per_s": median(step[what] / step["seconds"] for step in steps) for what in RATES}
    for clock in ("seconds", "cpu_seconds"):
        line[clock] = [round(step[clock], 4) for step in steps]
    for what in ("cells", "targets"):
        ratios = [
            step[what] / step["seconds"] * other["seconds"] / other[what] for step, other in zip(steps, reference)
        ]
        line[f"{what}_ratio"] = [median(ratios), min(ratios), max(ratios)] if ratios else None
    return line


def table(lines: list[dict[str, Any]]) -> str:
    """The lines as Markdown, one block for each kind of cells."""
    text = []
    for lengths in dict.fromkeys(line["lengths"] for line in lines):
        here = [line for line in lines if line["lengths"] == lengths]
        one = here[0]
        low, middle, high = one["genes_5_50_95"]
        text += [
            f"\n{lengths}: {one['cells_from']}, {middle:,} genes a cell ({low:,} to {high:,}), "
            f"{one['threads']} threads, {one['device']}",
            "| case | cells/s | targets/s | tokens/s | MFU | peak MB | cells/s, x naive | targets/s, x naive |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for line in here:
            ratios = [
                "" if ratio is None else f"{ratio[0]:.1f} ({ratio[1]:.1f} to {ratio[2]:.1f})"
                for ratio in (line["cells_ratio"], line["targets_ratio"])
            ]
            rates = " | ".join(
                f"{line[f'{what}_per_s']:,.{what == 'cells':d}f}" for what in ("cells", "targets", "tokens")
            )
            text.append(f"| {line['name']} | {rates} | {line['mfu']:.1%} | {line['peak_mb']} | {' | '.join(ratios)} |")
    return "\n".join(text)


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Targets a second of each case, a panel for each kind of cells."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(line["lengths"] for line in lines))
    figure = Figure(figsize=(3.6 * len(kinds) + 1.2, 3.2), layout="constrained")
    for axes, lengths in zip(figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0], kinds):
        here = [line for line in lines if line["lengths"] == lengths]
        bars = axes.barh([line["name"] for line in here], [line["targets_per_s"] for line in here], color="#3b6ea5")
        axes.bar_label(bars, [f"{line['targets_per_s']:,.0f}" for line in here], padding=3, fontsize=8)
        axes.margins(x=0.25)
        axes.set(title=f"{here[0]['cells_from']}\n{here[0]['genes_5_50_95'][1]:,} genes a cell", xlabel="targets / s")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", default=list(LENGTHS), choices=list(LENGTHS))
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each case (default: 3)")
    parser.add_argument("--cells", type=int, default=16, help="cells a step (default: 16)")
    parser.add_argument(
        "--max-tokens", type=int, default=17_600, help="padded tokens of a micro-batch (default: 16 x 1,100)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of each process (default: 2)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="JSON lines; a run that was cut off goes on with it")
    parser.add_argument("--plot", type=Path, help="a figure of targets/s (svg, png, pdf)")
    parser.add_argument("--small", action="store_true", help="two layers of width 32: whether it works, not how fast")
    options = parser.parse_args()
    there, lines = finished(options.out), []
    with tempfile.TemporaryDirectory() as folder:
        for lengths in options.lengths:
            setting = Setting(
                lengths=lengths,
                folder=Path(folder) / lengths,
                cells=options.cells,
                max_tokens=options.max_tokens,
                threads=options.threads,
                device=options.device,
                small=options.small,
            )
            lines += measured(setting, options.cases, options.steps, there, options.out)
    print(table(lines))
    if options.plot is not None:
        plot(lines, options.plot)


def measured(
    setting: Setting, cases: list[str], steps: int, there: dict[str, dict[str, Any]], out: Path | None
) -> list[dict[str, Any]]:
    """The lines of one kind of cells: those that are there, and the others measured beside a fresh reference."""
    facts = described(setting.lengths, corpus(setting.lengths, setting.folder))
    made = f"{setting.cells} cells, {setting.max_tokens} tokens, {steps} steps, {setting.threads} threads, {setting.device}"
    keys = {
        name: f"{facts['cells_from']}, {name}{' small' if setting.small else ''}, {made}"
        for name in CASES
        if name in cases
    }
    missing = [name for name, key in keys.items() if key not in there]
    beside = [REFERENCE] if missing and REFERENCE not in missing else []
    found = measure([*beside, *missing], setting, steps) if missing else {}
    for name in missing:
        line = found[name]
        there[keys[name]] = (
            {"key": keys[name], "name": name, "what": CASES[name].what}
            | facts
            | {"cells_a_step": setting.cells, "max_tokens": setting.max_tokens, "small": setting.small}
            | {"threads": setting.threads, "device": setting.device}
            | line
            | {"mfu": line["flops_per_s"] / line["ceiling"]}
            | {"provenance": provenance(seed=0)}
        )
        if out is not None:
            write(out, there[keys[name]])
    return [there[key] for key in keys.values()]


if __name__ == "__main__":
    main()

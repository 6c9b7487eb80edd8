"""Every parser's law over as many drawn inputs as asked for: uv run python scripts/fuzz.py --cases 5000 --out fuzz.json

A target is a parser and its law (tests/fuzz_*.py): an input is refused with InputError, or what was read is what was there.
Each target runs in a process of its own, within a bound of memory, so that a library that crashes or swells over a damaged
file is a finding too. The JSON counts, for each target, the inputs tried and those that were read, and holds what broke the law.
"""

import argparse
import faulthandler
import importlib
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
MEMORY_GB = 12  # of addresses, of which torch's and numba's libraries take some


def targets(checked: bool) -> dict:
    """All targets by name; checked: with every annotated shape and type, as in the tests, which takes half as long again."""
    if checked:
        importlib.import_module("conftest")
    for part in ("cells", "damage", "genes", "labels", "regions", "settings"):
        importlib.import_module(f"fuzz_{part}")
    from fuzzing import TARGETS

    return TARGETS


def told(error: BaseException) -> str:
    """What broke the law, where, and with which input, in a few lines each."""
    if isinstance(error, BaseExceptionGroup):
        return "\n\n".join(map(told, error.exceptions))
    causes, cause = [], error
    while cause is not None:
        frames = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(cause.__traceback__)]
        causes.append(f"{type(cause).__name__}: {str(cause)[:800]}\n  at {' < '.join(reversed(frames[-7:]))}")
        cause = cause.__cause__
    return "\n".join([*causes, *(note[:1500] for note in getattr(error, "__notes__", []))])


def one(law: Any, cases: int, seed: int, plain: bool, out: Path) -> None:
    """One target in this process, a child that may die of it; writes its line."""
    with out.with_suffix(".txt").open("w") as said:
        faulthandler.enable(said)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_GB << 30,) * 2)
        began, broke = time.process_time(), None
        try:
            (law.run_plain if plain else law.run)(cases, seed)
        except BaseException as error:
            broke = told(error)
        spent = round(time.process_time() - began, 1)
        out.write_text(json.dumps({"tried": law.tally.tried, "read": law.tally.read, "cpu_s": spent, "broke": broke}))


def main() -> int:
    """Runs the targets; 1 where a law was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+", help="names of targets (without it, all); --list shows them")
    parser.add_argument("--cases", type=int, default=1000, help="inputs of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="targets at once")
    parser.add_argument("--out", type=Path, help="JSON of the counts")
    parser.add_argument("--checked", action="store_true", help="check annotated shapes and types too, as the tests do")
    parser.add_argument(
        "--plain", action="store_true", help="damaged files alone, by plain random numbers: many times as fast"
    )
    parser.add_argument("--list", action="store_true", help="name the targets and stop")
    given = parser.parse_args()
    laws = targets(given.checked)
    names = [name for name, law in laws.items() if law.plain is not None or not given.plain]
    if given.list:
        print("\n".join(names))
        return 0
    if unknown := [name for name in given.target or () if name not in names]:
        print(f"no target {unknown[0]!r}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    found: dict[str, dict] = {}

    def run(name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            line = Path(folder) / "line.json"
            # Forked: imports, and the checks of types compiled into them, take ten seconds.
            context = multiprocessing.get_context("fork")
            laws[name].watch = context.Array("q", 2)
            child = context.Process(target=one, args=(laws[name], given.cases, given.seed, given.plain, line))
            child.start()
            child.join()
            said = line.with_suffix(".txt").read_text()[:3000] if line.with_suffix(".txt").is_file() else ""
            tried, read = laws[name].watch
            crashed = {"tried": tried, "read": read, "broke": f"exit {child.exitcode} after {tried} inputs: {said}"}
            found[name] = json.loads(line.read_text()) if line.is_file() else crashed
        held = found[name]
        print(
            f"{len(found):>3}/{len(given.target or names)}  {name}: {held['tried']:,} tried, {held['read']:,} read",
            flush=True,
        )
        if held["broke"]:
            print(held["broke"], flush=True)
        if given.out is not None:
            total = sum(item["tried"] for item in found.values())
            record = {"seed": given.seed, "tried": total, "targets": dict(sorted(found.items()))}
            given.out.write_text(json.dumps(record, indent=1) + "\n")

    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(run, given.target or names))
    broken = [name for name, held in found.items() if held["broke"]]
    tried = sum(held["tried"] for held in found.values())
    print(f"{tried:,} inputs of {len(found)} targets; the law was broken by {', '.join(broken) or 'none'}")
    return bool(broken)


if __name__ == "__main__":
    raise SystemExit(main())

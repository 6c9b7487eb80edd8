"""Kill commands at random moments and look at what is left: the old output, the new one, work that is gone on with, or a third thing.

    python scripts/kill_trials.py --what all --moments 50 --out kill_trials.jsonl

Half of the moments are uniform over the time that the command takes, half are one of its steps of the file system (a file opened to
be written, a rename, a removal, a lock), so that short windows are hit as well. After each kill the output is compared with what it
was and with that of an undisturbed run, the same command is given again (with --resume where there is something to resume), and its
result is compared with the undisturbed one: byte by byte, but for the times and machines that records hold. One JSON line a command.
"""

import argparse
import importlib
import json
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import _lines
import numpy as np
from anndata import read_h5ad
from killing import count_steps, forked, hidden, seen, wait
from pandas.util import hash_array

from expresser import checkpoint, cli
from expresser.atomic import write_text
from expresser.corpus.manifest import read_manifest
from expresser.corpus.verify import verify_corpus
from expresser.genes import GeneVocab
from expresser.run_files import read_log

_TIMES = {
    "seconds",
    "time_utc",
    "cells_per_s",
    "tokens_per_s",
    "targets_per_s",
    "flops_per_s",
    "mfu",
    "wait_share",
    "peak_mb",
}
_NOT_COMPARED = ("report.html", "run.json", "README.md", "source.json")  # hold times, or are drawn of what does
_PRETRAIN = (
    "pretrain demo --data.global_batch 16 --data.valid_cells 32 --data.max_tokens 2048 --data.max_genes 64 "
    "--model.d_model 16 --model.n_layers 1 --model.n_heads 2"
)


_OLD = '<meta name="generator" content="expresser"> old'
_SIMULATE = "simulate multiome --cells 120 --genes 80 --peaks 300 --types 3 --programs 2"
_BUILT = "--min-genes 1 --workers 1"
_FIT = (
    "translate fit babel --rna {data}/rna.h5ad --atac {data}/atac.h5ad --config.epochs 4 --no-evaluate "
    "--config.rna.min-genes 0 --config.atac.min-cells 1"
)


@dataclass
class Job:
    """A command that makes `out` in a folder. begin: puts the old output there. begun: whether what is there can be gone on with."""

    words: Callable[[Path], list[str]]
    out: str
    begin: Callable[[Path], None] = lambda at: None
    begun: Callable[[Path], bool] = lambda out: False
    finished_twice: bool = False  # said of a command that refuses to do again what is done
    resumes: bool = False

    def again(self, at: Path) -> list[str]:
        """The command that is given after a kill."""
        return [*self.words(at), *(["--resume"] if self.resumes and (at / self.out / "run.json").is_file() else [])]


def plain(value: Any) -> Any:
    """A mapping without times."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in _TIMES and key != "provenance"}
    return [plain(item) for item in value] if isinstance(value, list) else value


def state(out: Path) -> dict[str, Any] | None:
    """What is compared of an output: digests of files; of JSON the content without times; None where there is nothing."""
    if not out.exists():
        return None
    if out.is_file():
        return state_of_file(out)
    found: dict[str, Any] = {}
    for name, digest in seen(out).items():
        path = out / name
        if path.name in _NOT_COMPARED:
            found[name] = "there"
        elif path.suffix == ".json":
            found[name] = plain(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = plain(read_log(path))
        else:
            found[name] = digest
    return found or None


def state_of_file(out: Path) -> dict[str, Any]:
    """Of a page its numbers beside it, and that it is whole; of an AnnData its values, as its uns holds the time."""
    if out.read_bytes() == _OLD.encode():
        return {"": "old"}
    if out.suffix == ".html":
        beside = out.with_suffix(".json")
        numbers = plain(json.loads(beside.read_text())) if beside.exists() else None
        return {"": out.read_text().rstrip().endswith("</html>"), "numbers": numbers}
    adata = read_h5ad(out)
    values = [adata.X, *adata.obsm.values()]
    return {str(i): hash_array(np.asarray(getattr(v, "data", v)).ravel()).sum() for i, v in enumerate(values)}


def run(words: list[str]) -> None:
    """The command, as `expresser` runs it, with a fit's state saved after every epoch."""
    from translate.trainer import Trainer

    Trainer.save_seconds = 0.0
    Trainer.__init__.__defaults__ = tuple(
        0.0 if value == 30.0 else value for value in Trainer.__init__.__defaults__ or ()
    )
    cli.main(words)


def whole_checkpoints(out: Path) -> bool:
    """Every checkpoint that a run's folder names can be loaded, state included."""
    from pretrain.state import load_state

    for folder in checkpoint.list_checkpoints(out):
        checkpoint.load(folder), load_state(folder)
    return (out / "run.json").is_file() or not any(out.iterdir())


def whole_fit(out: Path) -> bool:
    """The state of a fit, and its model, can be loaded where they are there."""
    from translate import saving
    from translate.state import load_state

    load_state(out / "state")
    if (out / "model").is_dir():
        saving.load(out / "model")
    return (out / "run.json").is_file() or not any(path for path in out.iterdir() if not path.name.startswith("."))


def unnumbered(out: Path) -> bool:
    """A page whose numbers, which come last, are not there yet."""
    return not out.with_suffix(".json").exists()


def resumable(out: Path) -> bool:
    """A task's folder whose metrics are not written yet, or whose kept parts are not all removed: the same command goes on."""
    return not (out / "metrics.json").exists() or (out / "state").exists()


def jobs(data: Path) -> dict[str, Job]:
    """All commands, on the data that `prepare` made."""

    def file(name: str) -> Callable[[Path], None]:
        return lambda at: write_text(at / name, _OLD) and None

    def job(words: str, out: str, **more: Any) -> Job:
        return Job(lambda at: shlex.split(words.format(data=data, out=at / out)), out, **more)

    return {
        "corpus": job(f"corpus build {{data}}/rna.h5ad {{data}}/other.h5ad {_BUILT} --out {{out}}", "corpus"),
        "append": job(
            "corpus append {out} {data}/other.h5ad --workers 1",
            "corpus",
            begin=lambda at: shutil.copytree(data / "corpus", at / "corpus") and None,
            finished_twice=True,
        ),
        "pretrain": job(
            f"{_PRETRAIN} --corpus {{data}}/corpus --out {{out}} --data.max_steps 8 --save_every 1 --eval_every 4",
            "run",
            begun=whole_checkpoints,
            resumes=True,
        ),
        "translate": job(f"{_FIT} --out {{out}}", "fit", begun=whole_fit, resumes=True),
        "finetune": job(
            "finetune gene --labels {data}/labels.tsv --embeddings {data}/model --folds 2 --repeats 1 --out {out}",
            "run",
            begun=resumable,
        ),
        "embed": job("embed {data}/model {data}/rna.h5ad --out {out}", "out.h5ad", begin=file("out.h5ad")),
        "predict": job(
            "translate predict {data}/babel --input {data}/rna.h5ad --to atac --out {out}",
            "out.h5ad",
            begin=file("out.h5ad"),
        ),
        "report": job(
            "report {data}/run {data}/run2 --out {out}", "page.html", begin=file("page.html"), begun=unnumbered
        ),
    }


def prepare(data: Path, wanted: set[str]) -> None:
    """Small simulated data, a corpus, models and runs: what the commands read."""

    def made(words: str) -> None:
        run(shlex.split(words.format(data=data)))

    def make() -> None:
        for seed, name in ((0, "rna"), (1, "other")):
            made(f"{_SIMULATE} --seed {seed} --out {{data}}/sim{seed}")
            shutil.copyfile(data / f"sim{seed}" / "rna.h5ad", data / f"{name}.h5ad")
        shutil.copyfile(data / "sim0" / "atac.h5ad", data / "atac.h5ad")
        made(f"corpus build {{data}}/rna.h5ad {_BUILT} --out {{data}}/corpus")
        if wanted <= {"corpus", "append", "pretrain", "translate"}:
            return
        for seed, name in ((0, "run"), (1, "run2")):
            made(f"{_PRETRAIN} --corpus {{data}}/corpus --data.max_steps 3 --seed {seed} --out {{data}}/{name}")
        shutil.copytree(data / "run" / "model", data / "model")
        genes = GeneVocab.load(data / "corpus" / "genes.tsv").ids
        write_text(data / "labels.tsv", "gene\tlabel\n" + "".join(f"{gene}\t{i % 2}\n" for i, gene in enumerate(genes)))
        if "predict" in wanted:
            made(f"{_FIT} --out {{data}}/babel")

    log = data / "prepare.log"
    ended = wait(forked(make, root=data, output=log), seconds=900)
    if ended != 0:
        raise SystemExit(f"preparing ended with {ended}:\n{log.read_text()[-3000:]}")


def kind_of_state(job: Job, out: Path, old: Any, new: Any) -> str:
    """What a kill left: "old", "new", "begun" (it is gone on with) or "third"."""
    try:
        if out.is_dir() and (out / "manifest.json").is_file():
            manifest = read_manifest(out)
            verify_corpus(out, deep=False)
            ids = {
                "old": old and old.get("manifest.json", {}).get("corpus_id"),
                "new": new["manifest.json"]["corpus_id"],
            }
            return next(
                (name for name, known in ids.items() if known == manifest["corpus_id"]), "third: another corpus"
            )
        now = state(out)
        if now == old or (old is None and not now):
            return "old"
        if now == new:
            return "new"
        return "begun" if out.exists() and job.begun(out) else "third: neither old nor new"
    except Exception as error:  # whatever a user would meet who opens it
        return f"third: {type(error).__name__}: {str(error)[:200]}"


def trial(
    name: str, job: Job, at: Path, *, moments: int, signals: list[signal.Signals], draw: random.Random, log: Path
) -> dict[str, Any]:
    """One command, killed `moments` times."""

    def fresh() -> Path:
        shutil.rmtree(at, ignore_errors=True)
        at.mkdir(parents=True)
        job.begin(at)
        return at / job.out

    out = fresh()
    old = state(out)
    began = time.perf_counter()
    ended = wait(forked(lambda: run(job.words(at)), root=at, output=log), seconds=600)
    duration = time.perf_counter() - began
    if ended != 0:
        raise SystemExit(f"{name}: undisturbed it ended with {ended}: {log.read_text()[-2000:]}")
    new = state(out)
    fresh()
    steps = count_steps(lambda: run(job.words(at)), at)
    if state(out) != new:
        raise SystemExit(f"{name}: two undisturbed runs differ: {differing(state(out), new)}")
    found, hit, unequal, left, faults = Counter(), 0, 0, 0, []
    for number in range(moments):
        by = signals[number % len(signals)]
        fresh()
        if number // len(signals) % 2:
            step = draw.randint(1, steps)
            moment = f"step {step} of {steps}"
            child = forked(lambda step=step, by=by: run(job.words(at)), root=at, before=step, by=by, output=log)
        else:
            pause = draw.random() * duration
            moment = f"{pause:.3f} s of {duration:.3f}"
            child = forked(lambda: run(job.words(at)), root=at, output=log)
            time.sleep(pause)
            os.kill(child, by)
        hit += wait(child, seconds=300) != 0
        kind = kind_of_state(job, out, old, new)
        found[kind.split(":")[0]] += 1
        if kind.startswith("third"):
            faults.append(f"{by.name} at {moment}: {kind}")
        again = wait(forked(lambda: run(job.again(at)), root=at, output=log), seconds=600)
        done = again == 0 or (job.finished_twice and kind == "new" and again == 2)
        if not done or state(out) != new:
            unequal += 1
            faults.append(f"{by.name} at {moment} ({kind}): again ended with {again}; {differing(state(out), new)}")
        strays = [path for path in hidden(at) if not path.endswith(".lock")]
        left += bool(strays)
        if strays:
            faults.append(f"{by.name} at {moment} ({kind}): left {strays[:3]}")
        equal = "equal" if done and state(out) == new else "NOT equal"
        print(
            f"{name} {number + 1}/{moments}: {by.name} at {moment}: {kind}, again {equal}", file=sys.stderr, flush=True
        )
    return {
        "key": name,
        "name": name,
        "moments": moments,
        "signals": [by.name for by in signals],
        "seconds": round(duration, 3),
        "steps": steps,
        "ended_by_the_signal": hit,
        **{kind: found[kind] for kind in ("old", "begun", "new", "third")},
        "again_unequal": unequal,
        "again_left_something": left,
        "faults": faults,
    }


def differing(now: Any, new: Any) -> str:
    """Names of the files in which two states differ."""
    if now is None or new is None:
        return "nothing there"
    return ", ".join(sorted(name for name in now.keys() | new.keys() if now.get(name) != new.get(name))[:5]) or "equal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(jobs(Path()))
    parser.add_argument("--what", nargs="+", choices=[*names, "all"], default=["all"])
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--signals", nargs="+", choices=["TERM", "KILL"], default=["TERM", "KILL"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    wanted = names if "all" in given.what else given.what
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="expresser-kills-") as folder:
        data, log = Path(folder) / "data", Path(folder) / "log"
        data.mkdir()
        _import()
        prepare(data, set(wanted))
        for name in wanted:
            draw = random.Random(f"{given.seed} {name}")
            signals = [signal.Signals[f"SIG{word}"] for word in given.signals]
            line = trial(
                name, jobs(data)[name], Path(folder) / "at", moments=given.moments, signals=signals, draw=draw, log=log
            )
            print(json.dumps(line), flush=True)
            if given.out is not None:
                _lines.write(given.out, line)


def _import() -> None:
    """What the commands import, once and not in every child."""
    for name in (
        "expresser.comparison.page",
        "expresser.corpus.append",
        "expresser.simulate",
        "finetune.tasks.genes",
        "pretrain.loop",
        "translate.cli_fit",
        "translate.cli_use",
        "translate.judging",
    ):
        importlib.import_module(name)


if __name__ == "__main__":
    main()

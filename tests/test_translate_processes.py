"""Polarbear and scACT on several processes give what they give on one, whatever share of a step's cells each of them has."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pretrained_toys import toy_checkpoint
from test_translate_engine import log_of

from translate.translator import Translator

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_polarbear, test_scact
from test_polarbear import SMALL, split_of, study_of
from test_scact import TOY, halves, unpaired
from translate.fitting import fit
out = Path({out!r})
# 129 paired cells, of which 34 validate and 10 test, and 20 of each modality alone: no number of them is even for 2 or 3.
study = study_of(129, alone=20)
released = replace(SMALL, link="product", relearns_dispersion=True, counts_in=True, scaled=False, sampled_maps=True, prior=None)
for name, config in (("default", SMALL), ("released", released)):
    test_polarbear.fitted(out / f"polarbear_{{name}}", config, study, split=split_of(study, valid=34))
study = unpaired(63)
released = replace(TOY, masked=True, raw_depth=True, feature_cycle=1.0, foreign_labels=True, residual=False, anchor=0.0, prior=None)
for name, config in (("default", TOY), ("released", released)):
    fit("scact", study, split=halves(63, valid=18), out=out / f"scact_{{name}}", config=config, seed=0)
"""

# Blocks of a pretrained model train, and the last step has fewer cells than there are processes.
BRIDGED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from translate_toys import toy_fit, toy_split, toy_study
from translate.bridge import Bridge
bridge = Bridge(rna_encoder={model!r}, rna_cells="join", rna_blocks=1, rna_output="table")
toy_fit("babel", Path({out!r}), toy_study(120), split=toy_split(120, valid=40), bridge=bridge, batch_size=34)
"""

# Of these nothing but rounding decides, and Adam makes steps of rounding: biases before a batch norm, which takes them away.
IDLE = re.compile(r"scact.*(first|second|latent|hidden|others)(\.\d)?\.bias$|scact.*\.mean$")


def fit_on(processes: tuple[int, ...], folder: Path, script: str, **values: str) -> None:
    """Run a script on so many processes, results in a folder each."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for number in processes:
        path = folder / f"fit{number}.py"
        path.write_text(script.format(tests=str(Path(__file__).parent), out=str(folder / str(number)), **values))
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)] if number > 1 else []
        command = [sys.executable, *launch, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.slow
def test_blocks_that_train_do_so_where_a_process_has_no_cell(tmp_path: Path) -> None:
    toy_checkpoint(tmp_path / "model")
    fit_on((1, 3), tmp_path, BRIDGED, model=str(tmp_path / "model"))
    one, several = (log_of(tmp_path / number) for number in ("1", "3"))
    assert len(one) == len(several) == 3
    for a, b in zip(one, several):
        assert b["train"] == pytest.approx(a["train"], rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_are_one(tmp_path: Path, processes: int) -> None:
    fit_on((1, processes), tmp_path, SCRIPT)
    for name in ("polarbear_default", "polarbear_released", "scact_default", "scact_released"):
        one, several = (Translator.load(tmp_path / str(number) / name) for number in (1, processes))
        theirs = several.system.state_dict()
        for key, value in one.system.state_dict().items():
            if not IDLE.search(f"{name} {key}"):
                torch.testing.assert_close(theirs[key], value, rtol=1e-3, atol=1e-4)
        logs = [log_of(tmp_path / str(number) / name) for number in (1, processes)]
        assert len(logs[0]) == len(logs[1]) > 5
        for a, b in zip(*logs):
            assert (a["phase"], a["epoch"]) == (b["phase"], b["epoch"])
            assert b["train"] == pytest.approx(a["train"], rel=1e-4, abs=1e-5)
            assert b["valid"] == pytest.approx(a["valid"], rel=1e-3, abs=1e-5)

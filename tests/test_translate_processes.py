"""Polarbear and scACT on several processes give what they give on one, whatever share of a step's cells each of them has."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
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
# Of these nothing but rounding decides, and Adam makes steps of rounding: biases before a batch norm, which takes them away.
IDLE = re.compile(r"scact.*(first|second|latent|hidden|others)(\.\d)?\.bias$|scact.*\.mean$")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_are_one(tmp_path: Path, processes: int) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for number in (1, processes):
        script = tmp_path / f"fit{number}.py"
        script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), out=str(tmp_path / str(number))))
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)] if number > 1 else []
        command = [sys.executable, *launch, str(script)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-6000:]
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

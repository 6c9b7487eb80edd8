"""Every system on data at the edge of what there can be: a fit whose every number is finite, or one message before training."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from degenerate_toys import CELLS, SETS, degenerate
from translate_toys import BABEL, POLARBEAR, SCACT, SCMOG

from expresser.errors import InputError
from expresser.record import plain_json
from translate.covariates import BatchColumn, LabelColumn
from translate.data import read_study
from translate.embedding_judging import judge_embedding
from translate.fitting import fit
from translate.held import Held
from translate.judging import judge
from translate.preprocess import AtacRecipe
from translate.sailer import SailerConfig
from translate.sailerx import SailerxConfig
from translate.splits import Split, split_by_cluster
from translate.study import Modality, Study
from translate.translator import Translator

pytestmark = pytest.mark.filterwarnings("ignore::translate.study.DataWarning")  # doubts are what these data deserve

ATAC, SIZE = AtacRecipe(min_cells=1, max_share=1.0), 13  # of a step: of 40 training cells the last step has one over
INVARIANT: dict[str, Any] = {
    "atac": ATAC,
    "batch": BatchColumn("batch"),
    "hidden": (8, 4),
    "latent": 4,
    "warmup": 1,
    "epochs": 1,
    "cycle": 4,
    "batch_size": SIZE,
}
CONFIGS: dict[str, Any] = {
    "babel": replace(BABEL, batch_size=SIZE, epochs=1, protein_epochs=1),
    "scmog": replace(
        SCMOG,
        adversarial_epochs=1,
        to_rna_epochs=1,
        to_atac_epochs=1,
        to_protein_epochs=1,
        to_rna_batch_size=SIZE,
        to_atac_batch_size=SIZE,
    ),
    "polarbear": replace(
        POLARBEAR, batch=BatchColumn("batch"), epochs=1, map_epochs=1, batch_size=SIZE, map_batch_size=SIZE
    ),
    "scact": replace(SCACT, label=LabelColumn("kind"), epochs=1, joint_epochs=1, batch_size=SIZE),
    "sailer": SailerConfig(**INVARIANT),
    "sailerx": SailerxConfig(**INVARIANT, reference_dims=4),
}
READ: dict[str, tuple[Modality, ...]] = {
    "babel": ("rna", "atac", "protein"),
    "scmog": ("rna", "atac", "protein"),
    "polarbear": ("rna", "atac"),
    "scact": ("rna", "atac"),
    "sailer": ("atac",),
    "sailerx": ("rna", "atac"),
}
# What cannot be fitted, and the word of the message that says why.
REFUSED: dict[tuple[str, str], str] = {
    **{(system, "nothing open"): "all zero" for system in CONFIGS},
    ("polarbear", "a batch of its own for each cell"): "unknown-batch",
    ("sailerx", "one gene a cell"): "components",
    ("sailerx", "one gene"): "components",
    ("sailerx", "identical cells"): "all cells have the same values",
    ("sailerx", "one depth"): "all cells have the same values",
}
OF_RNA = {
    "one gene a cell",
    "genes in one cell",
    "empty RNA cells",
    "one gene",
    "one protein",
}  # what SAILER never sees
EVERY = [
    (system, name)
    for system in CONFIGS
    for name in SETS
    if not (system == "sailer" and name in OF_RNA) and (name != "one protein" or "protein" in READ[system])
]
JUDGED = ("babel", "sailer")  # scores know no system, only whether it translates or embeds
# Those that were wrong once, and one of each system.
QUICK = {
    ("babel", "everything open"),
    ("babel", "one gene"),
    ("scmog", "a million counts"),
    ("polarbear", "depths of 1 to 1,000"),
    ("scact", "one depth"),
    ("sailer", "a batch of its own for each cell"),
    ("sailer", "everything open"),
    ("sailerx", "identical cells"),
}


def study_of(name: str, modalities: tuple[Modality, ...], n: int = CELLS) -> Study:
    made = degenerate(name)
    return read_study(**{m: made[m][:n].copy() for m in modalities}, check_pairing=False)


def split_of(train: int, valid: int, n: int) -> Split:
    cells = np.arange(n, dtype=np.int64)
    return Split("toy", cells[:train], cells[train : train + valid], cells[train + valid :])


def numbers(value: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of nested mappings and lists."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from numbers(one, f"{where}.{key}")
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from numbers(one, f"{where}[{number}]")
    elif isinstance(value, float | int) and not isinstance(value, bool):
        yield where, float(value)


def finite(fitted: Translator, study: Study, out: Path) -> None:
    """Losses of every epoch, weights, predictions in every direction."""
    for line in (out / "log.jsonl").read_text().splitlines():
        assert all(math.isfinite(number) for _, number in numbers(json.loads(line))), line
    weights = fitted.system.state_dict().items()
    assert not [name for name, value in weights if value.is_floating_point() and not torch.isfinite(value).all()]
    for source, to in fitted.directions:
        predicted = fitted.predict(study.measured[source], source=source, to=to)
        values = predicted.block(slice(0, predicted.n_cells), slice(0, predicted.n_features))
        assert np.isfinite(values).all(), f"{source} to {to}"
        assert np.abs(values).max(initial=0) < 1e3, f"{source} to {to}: up to {np.abs(values).max():.3g}"


@pytest.mark.parametrize(
    ("system", "name"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in EVERY],
)
def test_a_system_is_fitted_with_finite_numbers_or_refused_in_one_message(system, name, tmp_path):
    out = tmp_path / "fit"
    if (system, name) in REFUSED:
        with pytest.raises(InputError, match=REFUSED[system, name]):
            fit(system, study_of(name, READ[system]), split=split_of(40, 10, CELLS), out=out, config=CONFIGS[system])
        assert not out.exists()
        return
    study, split = study_of(name, READ[system]), split_of(40, 10, CELLS)
    fitted = fit(system, study, split=split, out=out, config=CONFIGS[system])
    assert fitted is not None
    finite(fitted, study, out)
    if system not in JUDGED:
        return
    everyone = Split("all", split.train[:0], split.valid[:0], np.arange(CELLS))
    held = Held(study, everyone if fitted.system.embeds else split, seen=0)
    if fitted.system.embeds:
        metrics: Any = judge_embedding(fitted, held, label="kind", batch="batch")[0]
    else:
        metrics = judge(fitted, held, label="kind")[0]
    told = json.dumps(plain_json(metrics), allow_nan=False)  # what is undefined is null
    assert not [where for where, number in numbers(json.loads(told)) if not math.isfinite(number)]


@pytest.mark.parametrize("system", CONFIGS)
@pytest.mark.parametrize(("train", "valid"), [(1, 1), pytest.param(3, 2, marks=pytest.mark.slow), (14, 2)])
def test_few_cells_are_enough_or_refused(system, train, valid, tmp_path):
    study = study_of("ordinary", READ[system], train + valid + 1)
    config = CONFIGS[system]
    if system == "polarbear":
        config = replace(config, unknown_batch="reference")
    split = split_of(train, valid, study.n_cells)
    if train == 1:
        with pytest.raises(InputError, match="two"):
            fit(system, study, split=split, out=tmp_path / "fit", config=config)
        return
    fitted = fit(system, study, split=split, out=tmp_path / "fit", config=config)
    assert fitted is not None
    finite(fitted, study, tmp_path / "fit")
    for source, to in fitted.directions:
        one = fitted.predict(study.measured[source].take(np.arange(1)), source=source, to=to)
        assert np.isfinite(one.block(slice(0, 1), slice(0, one.n_features))).all()


@pytest.mark.parametrize("name", ["one gene", "identical cells"])
def test_cells_without_clusters_are_not_split_by_them(name):
    with pytest.raises(InputError, match="have no clusters"):
        split_by_cluster(study_of(name, ("rna", "atac")))


def test_pairs_that_cannot_be_proven_are_a_doubt_and_no_refusal():
    made = degenerate("identical cells")
    from translate.pairing import MIN_CELLS, PairingWarning

    assert MIN_CELLS <= CELLS
    with pytest.warns(PairingWarning, match="not proven"):
        read_study(rna=made["rna"], atac=made["atac"])
    made = degenerate("empty ATAC cells")
    with pytest.warns(PairingWarning, match="not proven"):
        read_study(rna=made["rna"], atac=made["atac"])

"""One seed, one result: whatever the process's own generators, its hashes, and, of data, its threads."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from repeat_commands import MADE, run_in_a_process
from scipy import sparse

from expresser.cli import main
from expresser.generators import seeded
from expresser.repeating import differences

DATA = ("sim", "cite", "scan", "multi", "corpus", "part", "split")


def disturb(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def states() -> tuple[object, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002


@pytest.fixture(autouse=True)
def own_generators():
    with seeded(0):
        yield


def test_data_depend_on_no_global_generator_and_move_none(tmp_path, monkeypatch):
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        monkeypatch.chdir(tmp_path / str(seed))
        disturb(seed)
        before = states()[1:]
        for made in DATA:
            main(MADE[made].split())
        assert states()[1:] == before  # Python's is drawn from by tyro, which parses the command line
    for made in DATA:
        assert differences(tmp_path / "1" / made, tmp_path / "2" / made) == []
    for made in ("sim/rna.h5ad", "multi/atac.h5ad", "corpus/obs.parquet", "corpus/cells-00000.arrow"):
        assert (tmp_path / "1" / made).read_bytes() == (tmp_path / "2" / made).read_bytes()


@pytest.mark.slow
def test_data_are_the_same_for_any_hashes_and_numbers_of_threads(tmp_path: Path):
    for seed in (1, 2):
        run_in_a_process(
            tmp_path / str(seed), [MADE[made] for made in DATA], seed=seed, environment={"OMP_NUM_THREADS": str(seed)}
        )
    for made in DATA:
        assert differences(tmp_path / "1" / made, tmp_path / "2" / made) == []


def test_lent_generators_begin_at_the_seed_and_come_back_as_they_were():
    disturb(5)
    before = states()
    drawn = []
    for seed in (1, 1, 2):
        with seeded(seed):
            drawn.append((random.random(), float(np.random.random()), float(torch.rand(()))))  # noqa: NPY002
        assert states() == before
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2]))
    with pytest.raises(KeyError), seeded(1):
        raise KeyError
    assert states() == before


def outside() -> dict[str, Callable[[], object]]:
    """Methods of other libraries that draw from global generators, on few cells."""
    from finetune.imputation.baselines import smooth_scvi
    from translate import embedding_baselines

    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(1.0, (60, 30)).astype(np.float32))
    opened = sparse.csr_matrix((rng.random((60, 40)) < 0.3).astype(np.float32))
    batch = (np.arange(60) % 2).astype(np.int64)
    return {
        "scvi": lambda: smooth_scvi(counts, counts, seed=3, max_epochs=1, samples=2)[0],
        "peakvi": lambda: embedding_baselines.peakvi(opened, batch=batch, n=3, seed=3, epochs=1),
        "spectral": lambda: embedding_baselines.spectral(opened, n=3, seed=3),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("name", "needs"), [("scvi", "scvi"), ("peakvi", "scvi"), ("spectral", "snapatac2")])
@pytest.mark.filterwarnings("ignore")
def test_other_libraries_take_our_seed_and_leave_the_global_generators(name, needs):
    pytest.importorskip(needs)
    run = outside()[name]
    found = []
    for seed in (1, 2):
        disturb(seed)
        before = states()
        found.append(run())
        assert states() == before
    np.testing.assert_array_equal(*found)


def test_a_gene_head_of_trees_is_the_same_bytes_and_the_same_head():
    import skops.io
    from sklearn.ensemble import HistGradientBoostingClassifier

    from finetune.heads.archive import settled

    x = np.random.default_rng(0).normal(size=(60, 4))

    def fitted() -> bytes:
        model = HistGradientBoostingClassifier(max_iter=5, random_state=0).fit(x, x[:, 0] > 0)
        return skops.io.dumps([model, model])

    once, again = fitted(), fitted()
    assert once != again  # addresses and times: or there is nothing left to settle
    assert settled(once) == settled(again)
    read = skops.io.loads(settled(once), trusted=skops.io.get_untrusted_types(data=once))
    assert read[0] is read[1]
    kept = skops.io.loads(once, trusted=skops.io.get_untrusted_types(data=once))
    np.testing.assert_array_equal(read[0].predict_proba(x), kept[0].predict_proba(x))

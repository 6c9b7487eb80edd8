"""The process's own random generators, lent to libraries that draw from them and take no generator of ours."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the generators of Python, NumPy and torch (every device) begin at `seed`; after, they are as they were before."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)  # noqa: NPY002

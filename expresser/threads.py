"""Threads of torch as they were, around libraries that change them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def kept_threads() -> Iterator[None]:
    """What runs inside leaves torch with the threads it had.

    numba's threads set those of OpenMP for the whole process when they start (scanpy's neighbours, UMAP): OMP_NUM_THREADS=1 no longer
    holds then, and with another number of threads sums are rounded in another order.
    """
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)

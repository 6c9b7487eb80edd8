"""What the operating system is told about mapped shards: that rows are read at random, and which will be read soon.

A page fault in a file that is read at random fetches 1.6 MB around a cell of 4 kB unless told not to, and a thread waits for one fault
at a time unless the pages were announced: on a corpus larger than memory both together are worth a factor of 15. Linux only;
elsewhere nothing is said and nothing else changes. Where the pages are in memory already it costs about a microsecond a cell.
"""

import ctypes
import mmap
import sys
from collections.abc import Callable
from functools import cache
from inspect import unwrap

import numpy as np
from jaxtyping import Int64


def read_at_random(mapping: mmap.mmap) -> None:
    """No read-ahead in this mapping."""
    if sys.platform == "linux":
        mapping.madvise(mmap.MADV_RANDOM)


def will_need(addresses: Int64[np.ndarray, " ranges"], sizes: Int64[np.ndarray, " ranges"]) -> None:
    """Start reading the mapped pages that hold these bytes into the page cache, and return before they are there."""
    if sys.platform == "linux":
        first = addresses // mmap.PAGESIZE * mmap.PAGESIZE
        _advise()(first, addresses + sizes - first, mmap.MADV_WILLNEED)


@cache
def _advise() -> Callable[..., None]:
    import numba  # half a second; needed where cells are read only

    # Python's mmap.madvise is a call a cell with the interpreter's lock held; compiled, the same system call leaves it free.
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes, madvise.restype = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int), ctypes.c_int

    def advise(first, sizes, advice):
        for i in range(len(first)):
            madvise(first[i], sizes[i], advice)  # advice only: what the system says to it does not matter

    return numba.njit(nogil=True)(unwrap(advise))

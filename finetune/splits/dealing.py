"""Names dealt into folds by a hash of name and seed: the same in whatever order, and in whatever company, they stand."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int64, Integer, UInt64

from expresser.errors import InputError


def numbered(
    a: Sequence[str] | np.ndarray, b: Sequence[str] | np.ndarray
) -> tuple[np.ndarray, Int64[np.ndarray, "pairs 2"]]:
    """The names of all genes, in their own order, and the two numbers of each pair."""
    codes, names = pd.factorize(np.concatenate([np.asarray(a, dtype=object), np.asarray(b, dtype=object)]))
    order = np.argsort(names.astype(str), kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return names[order], np.ascontiguousarray(rank[codes].reshape(2, -1).T)


def units(genes: Integer[np.ndarray, "items of_item"]) -> Int64[np.ndarray, " items"]:
    """One number for a gene, or for two genes in either order."""
    ordered = np.sort(genes.astype(np.int64), axis=1)
    return ordered @ (int(genes.max(initial=0)) + 1) ** np.arange(ordered.shape[1], dtype=np.int64)


def keys_of(names: np.ndarray, seed: int, repeat: int) -> UInt64[np.ndarray, " genes"]:
    """A random number of each name: the same in whatever order and company it stands."""
    if seed < 0:
        raise InputError(f"seed is {seed}; a seed is zero or more.")
    start = hashlib.blake2b(f"{seed}/{repeat}/".encode(), digest_size=8)
    digests = []
    for name in names:
        one = start.copy()
        one.update(str(name).encode())
        digests.append(one.digest())
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def mixed(keys: UInt64[np.ndarray, " items"]) -> UInt64[np.ndarray, " items"]:
    """The keys shuffled bit by bit (the last steps of splitmix64), so that sums and repeated use leave no pattern."""
    keys = keys + np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def deal(value: np.ndarray, keys: UInt64[np.ndarray, " items"], folds: int) -> Int64[np.ndarray, " items"]:
    """Fold of each item: of each `folds` items that follow each other by value one goes into each fold, by its key."""
    block = np.empty(len(value), dtype=np.int64)
    block[np.lexsort((keys, value))] = np.arange(len(value)) // folds
    fold = np.empty(len(value), dtype=np.int64)
    # A whole block fills positions folds * block to folds * block + folds - 1.
    fold[np.lexsort((mixed(keys), block))] = np.arange(len(value)) % folds
    return fold

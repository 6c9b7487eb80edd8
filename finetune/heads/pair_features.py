"""Features of pairs of genes, from a table with one row a gene."""

from typing import Literal

import numpy as np
from jaxtyping import Float32, Int

from expresser.errors import InputError

Form = Literal["symmetric", "concatenated"]

FORMS: dict[str, int] = {"symmetric": 3, "concatenated": 2}  # features for each dimension of the table


def pair_features(
    table: Float32[np.ndarray, "genes dim"],
    a: Int[np.ndarray, " pairs"],
    b: Int[np.ndarray, " pairs"],
    *,
    form: Form,
) -> Float32[np.ndarray, "pairs features"]:
    """One row a pair of rows of the table.

    "symmetric": sum, absolute difference and product, 3 x dim features. An interaction has no direction, and neither
    have these: swapping a and b changes no bit. "concatenated": the vector of a, then that of b, 2 x dim features (Du
    et al., Gene2vec, BMC Genomics 2019, and Cao's dissertation); what is learned of (a, b) says little of (b, a).

    Memory is that of the result, 4 bytes x pairs x features (263,016 pairs of 200-d vectors: 631 or 421 MB).
    """
    if form not in FORMS:
        raise InputError(f"pair features of form {form!r}; there are {', '.join(map(repr, FORMS))}.")
    dim = table.shape[1]
    features = np.empty((len(a), FORMS[form] * dim), dtype=np.float32)
    first, second = features[:, :dim], features[:, dim : 2 * dim]
    np.take(table, a, axis=0, out=first)
    np.take(table, b, axis=0, out=second)
    if form == "symmetric":
        np.multiply(first, second, out=features[:, 2 * dim :])
        total = first + second
        np.subtract(first, second, out=second)
        np.abs(second, out=second)
        first[:] = total
    return features

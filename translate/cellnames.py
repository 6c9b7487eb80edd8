"""What would make the cell names of two files match, where nothing does."""

import re
from collections.abc import Callable

import pandas as pd

from translate.study import Modality

# What a name becomes, in words and in the code that does it.
_CHANGES: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    (
        "without the ending '-1' and the like",
        ".str.replace(r'-\\d+$', '', regex=True)",
        lambda n: re.sub(r"-\d+$", "", n),
    ),
    ("without what stands after the last '_'", ".str.rsplit('_', n=1).str[0]", lambda n: n.rsplit("_", 1)[0]),
    ("without what stands after the last '-'", ".str.rsplit('-', n=1).str[0]", lambda n: n.rsplit("-", 1)[0]),
    ("without what stands before the last '_'", ".str.rsplit('_', n=1).str[-1]", lambda n: n.rsplit("_", 1)[-1]),
    ("without what stands before the last '#'", ".str.rsplit('#', n=1).str[-1]", lambda n: n.rsplit("#", 1)[-1]),
    ("without what stands before the last ':'", ".str.rsplit(':', n=1).str[-1]", lambda n: n.rsplit(":", 1)[-1]),
    ("in capitals", ".str.upper()", str.upper),
    (
        "as bare barcodes",
        ".str.extract(r'([ACGTN]{8,})', expand=False)",
        lambda n: found[0] if (found := re.search(r"[ACGTN]{8,}", n)) else n,
    ),
)


def how_to_match(mine: pd.Index, its: pd.Index, my_name: Modality, its_name: Modality) -> str:
    """One sentence, or nothing where no simple change of the names matches any."""
    best, sentence = 0, ""
    for words, code, change in _CHANGES:
        changed = [pd.Index([change(name) for name in index], dtype=object) for index in (mine, its)]
        for sides, (a, b) in (
            ((my_name,), (changed[0], its)),
            ((its_name,), (mine, changed[1])),
            ((my_name, its_name), (changed[0], changed[1])),
        ):
            n = int(a.isin(b).sum())
            if n > best and not a.has_duplicates and not b.has_duplicates:
                best = n
                sentence = (
                    f"With the names of {' and '.join(sides)} {words}, {n:,} of {len(mine):,} {my_name} cells would match: "
                    f"adata.obs_names = adata.obs_names{code}. "
                )
    return sentence

"""Gene embedding tables as files: parquet for programs, word2vec text for everything else."""

from pathlib import Path

import numpy as np
import pandas as pd

from expresser.atomic import replaced
from expresser.errors import InputError


def write_gene_table(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a table of gene embeddings: rows are genes (index: Ensembl id), a ``symbol`` column, then one column a dimension.

    ``.parquet`` keeps all of it. ``.txt``, ``.vec`` and ``.w2v`` are word2vec text: a line with the two sizes, then a line a gene,
    Ensembl id and numbers, readable by gensim's ``KeyedVectors.load_word2vec_format``.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".txt", ".vec", ".w2v"):
        raise InputError(f"{path}: gene tables are written as .parquet or as word2vec text (.txt, .vec, .w2v).")
    with replaced(path) as part:
        if path.suffix == ".parquet":
            frame.to_parquet(part)
        else:
            numbers = frame.drop(columns="symbol").to_numpy(np.float32)
            with part.open("w", encoding="utf-8") as file:
                file.write(f"{numbers.shape[0]} {numbers.shape[1]}\n")
                for gene, row in zip(frame.index, numbers):
                    file.write(f"{gene} {' '.join(repr(float(v)) for v in row)}\n")
    return path

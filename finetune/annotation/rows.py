"""What is compared in the annotation task: one classifier on cell embeddings, and on features that need no model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Float64, Int, Shaped
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from finetune.annotation.folds import Fold
from finetune.annotation.head import LinearHead, Splits, fit_head
from finetune.counts import log_normalise

BASELINES = ("pca", "log_counts", "knn", "majority")
N_GENES, N_COMPONENTS, N_NEIGHBOURS = 2000, 50, 15

Kind = Literal["model", "trained", "control", "baseline"]


@dataclass(frozen=True, eq=False)
class Answer:
    """What a row says of a fold's test cells, and what is worth telling of how it came to it (plain JSON)."""

    predicted: Shaped[np.ndarray, " test"]
    about: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Row:
    """One line of the table: learns from a fold's training cells and names the types of its test cells."""

    name: str
    kind: Kind
    words: str
    dim: int | None
    answer: Callable[[Fold, Splits], Answer]
    seconds: float = 0.0  # spent before the first fold: on embedding


def embedding_row(
    name: str,
    kind: Kind,
    words: str,
    x: Float32[np.ndarray, "cells d"],
    labels: Shaped[np.ndarray, " cells"],
    seconds: float,
) -> Row:
    """The classifier on fixed features of cells."""

    def answer(fold: Fold, inner: Splits) -> Answer:
        head = fit_head(x[fold.train], labels[fold.train], inner=inner)
        return Answer(head.predict(x[fold.test]), {"c": head.c})

    return Row(name, kind, words, x.shape[1], answer, seconds)


def baseline_rows(counts: sparse.csr_matrix, labels: Shaped[np.ndarray, " cells"], *, seed: int) -> list[Row]:
    """`pca`, `log_counts`, `knn` and `majority`, on counts over all genes of the file."""
    expression = Expression(counts, seed=seed)

    def pca(fold: Fold, inner: Splits) -> Answer:
        head = fit_head(expression.components(fold.train)(fold.train), labels[fold.train], inner=inner)
        return Answer(head.predict(expression.components(fold.train)(fold.test)), {"c": head.c})

    def log_counts(fold: Fold, inner: Splits) -> Answer:
        genes = expression.genes(fold.train)
        head: LinearHead = fit_head(expression.values(fold.train, genes), labels[fold.train], inner=inner)
        return Answer(head.predict(expression.values(fold.test, genes)), {"c": head.c})

    def knn(fold: Fold, inner: Splits) -> Answer:
        project = expression.components(fold.train)
        search = KNeighborsClassifier(min(N_NEIGHBOURS, len(fold.train)), weights="distance")
        search.fit(project(fold.train), labels[fold.train].astype(str))
        return Answer(search.predict(project(fold.test)).astype(object), {})

    def majority(fold: Fold, inner: Splits) -> Answer:
        names, sizes = np.unique(labels[fold.train].astype(str), return_counts=True)
        return Answer(np.full(len(fold.test), str(names[sizes.argmax()]), dtype=object), {})

    n_genes = min(N_GENES, counts.shape[1])
    genes = f"the {n_genes:,} genes of greatest variance"
    components = f"{N_COMPONENTS} principal components of log-normalised counts of {genes}"
    n_components = min(N_COMPONENTS, n_genes - 1)
    return [
        Row("pca", "baseline", f"the classifier on {components}", n_components, pca),
        Row("log_counts", "baseline", f"the classifier on log-normalised counts of {genes}", n_genes, log_counts),
        Row("knn", "baseline", f"{N_NEIGHBOURS} nearest cells by {components}", n_components, knn),
        Row("majority", "baseline", "the most frequent type", None, majority),
    ]


class Expression:
    """Log-normalised expression of all cells; whatever is fitted is fitted on the training rows named."""

    def __init__(self, counts: sparse.csr_matrix, *, seed: int) -> None:
        self._x = log_normalise(counts)
        self._seed = seed
        self._last: tuple[bytes, Callable[[np.ndarray], np.ndarray]] | None = None

    def genes(self, train: Int[np.ndarray, " train"]) -> Int[np.ndarray, " chosen"]:
        """The `N_GENES` genes of greatest variance over the training cells, rising."""
        x = self._x[train]
        mean = np.asarray(x.mean(0)).ravel()
        variance = np.asarray(x.multiply(x).mean(0)).ravel() - mean**2
        return np.sort(np.argsort(-variance, kind="stable")[:N_GENES])

    def values(
        self, rows: Int[np.ndarray, " cells"], genes: Int[np.ndarray, " chosen"]
    ) -> Float64[np.ndarray, "cells chosen"]:
        """``log1p(1e4 * count / total)``, zeros included."""
        return self._x[rows][:, genes].toarray()

    def components(
        self, train: Int[np.ndarray, " train"]
    ) -> Callable[[Int[np.ndarray, " cells"]], Float64[np.ndarray, "cells d"]]:
        """Principal components of the training cells; what is returned projects any cells on them."""
        key = train.tobytes()
        if self._last is not None and self._last[0] == key:
            return self._last[1]  # two rows of the table need the same ones
        genes = self.genes(train)
        x = self.values(train, genes)
        n = max(1, min(N_COMPONENTS, min(x.shape) - 1))
        fit = PCA(n, svd_solver="arpack", random_state=self._seed).fit(x)

        def project(rows: np.ndarray) -> np.ndarray:
            return fit.transform(self.values(rows, genes))

        self._last = key, project
        return project

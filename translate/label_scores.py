"""How transferred labels agree with known ones."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from translate.label_transfer import Transfer


@dataclass(frozen=True, eq=False)
class LabelScores:
    """How labels agree with known ones, over cells whose type the RNA knows; unsure cells are in the first three too."""

    accuracy: float
    balanced: float  # mean over types of the share that got its own label
    most_frequent: float  # accuracy of the most frequent label for all
    accuracy_of_labelled: float
    compared: int
    unknown: int  # cells of types that the RNA lacks
    confusion: pd.DataFrame = field(repr=False)  # known x guess, cells

    def text(self, column: str) -> str:
        """For the terminal."""
        left = f"; {self.unknown:,} more are of types that the RNA lacks, or of none" if self.unknown else ""
        if not self.compared:
            return f"compared with {column}: no cell is of a type that the RNA knows{left}."
        return (
            f"compared with {column}, {self.compared:,} cells{left}: accuracy {self.accuracy:.3f} (the most frequent label for all "
            f"{self.most_frequent:.3f}), balanced {self.balanced:.3f} (chance {1 / max(len(self.confusion), 1):.3f}); of labelled "
            f"cells {self.accuracy_of_labelled:.3f}\n{self.confusion.to_string()}"
        )


def label_scores(found: Transfer, truth: pd.Series) -> LabelScores:
    """Guesses against known labels of the same cells, in their order."""
    own = truth.astype(object).where(truth.notna(), "").astype(str).to_numpy()
    there = np.isin(own, found.types)
    known, guess = own[there], found.cells["guess"].to_numpy(dtype=object)[there].astype(str)
    right, sure = known == guess, found.cells["label"].notna().to_numpy()[there]
    counts = pd.Series(known, dtype=object).value_counts()
    confusion = pd.crosstab(pd.Series(known, name="known", dtype=object), pd.Series(guess, name="guess", dtype=object))
    return LabelScores(
        accuracy=_mean(right),
        balanced=_mean(np.array([right[known == name].mean() for name in counts.index])),
        most_frequent=float(counts.iloc[0] / len(known)) if len(known) else float("nan"),
        accuracy_of_labelled=_mean(right[sure]),
        compared=len(known),
        unknown=int((~there).sum()),
        confusion=confusion,
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")

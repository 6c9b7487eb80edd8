"""Validation loss and scores of a model on held-out cells, beside the gene + cell additive baseline."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from expresser.corpus.store import Corpus
from expresser.corpus.stream import MicroBatch, cut
from expresser.model.cells import Cells, Views
from pretrain.data import to_cells
from pretrain.objective import Objective, targets

VALID_EPOCH = -1  # validation masks are drawn by this epoch: the same in every evaluation of every run with the seed


@dataclass(frozen=True)
class Held:
    """Validation cells as micro-batches, this process's share.

    Attributes
    ----------
    micro
        What is counted.
    idle
        What is predicted for nothing, where other processes have more and all must make as many passes.
    """

    micro: list[MicroBatch]
    idle: list[MicroBatch]

    @classmethod
    def of(
        cls, corpus: Corpus, rows: Int64[np.ndarray, " rows"], *, max_tokens: int, max_genes: int, rank: int, world: int
    ) -> "Held":
        """Cut the rows of this process to the token budget."""

        def share(number: int) -> list[MicroBatch]:
            mine = rows[number::world]
            lengths = np.minimum(corpus.lengths[mine].astype(np.int64), max_genes)
            return cut(mine, np.full(mine.size, VALID_EPOCH), lengths, max_tokens)

        of_all = [share(number) for number in range(world)]
        missing = max(map(len, of_all)) - len(of_all[rank])
        return cls(micro=of_all[rank], idle=of_all[0][:1] * missing)


def sums(truth: Tensor, prediction: Tensor) -> Float64[np.ndarray, "8"]:
    """What adds over batches and processes: n, |e|, e^2, t, p, t^2, p^2, tp."""
    t, p = truth.double(), prediction.double()
    parts = [torch.ones_like(t), (t - p).abs(), (t - p).square(), t, p, t * t, p * p, t * p]
    return torch.stack([part.sum() for part in parts]).cpu().numpy()


def scores(total: Float64[np.ndarray, "8"]) -> dict[str, float]:
    """MSE, MAE and Pearson r from the sums; NaN where undefined."""
    n, absolute, square, t, p, tt, pp, tp = total
    if n == 0:
        return {"mse": float("nan"), "mae": float("nan"), "pearson": float("nan"), "n": 0.0}
    spread = (tt - t * t / n) * (pp - p * p / n)
    pearson = (tp - t * p / n) / np.sqrt(spread) if spread > 0 else float("nan")
    return {"mse": float(square / n), "mae": float(absolute / n), "pearson": float(pearson), "n": float(n)}


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    corpus: Corpus,
    held: Held,
    objective: Objective,
    *,
    seed: int,
    device: torch.device,
    config: object,
    in_step: bool = False,
    additive: Float32[np.ndarray, " vocab"] | None = None,
) -> tuple[Float64[np.ndarray, "8"], Float64[np.ndarray, "8"]]:
    """This process's sums for the model and, where additive gene levels are given, for gene + cell additive on the same masks.

    ``in_step``: make as many passes as every other process.
    """
    was_training = model.training
    model.eval()
    of_model, of_additive = np.zeros(8), np.zeros(8)
    level = None if additive is None else torch.from_numpy(additive).to(device)
    for number, batch in enumerate(held.micro + (held.idle if in_step else [])):
        cells = to_cells(
            corpus.read(batch.rows),
            batch.epoch,
            seed=seed,
            device=device,
            max_genes=config.max_genes,  # type: ignore[attr-defined]
            target_sum=config.target_sum,  # type: ignore[attr-defined]
        )
        views = objective.views(cells)
        truth = targets(cells, views)
        found = sums(truth, model(cells, views).prediction)
        if number >= len(held.micro):
            continue
        of_model += found
        if level is not None:
            of_additive += sums(truth, additive_prediction(cells, views, level))
    model.train(was_training)
    return of_model, of_additive


def additive_prediction(cells: Cells, views: Views, level: Tensor) -> Tensor:
    """Gene level + mean residual of the view's observed genes."""
    gene_level = level[cells.genes]
    of_view = views.context_rows.mean((cells.values - gene_level)[views.context])
    return gene_level[views.query] + of_view[views.query_rows.row]

"""What the number of interactions of a gene says of its pairs, and nothing else: the baseline that unmasks a leaking split."""

import numpy as np
from jaxtyping import Float64, Int, Integer
from scipy.special import expit, logit


def degree_scores(
    a: Int[np.ndarray, " pairs"],
    b: Int[np.ndarray, " pairs"],
    label: Integer[np.ndarray, " pairs"],
    train: Int[np.ndarray, " train"],
    test: Int[np.ndarray, " test"],
    *,
    smoothing: float = 1.0,
) -> Float64[np.ndarray, " test"]:
    """Probability that each test pair interacts, from how often its two genes do in training.

    .. math:: p_g = (k_g + s p) / (n_g + s), \\qquad
        \\operatorname{logit} P(a, b) = \\operatorname{logit} p_a + \\operatorname{logit} p_b - \\operatorname{logit} p

    with :math:`k_g` of the :math:`n_g` training pairs of gene g positive, p the share of all of them, and s (`smoothing`)
    in pairs. A gene without training pairs has p: where all test genes are new, all answers are alike and AUROC is 0.5.

    a, b are gene numbers from 0; train, test are row numbers of pairs.
    """
    n_genes = int(max(a.max(initial=-1), b.max(initial=-1))) + 1
    positive = np.asarray(label, dtype=np.float64)[train]
    overall = float(np.clip(positive.mean(), 1e-6, 1 - 1e-6)) if len(train) else 0.5
    pairs, positives = np.zeros((2, n_genes))
    for side in (a[train], b[train]):
        pairs += np.bincount(side, minlength=n_genes)
        positives += np.bincount(side, weights=positive, minlength=n_genes)
    # Nor is a gene ever sure: smoothing 0 would give the rates 0 and 1, and new genes none.
    rate = np.clip((positives + smoothing * overall) / np.maximum(pairs + smoothing, 1e-12), 1e-6, 1 - 1e-6)
    rate[pairs == 0] = overall
    above = logit(rate) - logit(overall)
    above[pairs == 0] = 0.0  # exactly: the ties of unseen genes are what makes 0.5
    return np.asarray(expit(logit(overall) + above[a[test]] + above[b[test]]), dtype=np.float64)

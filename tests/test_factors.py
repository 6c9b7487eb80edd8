"""Gene factors against a dense computation and against the simulator's truth."""

import numpy as np
import pytest
from scipy import sparse

from expresser.errors import InputError
from expresser.factors import gene_factors
from expresser.metrics.modules import module_auc
from expresser.simulate import simulate_rna


def test_factors_are_the_principal_axes_of_standardised_log_expression():
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(
        rng.poisson(2.0, (40, 12)) + (rng.random((40, 1)) > 0.5) * np.r_[np.full(6, 5), np.zeros(6)]
    )
    table = gene_factors(counts, 4)
    x = np.log1p(1e4 * counts.toarray() / np.asarray(counts.sum(1)))
    z = (x - x.mean(0)) / np.maximum(x.std(0), 0.1)
    _, s, v = np.linalg.svd(z, full_matrices=False)
    expected = (v[:4] * (s[:4] / np.sqrt(39))[:, None]).T
    np.testing.assert_allclose(np.abs(table), np.abs(expected), rtol=1e-4, atol=1e-4)  # an axis has no sign


def test_unseen_genes_are_zero_and_missing_components_too():
    counts = sparse.csr_matrix(np.array([[1, 0, 3, 2], [2, 0, 1, 2], [5, 0, 1, 1]]))
    table = gene_factors(counts, 10)
    assert table.shape == (4, 10)
    assert not table[1].any()
    assert not table[:, 2:].any()
    with pytest.raises(InputError, match="at least 3"):
        gene_factors(counts[:2], 2)


def test_modules_are_found_where_there_are_modules_and_not_where_there_are_none():
    real = simulate_rna(n_cells=800, n_genes=400, median_depth=600, seed=1)
    null = simulate_rna(n_cells=800, n_genes=400, median_depth=600, seed=1, module_strength=0)
    labels = real.var["module"].astype(str).tolist()
    assert module_auc(gene_factors(real.X, 20).astype(np.float64), labels) > 0.7
    assert abs(module_auc(gene_factors(null.X, 20).astype(np.float64), labels) - 0.5) < 0.05

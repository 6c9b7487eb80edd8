"""Small models on gene vectors: fitted, saved without pickle, scored."""

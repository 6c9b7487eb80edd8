"""Masked-expression pretraining of the Expression Transformer."""

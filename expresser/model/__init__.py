"""The Expression Transformer."""

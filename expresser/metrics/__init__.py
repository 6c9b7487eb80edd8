"""Scores as sums that add: exact under any batching."""

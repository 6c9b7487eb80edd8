"""Runs side by side: what they scored, what differs between them, and whether their numbers can be compared at all."""

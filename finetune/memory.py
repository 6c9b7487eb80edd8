"""The memory that a run took."""

import sys


def peak_mb() -> float | None:
    """The most memory that this process has held so far, in MB, before the run too; None where the system keeps no count."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)

"""Memory of a running command, as the kernel counts it."""

from pathlib import Path


def anonymous_mb(root: int) -> list[float]:
    """Anonymous memory (MB) of a process and its descendants, those that are still there."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        try:
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
            found.append(next(int(line.split()[1]) / 1e3 for line in status if line.startswith("RssAnon")))
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (OSError, StopIteration):
            continue
    return found

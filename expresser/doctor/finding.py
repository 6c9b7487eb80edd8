"""What the doctor finds: one line about one thing, how it stands, and what to do where it could be better."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    group: str
    """Under which heading it is shown: "packages", "threads" …"""
    name: str
    state: State
    """ok; note: worth knowing; warning: something will be slower or missing; broken: something needed does not work."""
    found: str
    """What is there, values and all."""
    advice: str | None = None
    """What to do, a command where there is one."""

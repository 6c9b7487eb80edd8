#!/usr/bin/env python
"""Ask for known vulnerabilities of everything installed beside this Python (pip-audit; the advisories of PyPI).

    .venv/bin/python scripts/audit.py

Ends with 1 where a package has a known vulnerability that is not accepted below, with 0 where none has. An index that keeps
no advisories, such as a mirror of packages alone, cannot be asked: that is said, with how many packages were not audited, and
is no failure.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

ACCEPTED: dict[str, str] = {}
"""Advisory id: why it does not concern us, and until when. Empty is best."""


def judge(found: Mapping[str, Any], accepted: Mapping[str, str]) -> tuple[list[str], int, list[str]]:
    """Lines of the vulnerabilities not accepted, how many packages were audited, and the names of those that could not be."""
    faults, asked, unknown = [], 0, []
    for package in found["dependencies"]:
        if "skip_reason" in package:
            unknown.append(package["name"])
            continue
        asked += 1
        for known in package["vulns"]:
            if not {known["id"], *known.get("aliases", [])} & accepted.keys():
                mended = ", ".join(known["fix_versions"]) or "no version yet"
                faults.append(f"{package['name']} {package['version']}: {known['id']}, mended in {mended}")
    return faults, asked, unknown


def main() -> int:
    """Run pip-audit on this environment and say what it found."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--local",
        "--skip-editable",
        "--progress-spinner",
        "off",
        "-f",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        found = json.loads(done.stdout)
    except json.JSONDecodeError:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"not audited: pip-audit could not ask ({last[:300]})", file=sys.stderr)
        return 0 if "onnection" in done.stderr else 2
    faults, asked, unknown = judge(found, ACCEPTED)
    for line in faults:
        print(line)
    if unknown:
        print(f"not audited: {len(unknown)} packages that the index keeps no advisories of ({', '.join(unknown[:5])}…)")
    print(f"{asked} packages audited, {len(faults)} known vulnerabilities")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

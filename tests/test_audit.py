"""The audit of dependencies: a known vulnerability is a failure, an accepted one is not, what could not be asked is counted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).resolve().parents[1] / "scripts" / "audit.py"
KNOWN = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"], "description": ""}


def audit(tmp_path: Path, prints: str, error: str = "", accepted: str = "{}") -> subprocess.CompletedProcess[str]:
    """The script in a Python whose pip-audit prints this."""
    (tmp_path / "pip_audit.py").write_text(f"import sys\nprint({prints!r})\nprint({error!r}, file=sys.stderr)\n")
    begin = f"import sys; sys.path.insert(0, {str(AUDIT.parent)!r}); import audit"
    code = f"{begin}; audit.ACCEPTED.update({accepted}); sys.exit(audit.main())"
    return subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )


def listed(*packages: dict[str, object]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


GOOD = {"name": "good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "1.0", "vulns": [KNOWN]}
UNKNOWN = {"name": "torch", "skip_reason": "not found on PyPI"}


def test_a_known_vulnerability_is_a_failure_that_names_the_version_that_mends_it(tmp_path):
    done = audit(tmp_path, listed(GOOD, BAD))
    assert done.returncode == 1
    assert "bad 1.0: PYSEC-1, mended in 2.0" in done.stdout
    assert "2 packages audited, 1 known" in done.stdout


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_one_that_was_accepted_by_any_of_its_names_is_none(tmp_path, name):
    assert audit(tmp_path, listed(BAD), accepted=repr({name: "we never call it"})).returncode == 0


def test_what_the_index_does_not_know_is_counted_as_not_audited(tmp_path):
    done = audit(tmp_path, listed(GOOD, UNKNOWN))
    assert done.returncode == 0
    assert "not audited: 1 packages" in done.stdout
    assert "1 packages audited, 0 known" in done.stdout


def test_no_connection_is_said_and_any_other_end_is_a_failure(tmp_path):
    assert audit(tmp_path, "", "ConnectionError: no route").returncode == 0
    done = audit(tmp_path, "", "ValueError: x")
    assert done.returncode == 2
    assert "ValueError: x" in done.stderr

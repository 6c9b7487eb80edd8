"""The built wheel outside the checkout: every command starts there, and a small run ends with its page."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def built(into: Path) -> tuple[set[str], set[str]]:
    """Names in the wheel and in the sdist, the latter without its folder."""
    pytest.importorskip("build", reason="the package build is not installed")
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", into, ROOT], check=True, capture_output=True
    )
    with zipfile.ZipFile(next(into.glob("*.whl"))) as wheel, tarfile.open(next(into.glob("*.tar.gz"))) as sdist:
        return set(wheel.namelist()), {name.partition("/")[2] for name in sdist.getnames()}


@pytest.mark.slow
def test_wheel_and_sdist_hold_what_they_need_and_nothing_else(tmp_path):
    wheel, sdist = built(tmp_path)
    packages = ("expresser", "pretrain", "finetune", "translate")
    for package in packages:
        files = {
            str(path.relative_to(ROOT))
            for path in (ROOT / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert files <= wheel  # templates and data as well as modules
        assert files <= sdist
    assert {name.partition("/")[0] for name in wheel if ".dist-info" not in name} == set(packages)
    assert not [name for name in wheel | sdist if "__pycache__" in name or name.startswith((".git/", ".venv"))]
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "constraints.txt"} <= sdist


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path):
    pytest.importorskip("build", reason="the package build is not installed")
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    command = ["bash", ROOT / "scripts" / "check_wheel.sh", "--here"]
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1].startswith("the wheel works outside the checkout")
    assert not list(tmp_path.glob("*.h5ad"))

#!/usr/bin/env bash
# Run the default tests with the lowest or the newest versions that pyproject.toml allows, in an environment of its own. Needs uv.
#   scripts/check_versions.sh lowest [tests…]
#   scripts/check_versions.sh newest [tests…]
# PYTHON: the interpreter (lowest: 3.11). TORCH: a wheel or requirement in place of the version that resolves (a CPU build saves GBs):
# nothing of CUDA is installed then. VERSIONS_DIR: where the environment is made and kept; without it, a folder that is removed at the end.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
case ${1:-} in
  lowest) resolution=lowest-direct ;;
  newest) resolution=highest ;;
  *) echo "error: say lowest or newest" >&2; exit 2 ;;
esac
which=$1
shift
command -v uv >/dev/null || { echo "error: uv is needed: pip install uv" >&2; exit 2; }
python=${PYTHON:-python3.11}
if [ -n "${VERSIONS_DIR:-}" ]; then
  work=$VERSIONS_DIR
  mkdir -p "$work"
else
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi
uv venv --quiet --allow-existing --python "$python" "$work/venv"
inside=$work/venv/bin/python
version=$("$inside" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# Of expresser itself the lowest or newest; what only the tests need is as new as fits beside that.
uv pip compile --quiet --no-header --no-annotate --python-version "$version" --resolution $resolution "$root/pyproject.toml" -o "$work/$which.txt"
cp "$work/$which.txt" "$work/held.txt"
if [ -n "${TORCH:-}" ]; then # first, and held: what depends on torch takes the one that is there
  grep -v -E '^(torch|triton|nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*)==' "$work/$which.txt" >"$work/held.txt"
  uv pip install --quiet --python "$inside" --no-deps "$TORCH"
fi
uv pip install --quiet --python "$inside" --no-deps -r "$work/held.txt"
tests='pytest pytest-xdist hypothesis beartype mudata captum pysam pyliftover tensorboard markdown-it-py setuptools'
# shellcheck disable=SC2086 # several words
uv pip install --quiet --python "$inside" -c "$work/held.txt" $tests
uv pip install --quiet --python "$inside" --no-deps -e "$root"
cd "$root"
uv pip list --quiet --python "$inside" 2>/dev/null | grep -E '^(torch|numpy|pandas|scipy|scikit-learn|anndata|scanpy|transformers|huggingface-hub|tyro) '
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Old packages warn of new ones under them: what warns is no error here.
exec "$inside" -m pytest -q -p no:cacheprovider -o filterwarnings=default --tb=short "$@"

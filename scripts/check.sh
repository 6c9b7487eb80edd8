#!/usr/bin/env bash
# What CI runs, in the active environment: format, lint, types, import contracts, tests. Arguments go to pytest.
set -euo pipefail
# The tests' matrices are tiny: a second thread only waits, and beside other work it waits long.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
cd "$(dirname "$0")/.."
ruff format --check .
ruff check .
mypy
lint-imports --no-cache
# As many processes as there are cores, a file of tests in one of them. PYTEST_PROCESSES=0: in this one, for a debugger.
set -- -n "${PYTEST_PROCESSES:-auto}" --dist loadfile "$@"
# Slow tests too where CI asks for them; gpu and network tests never run by default.
if [ -n "${CI:-}" ]; then
  exec python -m pytest -q -m "not gpu and not network" "$@"
fi
exec python -m pytest -q "$@"

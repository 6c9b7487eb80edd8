#!/usr/bin/env bash
# Set everything up and run all checks. EXPRESSER_DATA names a folder of real data for the tests marked realdata.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
PATH="$(cd "${EXPRESSER_VENV:-.venv}/bin" && pwd):$PATH"
export PATH
exec scripts/check.sh "$@"

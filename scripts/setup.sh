#!/usr/bin/env bash
# Make the virtual environment .venv (or $EXPRESSER_VENV) and install expresser with the extras named, e.g. scripts/setup.sh dev
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${EXPRESSER_VENV:-.venv}

if [ ! -x "$venv/bin/python" ]; then
  for python in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      "$python" -m venv "$venv"
      break
    fi
  done
  [ -x "$venv/bin/python" ] || { echo "error: Python 3.11 or newer is needed; name it with PYTHON=…" >&2; exit 2; }
fi

# torch alone first: whichever build the machine offers (CPU, CUDA) is then kept by everything installed after it.
"$venv/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt torch
"$venv/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt -e ".${1:+[$1]}"

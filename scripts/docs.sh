#!/usr/bin/env bash
# Build the documentation into site/, warnings as errors (needs mkdocs-material and mkdocstrings: pip install 'expresser[docs]').
# scripts/docs.sh serve: build again at each change, on http://127.0.0.1:8000. Other arguments go to `mkdocs build`.
set -euo pipefail
cd "$(dirname "$0")/.."
export NO_MKDOCS_2_WARNING=1 # about the successor of mkdocs, not about these pages
if [ "${1:-}" = serve ]; then
  shift
  exec python -m mkdocs serve --config-file docs/mkdocs.yml "$@"
fi
exec python -m mkdocs build --strict --config-file docs/mkdocs.yml "$@"

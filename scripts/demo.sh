#!/usr/bin/env bash
# Set everything up and run the main job on simulated cells: corpus, pretraining, imputation, embeddings, report.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
exec "${EXPRESSER_VENV:-.venv}/bin/expresser" demo "$@"

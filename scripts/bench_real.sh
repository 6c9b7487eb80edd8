#!/usr/bin/env bash
# The main job on real cells, for the folder of small public data sets that EXPRESSER_DATA names:
# a corpus of every human raw-count RNA file, less 300 PBMC that stay unseen; the `small` recipe; imputation of the unseen cells.
#   EXPRESSER_DATA=data scripts/bench_real.sh runs/real [options of `expresser pretrain small`]
set -euo pipefail
out=${1:?usage: scripts/bench_real.sh OUT [pretrain options]}
shift
rna=${EXPRESSER_DATA:?set EXPRESSER_DATA to the folder of real data}/rna
mkdir -p "$out"

if [ ! -d "$out/corpus" ]; then
  python - "$rna/pbmc3k.h5ad" "$out" <<'PYTHON'
import sys
import anndata as ad
import numpy as np
cells = ad.read_h5ad(sys.argv[1])
unseen = np.zeros(cells.n_obs, dtype=bool)
unseen[np.random.default_rng(0).permutation(cells.n_obs)[:300]] = True
cells[unseen].copy().write_h5ad(f"{sys.argv[2]}/unseen.h5ad")
cells[~unseen].copy().write_h5ad(f"{sys.argv[2]}/pbmc3k.h5ad")
PYTHON
  expresser genes build --hgnc "$EXPRESSER_DATA/annotation/hgnc_complete_set.txt.gz" --out "$out/genes.tsv"
  if expresser corpus build "$rna/snare_p0_mouse_cortex_rna.h5ad" --genes "$out/genes.tsv" --out "$out/mouse"; then
    echo "the mouse file was not refused" >&2
    exit 1
  fi
  expresser corpus build "$out/pbmc3k.h5ad" \
    "$rna"/{mudan_pbmcA,scp1884_gut,placenta_blood,snare_cellline_rna}.h5ad "$rna"/sc_mixology/*.count.csv.gz \
    --genes "$out/genes.tsv" --out "$out/corpus"
fi
expresser corpus verify "$out/corpus"
expresser pretrain small --corpus "$out/corpus" --out "$out/small" --resume "$@"
expresser finetune imputation --model "$out/small" --data "$out/unseen.h5ad" --drop 0.1 --seeds 3 \
  --reference "$out/corpus" --out "$out/imputation"

#!/usr/bin/env bash
# Gene tasks where the truth is known: simulated cells with planted modules, interactions and gene properties.
#   scripts/bench_finetune_simulated.sh OUT [options of `expresser pretrain demo`]
# Vectors that know the modules must find all of it; random ones must stay at chance on gene-disjoint splits; and the
# degree of genes must look good on random splits of pairs, and say nothing on gene-disjoint ones.
set -euo pipefail
out=${1:?usage: scripts/bench_finetune_simulated.sh OUT [pretrain options]}
shift
if [ ! -d "$out/corpus" ]; then
  expresser simulate rna --cells 3000 --genes 2000 --median-depth 1500 --out "$out/cells"
  expresser corpus build "$out/cells/rna.h5ad" --out "$out/corpus"
fi
expresser pretrain demo --corpus "$out/corpus" --out "$out/model" --resume "$@"
given=(--embeddings "expresser=$out/model" --corpus "$out/corpus" --no-heads)
expresser finetune interactions --labels "$out/cells/pairs.tsv" --split all --repeats 1 "${given[@]}" --out "$out/pairs"
for target in binary value class; do
  expresser finetune gene --labels "$out/cells/properties.tsv" --target $target --repeats 3 "${given[@]}" --out "$out/$target"
done

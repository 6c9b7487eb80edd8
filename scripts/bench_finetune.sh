#!/usr/bin/env bash
# What gene vectors know, on real labels: the checkpoint and the corpus of scripts/bench_real.sh beside the built-in baselines.
#   EXPRESSER_DATA=data scripts/bench_finetune.sh runs/real [TASK …]      tasks: dosage lof ggi ggi_random string string_random
# Each task is one command; its metrics.json, report.html and heads are in OUT/finetune/TASK. Repeating the command goes on.
set -euo pipefail
out=${1:?usage: scripts/bench_finetune.sh OUT [TASK …]}
shift
genes=${EXPRESSER_DATA:?set EXPRESSER_DATA to the folder of real data}/genes
tasks=("$@")
[ $# -gt 0 ] || tasks=(dosage lof ggi string ggi_random string_random)
given=(--genes "$out/genes.tsv" --corpus "$out/corpus" --embeddings "expresser=$out/small")

for task in "${tasks[@]}"; do
  few=()
  case $task in
    dosage) what=(dosage --labels "$genes/dosage_sens_tf_labels.csv") ;;
    lof) what=(lof --labels "$genes/gnomad_v2.1.1_constraint.tsv.gz") ;;
    ggi) what=(interactions --labels "$genes/gene2vec_ggi" --split shipped) ;;
    # Random splits are there to show what degrees do. Boosted trees go on learning them for minutes a fit: linear heads here.
    ggi_random) what=(interactions --labels "$genes/gene2vec_ggi" --split random --preset linear --no-heads) few=(random) ;;
    string) what=(interactions --labels "$genes/string_human_pairs.csv" --split gene-disjoint --no-heads) ;;
    string_random) what=(interactions --labels "$genes/string_human_pairs.csv" --split random --preset linear --negatives uniform --no-heads) few=(random) ;;
    *) echo "no task $task" >&2 && exit 2 ;;
  esac
  began=$SECONDS
  expresser finetune "${what[@]}" "${given[@]}" ${few[@]+"${few[@]}"} --out "$out/finetune/$task"
  echo "$task: $((SECONDS - began)) s"
done

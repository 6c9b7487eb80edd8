#!/usr/bin/env bash
# Pretraining on several nodes of a SLURM cluster, over as many time limits as it takes. Submit from the root of the repository, in the
# environment that holds expresser; what follows the script goes to `expresser pretrain`, sbatch's options before it replace those below:
#   sbatch --nodes 4 --gpus-per-node 8 scripts/launch/slurm.sh full --corpus /shared/corpus --out /shared/runs/full
#SBATCH --job-name=expresser
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# SLURM runs a copy of this script from its spool folder: the files beside it are found from where the job was submitted.
config=${LAUNCH_CONFIG:-$SLURM_SUBMIT_DIR/scripts/launch/ddp_nodes.yaml}
per_node=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:?the job has no GPUs: ask for --gpus-per-node, or set PROCESSES_PER_NODE}}

out=
previous=
for word in "$@"; do
  case $previous in --out) out=$word ;; esac
  case $word in --out=*) out=${word#--out=} ;; esac
  previous=$word
done
[ -n "$out" ] || { echo "error: --out is missing: a folder that all nodes see." >&2; exit 2; }

# All processes meet on the first node. The port is the job's, so that jobs which share a node do not meet each other.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
LAUNCH_HEAD=${nodes[0]}
LAUNCH_PORT=$((20000 + SLURM_JOB_ID % 10000))
LAUNCH_PROCESSES=$((SLURM_JOB_NUM_NODES * per_node))
export LAUNCH_HEAD LAUNCH_PORT LAUNCH_PROCESSES
# SIGTERM comes 120 s before the time limit; the launcher passes it on and would kill after 30 s what is still saving.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun no longer takes it from the job

newest() { # the newest whole checkpoint
  local found=("$out"/checkpoints/step-*/run.json)
  echo "${found[-1]}"
}

# One launcher a node. When one has ended the others have 60 s to follow: a node whose processes died must not keep the rest waiting,
# and a node that still saves must not be killed at once. --resume begins a new run where there is none.
before=$(newest)
status=0
# shellcheck disable=SC2016  # SLURM_NODEID is known on the node only
srun --kill-on-bad-exit=0 --wait=60 bash -c 'exec accelerate launch --config_file "$0" \
  --num_machines "$SLURM_JOB_NUM_NODES" --num_processes "$LAUNCH_PROCESSES" --machine_rank "$SLURM_NODEID" \
  --main_process_ip "$LAUNCH_HEAD" --main_process_port "$LAUNCH_PORT" -m pretrain "$@"' "$config" "$@" --resume || status=$?

if [ -f "$out/metrics.json" ]; then # written last of all
  exit 0
fi
# The time limit, a node that went away, a network that failed: try again, as long as each try gets further than the one before.
if [ "$(newest)" != "$before" ]; then
  echo "not finished (exit code $status): in the queue again, from $(dirname "$(newest)")"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
echo "error: not finished (exit code $status) and no checkpoint further than before: see above for why." >&2
exit $((status == 0 ? 1 : status))

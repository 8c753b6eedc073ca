#!/usr/bin/env bash
# Submits a training run to Slurm, one task for each GPU, on any number of nodes:
#
#   NODES=2 CONFIG=configs/imagenet_b.py WORKDIR=/shared/b launch/slurm.sh --config.data.root=IMAGES
#
#   CONFIG    configs/imagenet_b.py         WORKDIR   runs/<name>, on a disk that all nodes share
#   NODES     1                             GPUS      8, on each node
#   CPUS      8, for each task              HOURS     24
#   PARTITION, ACCOUNT                      none: the site's defaults
#   GRACE     120, seconds of SIGTERM before the end, in which the run saves
#   PYTHON    python                        DRY_RUN   0; 1 prints the job script and stops
#
# Arguments go to crate_jax.main. The job is requeued when it is preempted or its time is over, and
# resumes from its last save.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CONFIG=${CONFIG:-configs/imagenet_b.py}
name=$(basename "${CONFIG%%:*}" .py)
WORKDIR=${WORKDIR:-runs/$name}
NODES=${NODES:-1}
GPUS=${GPUS:-8}
CPUS=${CPUS:-8}
HOURS=${HOURS:-24}
GRACE=${GRACE:-120}
PYTHON=${PYTHON:-python}
DRY_RUN=${DRY_RUN:-0}

command=$(printf '%q ' "$PYTHON" -m crate_jax.main --distributed=on \
    "--config=$CONFIG" "--workdir=$WORKDIR" "$@")
job="#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$NODES
#SBATCH --ntasks-per-node=$GPUS
#SBATCH --gpus-per-node=$GPUS
#SBATCH --cpus-per-task=$CPUS
#SBATCH --time=$HOURS:00:00
#SBATCH --signal=B:TERM@$GRACE
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$WORKDIR/slurm-%j.log
${PARTITION:+#SBATCH --partition=$PARTITION
}${ACCOUNT:+#SBATCH --account=$ACCOUNT
}set -euo pipefail
cd $(printf '%q' "$PWD")
ended=0
# Slurm's warning reaches this script alone: pass it on, wait for the save, and queue again. Not to
# srun, which would have its tasks killed within seconds.
trap 'ended=1; scancel --signal=TERM \"\$SLURM_JOB_ID\"' TERM
srun --kill-on-bad-exit=1 $command &
steps=\$!
status=0
wait \"\$steps\" || status=\$?
if [ \"\$ended\" = 1 ]; then
    wait \"\$steps\" || true
    scontrol requeue \"\$SLURM_JOB_ID\"
    exit 0
fi
exit \"\$status\""

if [ "$DRY_RUN" = 1 ]; then
    echo "$job"
    exit 0
fi
mkdir -p "$WORKDIR"
sbatch <<<"$job"

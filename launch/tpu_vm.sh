#!/usr/bin/env bash
# Trains on a Cloud TPU: on this VM, or, with TPU and ZONE, on all hosts of a pod from elsewhere.
#
#   CONFIG=configs/imagenet_b.py WORKDIR=gs-or-shared/b launch/tpu_vm.sh --config.data.root=IMAGES
#   TPU=my-pod ZONE=us-central2-b WORKDIR=/shared/b launch/tpu_vm.sh --config.data.root=IMAGES
#
#   CONFIG    configs/imagenet_b.py         WORKDIR   runs/<name>; for a pod a disk all hosts share
#   TPU       none: this VM                 ZONE      needed with TPU
#   PROJECT   gcloud's default              DIRECTORY where crate_jax lies on the hosts: ~/crate_jax
#   PYTHON    python3                       DRY_RUN   0; 1 prints the command and stops
#
# Arguments go to crate_jax.main. The same command resumes. A maintenance notice or SIGTERM on any
# host stops all of them after the same step, saved.
set -euo pipefail

CONFIG=${CONFIG:-configs/imagenet_b.py}
name=$(basename "${CONFIG%%:*}" .py)
WORKDIR=${WORKDIR:-runs/$name}
TPU=${TPU:-}
PYTHON=${PYTHON:-python3}
# shellcheck disable=SC2088  # expanded on the hosts
DIRECTORY=${DIRECTORY:-'~/crate_jax'}
DRY_RUN=${DRY_RUN:-0}

training=("$PYTHON" -m crate_jax.main "--config=$CONFIG" "--workdir=$WORKDIR")
if [ -z "$TPU" ]; then
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    command=("${training[@]}" "$@")
else
    : "${ZONE:?launch/tpu_vm.sh: expected ZONE, the zone of the TPU $TPU}"
    remote="cd $DIRECTORY && $(printf '%q ' "${training[@]}" --distributed=on "$@")"
    command=(gcloud compute tpus tpu-vm ssh "$TPU" "--zone=$ZONE" --worker=all "--command=$remote")
    if [ -n "${PROJECT:-}" ]; then
        command+=("--project=$PROJECT")
    fi
fi
if [ "$DRY_RUN" = 1 ]; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi
exec "${command[@]}"

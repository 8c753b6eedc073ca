#!/usr/bin/env bash
# Trains on the GPUs of this machine. Every parameter is an environment variable with a default:
#
#   CONFIG=configs/imagenet_b.py WORKDIR=runs/b launch/gpu.sh --config.data.root=IMAGES
#
#   CONFIG    configs/scenes_tiny.py        WORKDIR   runs/<name of the config>
#   GPUS      all                           numbers as in CUDA_VISIBLE_DEVICES: 0,1
#   PYTHON    python                        RESTARTS  0, how often to go on after a crash
#   DRY_RUN   0; 1 prints the command and stops
#
# Arguments go to crate_jax.main. The same command resumes. SIGTERM saves and ends with status 0.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CONFIG=${CONFIG:-configs/scenes_tiny.py}
name=$(basename "${CONFIG%%:*}" .py)
WORKDIR=${WORKDIR:-runs/$name}
PYTHON=${PYTHON:-python}
RESTARTS=${RESTARTS:-0}
GPUS=${GPUS:-all}
DRY_RUN=${DRY_RUN:-0}

command=("$PYTHON" -m crate_jax.main "--config=$CONFIG" "--workdir=$WORKDIR" "$@")
if [ "$GPUS" != all ]; then
    export CUDA_VISIBLE_DEVICES="$GPUS"
    command=(env "CUDA_VISIBLE_DEVICES=$GPUS" "${command[@]}")
fi
if [ "$DRY_RUN" = 1 ]; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi

attempt=0
child=
trap '[ -n "$child" ] && kill -TERM "$child"' TERM INT
while true; do
    "${command[@]}" &
    child=$!
    status=0
    # A trapped signal ends `wait` early; the second one waits for the save.
    wait "$child" || status=$?
    if kill -0 "$child" 2>/dev/null; then
        status=0
        wait "$child" || status=$?
        exit "$status"
    fi
    # 2: something for the user to mend, said in the output; 130: Ctrl-C.
    if [ "$status" = 0 ] || [ "$status" = 2 ] || [ "$status" = 130 ] || [ "$attempt" -ge "$RESTARTS" ]
    then
        exit "$status"
    fi
    attempt=$((attempt + 1))
    echo "launch: status $status, attempt $attempt of $RESTARTS to resume" >&2
done

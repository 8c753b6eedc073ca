"""Slurm's commands as far as launch/slurm.sh needs them, for two tasks on this machine."""

import os
import random
import signal
import socket
import subprocess

from tests.end_to_end import runs

COMMANDS = {
    "sbatch": 'cat > "$FAKE/job.sh"',
    "scontrol": 'echo "$@" >> "$FAKE/requeued"',
    # Signals the tasks, not the script. To one is enough: it must be obeyed by both.
    "scancel": 'echo "$@" >> "$FAKE/signalled"; kill -TERM "$(cat "$FAKE/task1")"',
    "srun": """shift
export SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost
for k in 0 1; do
    SLURM_PROCID=$k SLURM_LOCALID=$k "$@" >> "$FAKE/output$k" 2>&1 &
    echo $! > "$FAKE/task$k"
done
wait "$(cat "$FAKE/task0")" && wait "$(cat "$FAKE/task1")\"""",
}


class Slurm:
    """A queue of one job: `submit`, then `start` as often as it is queued again."""

    def __init__(self, folder):
        self.folder = folder
        for name, body in COMMANDS.items():
            path = folder / name
            path.write_text(f"#!/usr/bin/env bash\n{body}\n")
            path.chmod(0o755)
        self.environment = runs.environment(
            PATH=f"{folder}:{os.environ['PATH']}", FAKE=str(folder), SLURM_JOB_ID=_job_id()
        )

    def submit(self, *arguments, **variables):
        command = [runs.ROOT / "launch" / "slurm.sh", *arguments]
        subprocess.run(command, env=self.environment | variables, check=True)

    def start(self):
        """The job script, running."""
        self.process = subprocess.Popen(["bash", self.folder / "job.sh"], env=self.environment)

    def warn(self):
        """As Slurm does some time before the end, with --signal=B:TERM."""
        self.process.send_signal(signal.SIGTERM)

    def finish(self):
        """Waits; the exit status, and what each task said since the last time."""
        status = self.process.wait(timeout=240)
        texts = []
        for k in (0, 1):
            path = self.folder / f"output{k}"
            texts.append(path.read_text())
            path.unlink()
        return status, texts

    def told(self, command):
        path = self.folder / command
        return path.read_text().split() if path.exists() else []


def _job_id():
    """JAX makes the coordinator's port of it: one that is free."""
    while True:
        job = random.randrange(2**12)
        with socket.socket() as s:
            if s.connect_ex(("localhost", 65535 - 2**12 + 1 + job)):
                return str(job)

"""Several runs in one process with eight forced devices, each on as many as it wants.

python -m tests.end_to_end.many_devices JOBS, a JSON list of [workdir, config, devices, changes];
the change `stop_after` sends SIGTERM after that step
"""

import importlib.util
import json
import os
import signal
import sys
from unittest import mock

import jax

from crate_jax.training import loop, metrics
from tests.end_to_end import runs


def load(config):
    path, _, argument = config.partition(":")
    spec = importlib.util.spec_from_file_location("config", runs.ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument or None)


def terminating_write(at_step):
    """Sends SIGTERM when the line of `at_step` is written."""
    write = metrics.MetricsFile.write

    def function(self, step, values):
        write(self, step, values)
        if step == at_step:
            os.kill(os.getpid(), signal.SIGTERM)

    return function


def main(jobs):
    for workdir, config, devices, changes in jobs:
        c = load(config)
        stop_after = changes.pop("stop_after", None)
        c.update_from_flattened_dict(changes)
        with mock.patch.object(metrics.MetricsFile, "write", terminating_write(stop_after)):
            status = loop.train(c, workdir, jax.devices()[:devices])
        if status:
            sys.exit(status)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""Charts where nothing but the results can be written."""

import os
import subprocess
import sys

_WITHOUT_FOLDERS = """
import tempfile

def refused(*_, **__):
    raise FileNotFoundError(2, "No usable temporary directory found")

tempfile.mkdtemp = tempfile.gettempdir = refused
from crate_jax.export import charts

print(charts.line_chart([charts.Line("a", [0, 1], [1, 2])], title="t", x_label="x")[:4])
"""


def test_a_read_only_home_and_temporary_folder():
    environment = {n: v for n, v in os.environ.items() if n != "MPLCONFIGDIR"}
    environment |= dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), "/proc/none")
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_FOLDERS], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "<svg\n"), done.stderr

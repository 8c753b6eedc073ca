"""`pictures.config` for the command line: FILE.py:root=DIR,steps=N,slow=SECONDS.

With `slow` every image takes so long to read, as from a distant disk.
"""

import time

from crate_jax import config
from crate_jax.data import folders
from tests.end_to_end import pictures


def get_config(arg=None):
    a = config.arguments(arg, root="", steps=12, slow=0.0)
    if a.slow:
        encoded = folders.Folder.encoded

        def slowly(self, index):
            time.sleep(a.slow)
            return encoded(self, index)

        folders.Folder.encoded = slowly
    return pictures.config(a.root, a.steps)

"""Pictures, COCO JSON and HTML from results."""

import os
import tempfile

# matplotlib cannot be imported without a folder for its cache. It looks for one at home and then
# among the temporary folders; where none of these can be written, memory does.
try:
    tempfile.gettempdir()
except FileNotFoundError:
    os.environ.setdefault("MPLCONFIGDIR", f"/dev/shm/matplotlib-{os.getuid()}")

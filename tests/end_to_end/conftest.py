"""JPEGs to train on."""

import pytest

from tests.end_to_end import pictures


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of class folders."""
    return pictures.write(tmp_path_factory.mktemp("images"))

"""Analyses change no dtype and no rank but by words."""

import pytest


@pytest.fixture(autouse=True)
def _strict(strict_promotion):
    pass

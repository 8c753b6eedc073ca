"""One cache of compiled programs for the runs within the test process, as `runs` has for others."""

import jax
import pytest

from tests.end_to_end import runs


@pytest.fixture(autouse=True, scope="package")
def compilation_cache():
    values = {
        "jax_compilation_cache_dir": str(runs.CACHE),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)

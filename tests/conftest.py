"""How tests compile: quickly, and every program once for all processes of the tests.

Tiny networks spend their time in XLA's optimiser and not in running. So most of what it does is
left out, in the tests' processes and in those that they start; a test that measures, or that stands
for what a user runs, asks for `optimised`. Must come before JAX is imported, which reads these.
"""

import importlib.metadata
import os
import pathlib
import signal

CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla"
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}

# Fusions written out by way of MLIR take two thirds of a compilation: 1.7 s of CPU of a gradient of
# two layers, 0.6 s without. An XLA that does not know a flag ends the process.
FLAG, FLAGS = "--xla_cpu_use_fusion_emitters=false", os.environ.get("XLA_FLAGS", "")
if importlib.metadata.version("jax").startswith("0.10.") and FLAG not in FLAGS:
    os.environ["XLA_FLAGS"] = f"{FLAGS} {FLAG}".strip()

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

import tests.typechecker  # noqa: E402, F401  # the hook below asks for it by name

# Shapes and types that signatures promise hold in every call that a test makes.
jaxtyping.install_import_hook(
    ["crate_jax.models", "crate_jax.segmentation"], "tests.typechecker.check"
)


@pytest.fixture
def types_unchecked():
    """As a user calls: what no signature allows reaches our own checks and their messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def strict_promotion():
    """No dtype and no rank is changed but by words."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def signals_heard():
    """Ctrl-C and SIGHUP do what they do by default, here and in processes that the test starts.

    Tests run by nohup, or in the background of a script, were started with both ignored.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def optimised(monkeypatch):
    """Programs of this test, and of processes that it starts, are compiled as a user's."""
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)

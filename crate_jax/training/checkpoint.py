"""Checkpoints of a run: parameters, optimizer state, input position and metadata, through Orbax.

Layout: WORKDIR/checkpoints/STEP/{params,training,input,metadata}. Saving is asynchronous; a step's
directory appears under its final name only when it is complete. Once complete, `manifest.json`
with the SHA-256 of every file is added, so that a flipped bit or a lost file is noticed when the
step is restored. A damaged step is moved to WORKDIR/damaged_checkpoints, never deleted, and the one
before it is used.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from crate_jax.convert import run_directory
from crate_jax.files import write_atomically
from crate_jax.training import distributed

_CLOCK_JUMP = 60.0  # seconds by which the two clocks may part during a save
_TEMPORARY = "*.orbax-checkpoint-tmp*"  # a step that is being saved, or never was to the end
_QUIET, _PATIENCE = 1.0, 60.0  # seconds without a write to such a step; for that


class CheckpointError(RuntimeError):
    """No checkpoint can be used, or one could not be written."""


@dataclasses.dataclass
class Restored:
    """What a checkpoint holds: its step, the state as the template asked, and the two records."""

    step: int
    params: Any
    training: Any
    input: dict[str, Any]
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
        workdir: the run's directory.
        keep: the newest so many steps stay.
        keep_every: besides these, multiples of so many steps stay; 0 for none.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 3, keep_every: int = 0):
        if keep < 1:
            raise ValueError(f"keep_checkpoints: expected at least 1, got {keep}")
        self.workdir = pathlib.Path(workdir).absolute()
        self.directory = self.workdir / "checkpoints"
        # One more than asked for while the newest is unproven.
        policies = [checkpoint_managers.LatestN(keep)]
        if keep_every:
            policies.append(checkpoint_managers.EveryNSteps(keep_every))
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=False,  # `_remove_when_quiet` does
            # A folder that cannot be made in the background leaves threads that wait 300 s for it.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self._manager: ocp.CheckpointManager | None = None
        self._unsealed: int | None = None
        self._begun = (0.0, 0.0)

    @property
    def manager(self) -> ocp.CheckpointManager:
        """Orbax's manager, made when first needed (after damaged steps were moved away)."""
        if self._manager is None:
            _quieten_orbax()
            self._manager = ocp.CheckpointManager(self.directory, options=self._options)
        return self._manager

    def steps(self) -> list[int]:
        """The complete steps, oldest first."""
        return run_directory.complete_steps(self.workdir)

    def save(self, step: int, params: Any, training: Any, position: dict, metadata: dict) -> None:
        """Starts saving a step; returns once the arrays have left the device.

        Raises:
            CheckpointError: where this or the save before it failed (a full disk, say).
            FloatingPointError: where a parameter is not finite, which a finite loss and gradient
                do not exclude.
        """
        self.wait()
        if names := _not_finite(params):
            raise FloatingPointError(
                f"parameters that are not finite at step {step}: {', '.join(names[:3])} and "
                f"{len(names[3:])} more; they were not saved, {self.last_good()}. Train in a new "
                "workdir with a lower optimizer.learning_rate, a longer optimizer.warmup or "
                "optimizer.clip_norm=1.0"
            )
        try:
            if not self.workdir.is_dir():  # Orbax would make it anew
                raise FileNotFoundError(f"{self.workdir} was moved or deleted during the run")
            if jax.process_index() == 0:
                _remove_when_quiet(self.directory)
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    training=ocp.args.StandardSave(training),
                    input=ocp.args.JsonSave(position),
                    metadata=ocp.args.JsonSave(metadata),
                ),
            )
        except Exception as error:
            self.abandon()
            raise CheckpointError(self._failed(step, error)) from error
        self._unsealed, self._begun = step, (time.time(), time.monotonic())

    def poll(self) -> None:
        """Where a save has finished in the background: checks it, and seals it with its manifest.

        Raises:
            CheckpointError: where the save failed.
        """
        if self._unsealed is not None and not self.manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> bool:
        """Blocks until the save under way is complete and sealed.

        Returns:
            False where the host's clock jumped during the save and Orbax, which measures its time
            limits by it, gave up: that step must be saved again. Else True.

        Raises:
            CheckpointError: where the save failed.
        """
        if self._unsealed is None:
            return True
        step, self._unsealed = self._unsealed, None
        try:
            self.manager.wait_until_finished()
            self.manager.check_for_errors()
            if jax.process_index() == 0:
                seal(self.directory / str(step))
        except Exception as error:
            wall, steady = time.time() - self._begun[0], time.monotonic() - self._begun[1]
            if abs(wall - steady) < _CLOCK_JUMP:
                self.abandon()
                raise CheckpointError(self._failed(step, error)) from error
            logging.warning(
                "the host's clock jumped by %.0f s while checkpoint %d was saved, which was given "
                "up for it; the next one replaces it",
                wall - steady,
                step,
            )
            self._drop_manager()
            return False
        return True

    def close(self) -> None:
        """Waits, and frees the background threads."""
        try:
            self.wait()
        finally:
            if self._manager is not None:
                self._manager.close()
                self._manager = None

    def abandon(self) -> None:
        """Leaves a save to itself that will not end: it failed, or another process is gone."""
        self._unsealed = self._manager = None

    def _drop_manager(self) -> None:
        """A new one is made at the next save; what the failed one still has to say is known."""
        with contextlib.suppress(Exception):
            self._manager.close()
        self._manager = None

    def restore_latest(self, params: Any, training: Any) -> Restored | None:
        """The newest checkpoint that is whole, or None where there never was one.

        Args:
            params: the tree of jax.ShapeDtypeStruct with shardings to restore into; any sharding,
                whatever the number of devices that wrote the checkpoint.
            training: likewise.

        Raises:
            CheckpointError: where there are checkpoints but none is whole.
        """
        steps = self.steps()
        distributed.check_equal(checkpoints=steps)
        for step in reversed(steps):
            problem = run_directory.damage(self.directory / str(step))
            # Every process judges by itself; one is taken to which none objects.
            if distributed.all_true(problem is None):
                try:
                    restored = self._restore(step, params, training)
                except Exception as error:
                    problem = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
                if distributed.all_true(problem is None):
                    return restored
            self._move_away(step, problem or "another process cannot read it")
        if steps:
            raise CheckpointError(
                f"{self.directory}: expected a whole checkpoint, but all of {steps} were damaged "
                f"and moved to {self.workdir / 'damaged_checkpoints'}; restore one from a backup, "
                "or start in another workdir"
            )
        return None

    def _restore(self, step: int, params: Any, training: Any) -> Restored:
        restored = self.manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(params),
                training=ocp.args.StandardRestore(training),
                input=ocp.args.JsonRestore(),
                metadata=ocp.args.JsonRestore(),
            ),
        )
        return Restored(step, **{item: restored[item] for item in run_directory.ITEMS})

    def _move_away(self, step: int, problem: str) -> None:
        logging.warning(
            "checkpoint %d is damaged (%s): moved to damaged_checkpoints/, trying the one before",
            step,
            problem,
        )
        if self._manager is not None:
            self._drop_manager()
        if jax.process_index() == 0:
            target = self.workdir / "damaged_checkpoints"
            target.mkdir(exist_ok=True)
            name, count = str(step), 1
            while (target / name).exists():
                count += 1
                name = f"{step}-{count}"
            (self.directory / str(step)).rename(target / name)
        distributed.barrier(f"checkpoint {step} moved")

    def last_good(self, failed: int | None = None) -> str:
        """Which checkpoint, not the one that failed, a run can go on from; for a message."""
        with contextlib.suppress(CheckpointError):
            self.wait()
        good = [step for step in self.steps() if step != failed]
        return f"the last good checkpoint is step {good[-1]}" if good else "no checkpoint was saved"

    def _failed(self, step: int, error: Exception) -> str:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if len(reason) > 240:  # the storage layers name the file more than once, the cause last
            reason = f"{reason[:80]} ... {reason[-140:]}"
        return (
            f"saving checkpoint {step} to {self.directory} failed: {reason}; "
            f"{self.last_good(step)}. Free space or fix the permissions, then run the same command "
            "again to resume"
        )


def _quieten_orbax() -> None:
    """What Orbax logs of a failed save, a traceback a thread, it also raises: one line is ours."""
    logging.getLogger("absl").addFilter(_not_an_error_of_orbax)


def _not_an_error_of_orbax(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _not_finite(params: Any) -> list[str]:
    """The names of the arrays that hold infinities or NaN."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    finite = np.asarray(_are_finite([leaf for _, leaf in leaves]).addressable_data(0))
    pairs = zip(leaves, finite, strict=True)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/") for (path, _), ok in pairs if not ok
    ]


def _remove_when_quiet(directory: pathlib.Path) -> None:
    """Removes the steps that were never saved to their end.

    Threads of a save of this process that failed, or was given up, may write there for a while
    (Orbax's own cleaning fails then).

    Raises:
        TimeoutError: they are not quiet, or not to be removed, after `_PATIENCE`.
    """
    if not any(directory.glob(_TEMPORARY)):
        return
    begin = quiet_since = time.monotonic()
    while (now := time.monotonic()) - quiet_since < _QUIET:
        for left in directory.glob(_TEMPORARY):
            quiet_since = now
            with contextlib.suppress(OSError):  # something was written meanwhile
                shutil.rmtree(left)
            if now - begin > _PATIENCE:
                raise TimeoutError(f"{left} is still written to, or cannot be removed")
        time.sleep(_QUIET / 10)


@jax.jit
def _are_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def seal(directory: pathlib.Path) -> None:
    """Writes the SHA-256 of every file of a complete step into its manifest, atomically."""
    if not directory.is_dir():  # writing would make it anew
        raise FileNotFoundError(f"{directory} was moved or deleted during the run")
    sums = {str(p.relative_to(directory)): run_directory.checksum(p) for p in _files(directory)}
    content = json.dumps(sums, indent=0, sort_keys=True)
    write_atomically(directory / run_directory.MANIFEST, content)


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
    found = sorted(p for p in directory.rglob("*") if p.is_file())
    return [p for p in found if p.name != run_directory.MANIFEST and p.suffix != ".partial"]

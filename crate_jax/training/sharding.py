"""One mesh over all devices, with axes `data` and `fsdp`.

A batch is split over both axes. Parameters and optimizer state are replicated over `data`; over
`fsdp` each array is split along its longest axis that divides, so that large models fit.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Smaller arrays cost more to gather than they save.
SMALLEST_SHARDED = 2**14
AXES = ("data", "fsdp")


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp) mesh over some devices, or all; `fsdp` stays within a slice.

    Raises:
        ValueError: where `fsdp` does not divide the number of devices, of a slice if there are
            several.
    """
    devices = devices or jax.devices()
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    count, where = len(devices) // slices, " of a slice" * (slices > 1)
    if fsdp < 1 or count % fsdp:
        raise ValueError(f"fsdp: expected a divisor of the {count} devices{where}, got {fsdp}")
    # Auto axes, written out: the default of explicit axes would ask for a sharding at every
    # operation.
    axes = {"axis_names": AXES, "axis_types": (AxisType.Auto, AxisType.Auto)}
    shape = (count // fsdp, fsdp)
    if slices == 1:
        return jax.make_mesh(shape, devices=devices, **axes)
    grid = mesh_utils.create_hybrid_device_mesh(
        shape, (slices, 1), devices, allow_split_physical_axes=True
    )
    return Mesh(grid, **axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """A NamedSharding for every leaf (arrays or shapes) of parameters and optimizer state."""
    fsdp = mesh.shape["fsdp"]

    def sharding(leaf):
        axes = [axis for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
        if fsdp == 1 or leaf.size < SMALLEST_SHARDED or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        spec = [None] * leaf.ndim
        spec[longest] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, tree)


def check_batch(name: str, size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises ValueError unless a batch of `size` divides over devices and accumulation steps."""
    parts = mesh.size * accumulate
    if size < 1 or size % parts:
        what = f"the {mesh.size} devices"
        if accumulate > 1:
            what += f" times {accumulate} accumulation steps"
        below = size // parts * parts
        nearest = f"{below} or {below + parts}" if below > 0 else f"{parts}"
        raise ValueError(f"{name}: expected a multiple of {what}, got {size}; try {nearest}")


def put_tree(tree: Any, shardings: Any) -> Any:
    """Arrays that every process has, as global ones; each device gets its part."""
    return jax.tree.map(
        lambda leaf, place: jax.make_array_from_callback(leaf.shape, place, lambda i: leaf[i]),
        jax.tree.map(np.asarray, tree),
        shardings,
    )


def whole_tree(tree: Any, mesh: Mesh) -> Any:
    """Global arrays as whole ones on this process's first device; all must call it together."""
    gathered = jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), gathered)


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """A process's part of a batch as global arrays, split over the devices."""
    return {
        key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()
    }


def batch_shapes(
    batch: dict[str, np.ndarray], sharding: NamedSharding
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes that `put_batch` would give, for devices that need not be there."""
    parts = jax.process_count()
    return {
        key: jax.ShapeDtypeStruct(
            (value.shape[0] * parts, *value.shape[1:]), value.dtype, sharding=sharding
        )
        for key, value in batch.items()
    }

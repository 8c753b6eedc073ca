"""Where arrays lie; what eight devices compute with it is in end_to_end/test_scale.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from crate_jax.training import sharding


def abstract_mesh(data, fsdp):
    return AbstractMesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def specs(mesh, **shapes):
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return {k: s.spec for k, s in sharding.state_shardings(mesh, tree).items()}


def test_a_mesh_has_both_axes():
    mesh = sharding.make_mesh()
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("fsdp", [0, -1, 2, 3])
def test_fsdp_divides_the_devices(fsdp):
    with pytest.raises(ValueError, match=f"expected a divisor of the 1 devices, got {fsdp}"):
        sharding.make_mesh(fsdp)


@dataclasses.dataclass(frozen=True)
class Chip:
    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "of a test"


def test_slices_are_joined_by_data_alone():
    """Two slices of four: what is split over `fsdp` stays within one."""
    chips = [Chip(i, slice_index=i // 4) for i in range(8)]
    mesh = sharding.make_mesh(2, chips)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    assert {chip.id for chip in mesh.devices.flat} == set(range(8))
    assert all(len({chip.slice_index for chip in row}) == 1 for row in mesh.devices)
    assert set(mesh.axis_types) == {AxisType.Auto}
    with pytest.raises(ValueError, match="a divisor of the 4 devices of a slice, got 8"):
        sharding.make_mesh(8, chips)


def test_the_longest_axis_that_divides_is_split():
    assert specs(
        abstract_mesh(2, 4),
        longest=(128, 512),
        other=(512, 130),
        odd=(513, 514),  # nothing divides
        small=(64, 64),  # costs more to gather than it saves
        scalar=(),
    ) == {
        "longest": PartitionSpec(None, "fsdp"),
        "other": PartitionSpec("fsdp", None),
        "odd": PartitionSpec(),
        "small": PartitionSpec(),
        "scalar": PartitionSpec(),
    }


def test_without_fsdp_everything_is_a_copy():
    assert specs(abstract_mesh(8, 1), large=(1024, 1024)) == {"large": PartitionSpec()}


def test_a_batch_is_split_over_both_axes():
    assert sharding.batch_sharding(abstract_mesh(2, 4)).spec == PartitionSpec(("data", "fsdp"))


def test_there_and_back():
    mesh, rng = sharding.make_mesh(), np.random.default_rng(0)
    tree = {"a": rng.normal(size=(256, 128)), "b": [np.arange(3), np.float32(2)]}
    placed = sharding.put_tree(tree, sharding.state_shardings(mesh, tree))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(placed))
    back = sharding.whole_tree(placed, mesh)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), back, tree)
    batch = {"image": rng.integers(0, 256, (8, 4, 4, 3), np.uint8), "label": np.arange(8)}
    split = sharding.put_batch(batch, sharding.batch_sharding(mesh))
    jax.tree.map(np.testing.assert_array_equal, split, batch)

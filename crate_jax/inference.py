"""A checkpoint at work: which layer, which size, how much memory; maps and features by batches.

Batches have one fixed shape. A compiled program computes each row of a batch from that row alone,
so an image's result depends on its place in the batch and on nothing else.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crate_jax.convert import checkpoints, weights
from crate_jax.models import base, variants
from crate_jax.models.base import ImageModelConfig
from crate_jax.models.positions import MOST_PATCHES
from crate_jax.segmentation import artifacts, attention, layerwise

FEATURES = ("subspace", "tokens")


@dataclasses.dataclass(frozen=True)
class Network:
    """A network as its config, its static definition and its parameters (a pure dictionary)."""

    config: ImageModelConfig
    definition: nnx.GraphDef
    params: Any
    notes: tuple[str, ...] = ()  # what is worth saying of its file

    @functools.cached_property
    def fingerprint(self) -> str:
        """The first 16 digits of the SHA-256 over all parameters by name."""
        digest = hashlib.sha256()
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(self.params))
        for path, leaf in sorted(leaves, key=lambda item: jax.tree_util.keystr(item[0])):
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf))
        return digest.hexdigest()[:16]


def load(path: str | os.PathLike, **declared: Any) -> Network:
    """The network of a checkpoint, as `crate_jax.load` reads it.

    Raises:
        ValueError: what `crate_jax.load` raises.
    """
    declared = {name: value for name, value in declared.items() if value is not None}
    checkpoint = checkpoints.read(path, **declared)
    model = weights.build(checkpoint.params, checkpoint.config)
    return Network(model.config, *base.split(model), notes=tuple(checkpoint.notes))


def random_weights(network: Network, seed: int = 0) -> Network:
    """The same architecture with freshly drawn weights: the baseline of an untrained network."""
    model = variants.build(network.config, seed)
    return Network(network.config, *base.split(model))


def input_size(config: ImageModelConfig, size: Sequence[int] | int | None) -> tuple[int, int]:
    """(height, width) that images are resized to: the one asked for, or what suits the network.

    None, by the shorter side of the training size: 480 px from 224 to 479 (224 at 480 is the
    papers'), twice that side below, that side itself above. Rounded to the nearest multiple of the
    patch size.

    Raises:
        ValueError: a size that leaves fewer than 2 x 2 patches, or more than fit anywhere.
    """
    if size is None:
        short = min(config.image_size)
        wanted = 2 * short if short < 224 else max(480, short)
        size = tuple(side * wanted / short for side in config.image_size)
    size = (size, size) if isinstance(size, int) else tuple(size)
    rounded = tuple(int(side / config.patch_size + 0.5) * config.patch_size for side in size)
    rows, columns = grid_of(config, rounded)
    if rows * columns > MOST_PATCHES:
        raise ValueError(
            f"size: expected at most {MOST_PATCHES:,} patches of {config.patch_size} px, got "
            f"{rows:,} x {columns:,}; choose a smaller one"
        )
    if len(size) != 2 or min(rounded) < 2 * config.patch_size:
        raise ValueError(
            f"size: expected at least two patches of {config.patch_size} px a side, got "
            f"{' x '.join(f'{side:g}' for side in size)}"
        )
    return rounded


def grid_of(config: ImageModelConfig, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of patches of an image of `size`."""
    return size[0] // config.patch_size, size[1] // config.patch_size


def layer_index(config: ImageModelConfig, layer: int | None, method: str) -> int:
    """The layer in [0, depth) that is analysed.

    None: where the papers look. [CLS] attention: the penultimate layer of a CRATE, the
    last of a ViT or DINO (docs/protocols.md section 3: not like for like; `score` measures all).
    MaskCut and parts: the last.

    Args:
        config: of the network.
        layer: an index from 0, or from the end if negative.
        method: "attention", "maskcut" or "parts".

    Raises:
        ValueError: an index that the network does not have.
    """
    depth = config.depth
    if layer is None:
        last_but_one = method == "attention" and config.family.startswith("crate")
        layer = depth - 2 if last_but_one else depth - 1
        return max(layer, 0)
    if not -depth <= layer < depth:
        raise ValueError(
            f"layer: expected an index in [{-depth}, {depth}) (0 is the first, -1 the last), got "
            f"{layer}"
        )
    return layer % depth


def _forward(network: Network, layers: Sequence[int]) -> tuple[Callable, int]:
    """The forward pass that captures these layers, and how many registers its arrays hold."""
    return base.forward(network.definition, tuple(layers)), network.config.registers


def cls_maps(network: Network, layers: Sequence[int]) -> Callable:
    """(params, images uint8[b, h, w, 3]) -> [CLS] attention f32[b, layers, heads, n]."""
    forward, registers = _forward(network, layers)

    def run(params, images):
        _, out = forward(params, images)
        return attention.layer_maps(out["query"], out["key"], registers)

    return run


def attention_of_layers(network: Network, layers: Sequence[int]) -> Callable:
    """(params, images uint8[b, h, w, 3]) -> what is measured of each layer.

    Returns:
        A function to a dictionary: `maps` f32[b, layers, heads, n], [CLS] attention; `coding_rate`
        and `sparsity` f32[b, layers].
    """
    forward, registers = _forward(network, layers)

    def run(params, images):
        _, out = forward(params, images)
        maps = attention.layer_maps(out["query"], out["key"], registers)
        return {"maps": maps} | layerwise.of_layers(out["query"], out["tokens"], registers)

    return run


def captured(network: Network, layers: Sequence[int]) -> Callable:
    """(params, images uint8[b, h, w, 3]) -> what attention reads, by name.

    Returns:
        A function to `query`, `key` and, with rotary positions, `key_unrotated`
        f32[layers, b, 1+registers+n, heads, d_head].
    """
    forward, _ = _forward(network, layers)

    def run(params, images):
        _, out = forward(params, images)
        names = ("query", "key", "key_unrotated")
        return {name: out[name].astype(jnp.float32) for name in names if name in out}

    return run


def distinct_arrays(network: Network, size: tuple[int, int]) -> int:
    """How many of what `captured` returns differ: one where query = key = w, as in CRATE."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    shapes = jax.eval_shape(captured(network, [0]), network.params, images)
    tied = network.config.family != "vit" and getattr(network.config, "attention", "") != "mhsa"
    return len(shapes) - tied


def patch_features(network: Network, layers: Sequence[int], kind: str = "subspace") -> Callable:
    """(params, images uint8[b, h, w, 3]) -> patch features f32[b, layers, n, d].

    [CLS] and registers are left out. Keys are those before rotary positions turned them, which
    otherwise make near patches alike.

    Args:
        network: whose config and definition are used.
        layers: indices in [0, depth).
        kind: "subspace" is U^T LN(z), all heads side by side (for a ViT, and CRATE-MHSA, the
            keys); "tokens" is z after the layer.
    """
    if kind not in FEATURES:
        raise ValueError(f"features: expected one of {', '.join(FEATURES)}, got {kind!r}")
    forward, _ = _forward(network, layers)
    read = patch_arrays(network, kind)

    def run(params, images):
        _, out = forward(params, images)
        return read(out)[0]

    return run


def patch_arrays(network: Network, kind: str) -> Callable:
    """A model's capture -> (features f32[b, layers, n, d], [CLS] maps f32[b, layers, heads, n])."""
    registers = network.config.registers

    def read(out):
        keys = out.get("key_unrotated", out["key"])
        features = keys if kind == "subspace" else out["tokens"]
        features = jnp.moveaxis(features[:, :, 1 + registers :], 0, 1)
        maps = attention.layer_maps(out["query"], out["key"], registers)
        return features.reshape(*features.shape[:3], -1), maps

    return read


def normalised_patches(network: Network) -> Callable:
    """(params, images uint8[b, h, w, 3]) -> patches behind the last norm f32[b, n, d].

    The norm is the network's own; of a CRATE that of its head; without either the tokens are as
    the last layer gave them out.
    """
    registers, last = network.config.registers, (network.config.depth - 1,)

    def run(params, images):
        model = base.merge(network.definition, params)
        _, out = model(model.preprocess(images), capture=last)
        norm = getattr(model, "norm", None) or getattr(model, "head_norm", None)
        patches = out["tokens"][0, :, 1 + registers :]
        return patches if norm is None else norm(patches).astype(jnp.float32)

    return run


def norms_and_mass(network: Network, layers: Sequence[int]) -> Callable:
    """(params, images uint8[b, h, w, 3]) -> (norms f32[b, layers, n], mass f32[b, layers, 2]).

    See `artifacts.patch_norms` and `artifacts.attention_mass`.
    """
    forward, registers = _forward(network, layers)

    def run(params, images):
        _, out = forward(params, images)
        return (
            artifacts.patch_norms(out["tokens"], registers),
            artifacts.attention_mass(out["query"], out["key"], registers),
        )

    return run


class Batches:
    """A function such as `cls_maps` or `patch_features`, compiled for one shape of batch.

    float32 matrix products run at the highest precision: TF32 would flip edges of MaskCut's graph.

    Args:
        network: whose parameters are taken, unless a call gives others.
        run: what to compute.
        batch_size: rows of every batch.
        size: (height, width) of the images.

    Attributes:
        memory: bytes that a batch needs on the device by the compiler's own account, parameters
            included; None where it says nothing.
    """

    def __init__(self, network: Network, run: Callable, batch_size: int, size: tuple[int, int]):
        self.network, self.shape = network, (batch_size, *size, 3)
        images = jax.ShapeDtypeStruct(self.shape, jnp.uint8)
        with jax.default_matmul_precision("highest"):
            self._compiled = jax.jit(run).lower(network.params, images).compile()
        needs = self._compiled.memory_analysis()
        self.memory = needs and (
            needs.argument_size_in_bytes + needs.temp_size_in_bytes + needs.output_size_in_bytes
        )

    def __call__(self, images: np.ndarray, params: Any = None) -> Any:
        """What `run` makes of a batch uint8[batch_size, height, width, 3]."""
        return self._compiled(self.network.params if params is None else params, images)


def memory_line(batches: Batches, batch_size: int, matrix: int = 0) -> str:
    """What a batch needs and what there is, in one line to print before work.

    Args:
        batches: the compiled forward pass.
        batch_size: images at once.
        matrix: rows of a square float32 matrix of each image that is needed besides.

    Raises:
        ValueError: there is not so much: the work would end in the middle, or be killed.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        free = free_host_memory()
    else:
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        free = limit and limit - stats.get("bytes_in_use", 0)
    if batches.memory is None:
        return f"memory    unknown: the compiler for {device.platform} does not say"
    needed = batches.memory + 4 * matrix**2
    line = f"{_bytes(needed)} for a batch of {batch_size}"
    if free is None:
        return f"memory    {line}"
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(batches.network.params))  # not free, ours
    if needed - held > free:
        raise ValueError(
            f"memory: expected {line}, got {_bytes(free)} free on {device.device_kind}; lower "
            "--batch-size or --size"
        )
    return f"memory    {line}, {_bytes(free)} free on {device.device_kind}"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def free_host_memory() -> int | None:
    """Bytes that the machine has left; None where it does not say."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[Any], Any], batches: Iterable[Sequence[Any]]
) -> Iterator[tuple[Sequence[Any], list[Any]]]:
    """(batch, what `read` gives of each of its items); the next is read while one is worked on."""
    started = ((batch, [pool.submit(read, item) for item in batch]) for batch in batches)
    ahead = next(started, None)
    while ahead is not None:
        (batch, reading), ahead = ahead, next(started, None)
        yield batch, [future.result() for future in reading]

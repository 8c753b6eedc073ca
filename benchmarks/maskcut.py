# PYTHON_ARGCOMPLETE_OK
"""MaskCut against the published dense path: seconds, memory and agreement.

    python -m benchmarks.maskcut                    # grids 28 and 60; 32, 384, 768 channels
    python -m benchmarks.maskcut --grids=28 --channels=32 --repeats=5
    python -m benchmarks.maskcut --device           # the batched path on JAX's default device

Both sides run on one pinned core with one BLAS thread (the process restarts itself so that the
limits hold before any library loads) and take turns within one run. The dense side is the
published one: per round the normalised features, the n x n affinity in float64 and
scipy.linalg.eigh(D - A, D, subset_by_index=[1, 2]); each round is solved anew. `--single` gives
it float32 matrices, about twice as fast. Our side is `maskcut` as called by a user. Both
include everything from features to masks.

Features: photographs of scikit-image, described per patch by smoothed colours and gradients at
three scales, standardised, through a fixed random ReLU layer of 256 units and a random linear map
to the number of channels. They give cuts with clear eigengaps, as a trained network's do.

Peak memory is measured in a fresh process that imports the package, loads the features and calls
`maskcut` once: the growth of its peak resident set during the call, and that peak itself.
"""

import os
import subprocess
import sys
import tempfile
import time

from crate_jax import command_line

THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
PHOTOGRAPHS = ("chelsea", "coffee", "astronaut", "rocket")


def main():
    parser = command_line.parser("python -m benchmarks.maskcut", __doc__)
    parser.add_argument("--grids", type=int, nargs="+", default=[28, 60], help="patches a side")
    parser.add_argument(
        "--channels", type=int, nargs="+", default=[32, 384, 768], help="of features"
    )
    parser.add_argument("--tau", type=float, default=0.15, help="cosine threshold")
    parser.add_argument("--max-masks", type=int, default=3, help="rounds")
    parser.add_argument("--repeats", type=int, default=1, help="photographs per row")
    parser.add_argument("--single", action="store_true", help="dense side in float32")
    parser.add_argument("--device", action="store_true", help="time the batched path instead")
    parser.add_argument("--batch", type=int, default=16, help="images per batch with --device")
    options = command_line.parse(parser)
    if options.device:
        time_device(options)
        return
    if any(os.environ.get(name) != "1" for name in THREADS):
        os.environ.update(dict.fromkeys(THREADS, "1"), JAX_PLATFORMS="cpu")
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.maskcut", *sys.argv[1:]])
    if hasattr(os, "sched_setaffinity"):  # Linux: one core for whatever a library starts
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    compare(options)


def compare(options):
    """Print the table of dense against ours."""
    import numpy as np

    from crate_jax.segmentation.maskcut import maskcut

    print(
        f"one core, one thread; tau {options.tau}, {options.max_masks} masks; dense side in "
        f"{'float32' if options.single else 'float64'}; medians of {options.repeats} image(s)"
    )
    print(
        "grid  channels   dense s    ours s    ratio   MB: call  process   IoU (least)   mu error",
        flush=True,
    )
    maskcut(photograph_features("coffee", 12, 32), (12, 12), options.tau)  # imports, BLAS
    for grid in options.grids:
        for channels in options.channels:
            dense, ours, memory, ious, errors = [], [], [], [], []
            for i in range(options.repeats):
                name = PHOTOGRAPHS[i % len(PHOTOGRAPHS)]
                features = photograph_features(name, grid, channels, seed=i)
                progress(f"{grid} x {grid}, {channels} channels, {name} ...")
                arguments = (features, (grid, grid), options.tau, options.max_masks)
                # Ours before and after the dense side, so that a slower spell hits both.
                before, result = timed(maskcut, *arguments)
                seconds, (masks, mu) = timed(published, *arguments, options.single)
                after, _ = timed(maskcut, *arguments)
                dense.append(seconds)
                ours.append((before + after) / 2)
                memory.append(peak_memory(*arguments))
                ious += [iou(a, b) for a, b in zip(result.masks, masks, strict=True)]
                errors.append(np.abs(result.eigenvalues - mu).max())
            progress("")
            d, o = np.median(dense), np.median(ours)
            growth, process = np.max(memory, axis=0)
            print(
                f"{grid:4d}  {channels:8d}  {d:8.3f}  {o:8.4f}  {d / o:6.1f}x  {growth:8.0f}"
                f"  {process:7.0f}   {np.mean(ious):.4f} ({min(ious):.4f})"
                f"   {max(errors):.1e}",
                flush=True,
            )


def time_device(options):
    """Print images per second of the batched path on JAX's default device."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from crate_jax.segmentation.maskcut import maskcut, maskcut_batch

    device = jax.devices()[0]
    print(f"batched path on {device.device_kind} ({device.platform}), batch {options.batch}")
    print("grid  channels   compile s    ms an image   5,000 images   IoU with the host (least)")
    for grid in options.grids:
        for channels in options.channels:
            images = [
                photograph_features(PHOTOGRAPHS[i % len(PHOTOGRAPHS)], grid, channels, seed=i)
                for i in range(options.batch)
            ]
            batch = jax.block_until_ready(jnp.asarray(np.stack(images)))
            arguments = ((grid, grid), options.tau, options.max_masks)

            def run(batch=batch, arguments=arguments):
                return maskcut_batch(batch, *arguments, where="device")

            first, _ = timed(run)
            repeated = [timed(run) for _ in range(max(options.repeats, 3))]
            seconds = min(r[0] for r in repeated)
            result = repeated[-1][1]
            ious = [
                iou(a, b)
                for i, features in enumerate(images[:4])
                for a, b in zip(result[i].masks, maskcut(features, *arguments).masks, strict=True)
            ]
            each = seconds / options.batch
            print(
                f"{grid:4d}  {channels:8d}  {first - seconds:10.1f}  {1e3 * each:12.2f}"
                f"  {5000 * each / 60:8.2f} min   {np.mean(ious):.4f} ({min(ious):.4f})",
                flush=True,
            )


def published(features, grid, tau, max_masks, single=False):
    """MaskCut as published, its affinity and dense generalised solve in every round."""
    import numpy as np
    from scipy import ndimage
    from scipy.linalg import eigh

    features = features.copy()
    current = painted = np.zeros(grid, bool)
    masks, values = [], []
    for i in range(max_masks):
        painted = painted | current
        features[painted.ravel()] = 0
        unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        affinity = np.where(unit @ unit.T > tau, 1.0, 1e-5)
        affinity = affinity.astype(np.float32 if single else np.float64, copy=False)
        degrees = np.diag(affinity.sum(axis=1))
        mu, v = eigh(degrees - affinity, degrees, subset_by_index=[1, 2])
        v = v[:, 0] * np.sign(v[np.argmax(np.abs(v[:, 0])), 0])
        foreground = (v > v.mean()).reshape(grid)
        if foreground[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 3:
            foreground, v = ~foreground, -v
        labels = ndimage.label(foreground)[0]
        found = labels == labels.flat[np.argmax(v)]
        if i and (iou(found, current) > 0.5 or found.mean() <= 0.01):
            found = np.zeros(grid, bool)
        current = found
        masks.append(found & ~np.any(masks, axis=0) if masks else found)
        values.append(mu)
    return np.array(masks), np.array(values)


def photograph_features(name, grid, channels, seed=0):
    """Features f32[grid^2, channels] of a photograph; see the module's docstring."""
    import numpy as np
    from scipy import ndimage
    from skimage import data, transform

    image = transform.resize(getattr(data, name)()[..., :3], (8 * grid, 8 * grid, 3))
    smooth = [ndimage.gaussian_filter(image, (s, s, 0)) for s in (2, 8, 24)]
    gradients = [np.abs(np.gradient(smooth[0], axis=axis)) for axis in (0, 1)]
    maps = np.concatenate([*smooth, *gradients, np.abs(image - smooth[0])], axis=-1)
    patches = maps.reshape(grid, 8, grid, 8, -1).mean((1, 3)).reshape(grid * grid, -1)
    patches = (patches - patches.mean(0)) / (patches.std(0) + 1e-6)
    rng = np.random.default_rng(seed)
    hidden = np.maximum(patches @ rng.normal(size=(patches.shape[1], 256)), 0)
    hidden -= hidden.mean(0)
    return (hidden @ rng.normal(size=(256, channels))).astype(np.float32)


def iou(a, b):
    """Intersection over union; 1 for two empty masks."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


# VmHWM, not getrusage's ru_maxrss: that one starts at the parent's resident set.
PEAK = """
import sys
import numpy as np
from crate_jax.segmentation.maskcut import maskcut

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024

features = np.load(sys.argv[1])
grid, tau, max_masks = (int(sys.argv[2]), int(sys.argv[3])), float(sys.argv[4]), int(sys.argv[5])
maskcut(features[:144], (12, 12), tau)  # loads what is loaded late
before = status("VmRSS")
maskcut(features, grid, tau, max_masks)
print(status("VmHWM") - before, status("VmHWM"))
"""


def peak_memory(features, grid, tau, max_masks):
    """Return (growth during the call, whole process) in MB; nan where there is no /proc."""
    import numpy as np

    if not os.path.exists("/proc/self/status"):
        return float("nan"), float("nan")
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file, features)
        file.flush()
        arguments = [file.name, *map(str, grid), str(tau), str(max_masks)]
        output = subprocess.run(
            [sys.executable, "-c", PEAK, *arguments], check=True, capture_output=True, text=True
        )
    growth, peak = map(float, output.stdout.split())
    return growth, peak


def progress(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

# PYTHON_ARGCOMPLETE_OK
"""How fast images get from the disk to the training step.

    python -m benchmarks.input                                # on JPEGs that it writes, and removes
    python -m benchmarks.input --folder=DIR --workers=4       # on yours: DIR/train/CLASS/*.jpg
    python -m benchmarks.input --write=2000 --folder=DIR      # writes them there, and leaves them
    python -m benchmarks.input --config=configs/imagenet_b.py # and the step
    python -m benchmarks.input --scenes                       # how fast `scenes` are composed

Measured is what training reads: JPEG decoding, Inception crop to 224 px, flip, batches of uint8,
through Grain's worker processes into this one; for comparison tf.data's usual form of the same
(decode_and_crop_jpeg, bilinear resize, flip, batch), where TensorFlow is installed, in turns with
ours and in a process of its own. Two rates each: images/s by the clock, which is what the step
gets, and images per CPU-second of all processes together, which is what a core is worth and hardly
depends on who else uses the machine. The first batches, in which workers start, do not count.

What it writes are 500 x 375 px JPEGs of quality 90 from crops of scikit-image's photographs with a
little noise (about 70 kB each; ImageNet's mean is 110 kB at 500 x 375, so expect a fifth less).

With `--scenes` it is the embedded dataset instead: scenes composed in a second of processor time on
one core, at several sizes, after those in which textures and shrunk objects are made.

With `--config` the config's training step runs on the default device on one batch that is already
there, and the slower of the two is named.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np

from crate_jax import command_line

SIZE, HEIGHT, WIDTH = 224, 375, 500
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
CLASSES = 20


def main():
    parser = command_line.parser("python -m benchmarks.input", __doc__)
    parser.add_argument(
        "--folder",
        metavar="DIR",
        help="holds train/CLASS/*.jpg; without it: 2,000 JPEGs are written",
    )
    parser.add_argument("--write", type=int, default=0, help="first write so many JPEGs there")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes"
    )
    parser.add_argument("--batch-size", type=int, default=128, help="images")
    parser.add_argument("--batches", type=int, default=20, help="measured, of each repeat")
    parser.add_argument("--repeats", type=int, default=3, help="the best counts")
    parser.add_argument("--scenes", action="store_true", help="composed scenes instead of JPEGs")
    parser.add_argument("--exact", action="store_true", help="config.data.fast_jpeg=False")
    parser.add_argument(
        "--config",
        metavar=command_line.CONFIG,
        help="also time this config's step",
    )
    parser.add_argument("--only", choices=("grain", "tf.data"), help=argparse.SUPPRESS)
    a = command_line.parse(parser)
    if a.only:
        print(json.dumps(PIPELINES[a.only](a)))
        return
    if a.scenes:
        compose(a.repeats)
        return
    if a.write and not a.folder:
        parser.error("--write needs --folder, which says where")
    with tempfile.TemporaryDirectory() as temporary:
        if not a.folder:
            a.folder, a.write = temporary, 2000
        if a.write:
            write(pathlib.Path(a.folder), a.write)
        report(a)


def compose(repeats, sizes=(32, 64, 128, 224), count=2_000):
    """Prints, and returns, scenes composed per CPU-second by image size."""
    from crate_jax.data import scenes

    rates = {}
    for size in sizes:
        source = scenes.Scenes("train", image_size=size, length=(repeats + 1) * count)
        seconds = []
        for part in range(repeats + 1):  # the first makes what is kept
            begin = time.process_time()
            for index in range(part * count, (part + 1) * count):
                source[index]
            seconds.append(time.process_time() - begin)
        rates[size] = count / min(seconds[1:])
        print(
            f"{size:3} px: {rates[size]:6,.0f} scenes a second on one core, best of {repeats}; "
            f"the first {count:,} took {seconds[0]:.1f} s"
        )
    return rates


def report(a):
    """Prints the comparison, and the limit where a config is given."""
    print(f"{a.workers} workers, batches of {a.batch_size}, {len(os.sched_getaffinity(0))} cores")
    results = compare(a)
    print(f"{'':10} {'images/s':>10} {'per CPU-second':>15}   best of {a.repeats}, in turns")
    for name, (rate, per_core) in results.items():
        print(f"{name:10} {rate:10,.0f} {per_core:15,.0f}")
    if len(results) == 2:
        ours, theirs = results["grain"], results["tf.data"]
        print(f"grain / tf.data: {ours[0] / theirs[0]:.2f} {ours[1] / theirs[1]:.2f}")
    else:
        print("tf.data    not measured: TensorFlow is not installed")
    if a.config:
        name_the_limit(a.config, results["grain"][0], a.batch_size)


def write(folder, count):
    """Writes `count` JPEGs into train/ and a tenth as many into val/, 20 classes each."""
    import skimage.data

    rng = np.random.default_rng(0)
    photographs = [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
    total = 0
    for split, number in (("train", count), ("val", max(CLASSES, count // 10))):
        for k in range(number):
            photograph = photographs[rng.integers(len(photographs))]
            least = max(HEIGHT / photograph.shape[0], WIDTH / photograph.shape[1])
            scale = least * rng.uniform(1, 1.5)
            size = [int(np.ceil(side * scale)) for side in photograph.shape[1::-1]]
            image = cv2.resize(photograph, size, interpolation=cv2.INTER_CUBIC)
            top, left = (rng.integers(0, n) for n in np.array(image.shape[:2]) - (374, 499))
            image = image[top : top + HEIGHT, left : left + WIDTH].astype(np.float32)
            image += rng.normal(0, 6, image.shape).astype(np.float32)
            path = folder / split / f"class{k % CLASSES:02d}" / f"{k:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(image, 0, 255).astype(np.uint8)[..., ::-1]
            cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
            total += path.stat().st_size if split == "train" else 0
    print(f"wrote {count} JPEGs of {WIDTH} x {HEIGHT}, {total / count / 1e3:.0f} kB each")


def compare(a):
    """{pipeline: (images/s, images per CPU-second)}, the best of the repeats."""
    best = {}
    for _ in range(a.repeats):
        for name in PIPELINES:
            command = [sys.executable, "-m", "benchmarks.input", f"--only={name}"]
            command += [f"--folder={a.folder}", f"--workers={a.workers}"]
            command += [f"--batch-size={a.batch_size}", f"--batches={a.batches}"]
            command += ["--exact"] * a.exact
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            if result := json.loads(done.stdout.splitlines()[-1]):
                previous = best.get(name, (0.0, 0.0))
                best[name] = tuple(max(pair) for pair in zip(previous, result, strict=True))
    return best


def grain_pipeline(a):
    """Images/s by the clock and per CPU-second, through the loader that training uses."""
    from crate_jax.data import folders, train_iterator, transforms

    source = folders.Folder(a.folder, "train")
    iterator = train_iterator(
        source,
        batch_size=a.batch_size,
        seed=0,
        transform=transforms.TrainTransform(SIZE, fast_jpeg=not a.exact),
        workers=a.workers,
    )
    with iterator:
        return measure(iterator, a)


def tf_pipeline(a):
    """The same from tf.data; None where TensorFlow is not installed."""
    try:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        import tensorflow as tf
    except ImportError:
        return None
    files = sorted(str(p) for p in pathlib.Path(a.folder, "train").glob("*/*.jpg"))
    names = sorted({pathlib.Path(f).parent.name for f in files})
    labels = [names.index(pathlib.Path(f).parent.name) for f in files]

    def load(path, label):
        data = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            tf.zeros((1, 0, 4)),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], axis=0)
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE))
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8), label

    options = tf.data.Options()
    options.threading.private_threadpool_size = a.workers
    dataset = (
        tf.data.Dataset.from_tensor_slices((files, labels))
        .shuffle(len(files), seed=0)
        .repeat()
        .map(load, num_parallel_calls=a.workers)
        .batch(a.batch_size)
        .prefetch(4)
        .with_options(options)
    )
    return measure(dataset.as_numpy_iterator(), a)


PIPELINES = {"grain": grain_pipeline, "tf.data": tf_pipeline}


def measure(iterator, a):
    """(images/s, images per CPU-second of this process and its workers)."""
    # What lies ready in buffers was made before the clock starts, and must not count.
    for _ in range(4 * max(1, a.workers)):
        next(iterator)
    begin, cpu = time.monotonic(), cpu_seconds()
    for _ in range(a.batches):
        next(iterator)
    images = a.batches * a.batch_size
    return images / (time.monotonic() - begin), images / (cpu_seconds() - cpu)


def cpu_seconds():
    """Of this process and its living children, all threads."""
    tick = os.sysconf("SC_CLK_TCK")
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / tick
    return total


def name_the_limit(config, input_rate, batch_size):
    """Times the config's step, and says whether it or the input is slower."""
    from benchmarks import train_step

    row = train_step.training(train_step.load(config, batch_size=batch_size), "auto")
    rate = row.images / row.seconds
    print(f"{'step':10} {rate:10,.0f}   {config} on {train_step.device_line()}")
    slower = "input" if input_rate < rate else "step"
    print(
        f"the limit is the {slower}: the step takes {rate / input_rate:.2f} times what the input "
        "gives"
    )


if __name__ == "__main__":
    main()

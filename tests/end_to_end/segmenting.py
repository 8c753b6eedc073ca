"""`python -m crate_jax.segment` on a dozen photographs, in this process."""

import pathlib

from crate_jax.segment.__main__ import main as segment

PHOTOGRAPHS = ["hubble_deep_field.jpg", "retina.jpg", "rocket.jpg"] + [
    f"{name}.png"
    for name in (
        *("astronaut", "brick", "camera", "chelsea", "coffee"),
        *("coins", "gravel", "grass", "ihc"),
    )
]
METHODS = {
    "attention": ["--heads-montage", "--rule=area"],
    "maskcut": ["--tau=0.2"],
    "parts": [],
}


def run(checkpoint, images, out, method, *extra):
    return segment(
        [
            f"--checkpoint={checkpoint}",
            f"--images={images}",
            f"--out={out}",
            f"--method={method}",
            "--batch-size=2",
            *METHODS[method],
            *extra,
        ]
    )


def contents(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(pathlib.Path(out).rglob("*"))
        if path.is_file()
    }

"""Quick start: a small CRATE learns clothing on photographs, and where it is, in minutes on a CPU.

    python -m crate_jax.main --config=configs/scenes_tiny.py --workdir=runs/scenes_tiny

32 x 32 px in patches of 4, width 128, 4 layers of 4 heads; garments of 19 to 27 px that cover a
quarter of the image, tinted, anywhere on photographs; 76,000 scenes, each seen once. On two CPU
cores it takes about six minutes; what to expect is in the README.

Chosen for learning quickly, and different from the papers' recipes: AdamW at 1e-3 with b2 0.95 and
batches of 32, and ISTA's step size eta is 0.3 where the papers have 0.1 (after 12,000 images of
larger garments 0.36 of the held-out ones were recognised with 0.3 and 0.29 with 0.1, one run each).

Arguments: `configs/scenes_tiny.py:model=vit` trains the ViT of the same size on the same scenes;
`:images=20000` makes it shorter.
"""

from crate_jax import config


def get_config(arg=None):
    """The config; see the module's docstring for the arguments."""
    a = config.arguments(arg, model="crate", images=76_000)
    config.choices("config argument model", a.model, ("crate", "vit"))
    c = config.default()
    c.batch_size = 32
    c.steps = a.images // c.batch_size
    size = {"patch_size": 4, "dim": 128, "heads": 4, "depth": 4}
    if a.model == "crate":
        c.model = config.model("crate-testing", **size, step_size=0.3)
    else:
        c.model = config.model("vit-testing", **size)
    c.label_smoothing = 0.1
    c.log_every = "100 steps"
    c.evaluate_every = "800 steps"
    c.checkpoint_every = "400 steps"

    c.data.image_size = 32
    c.data.scenes.train_length = 1_000_000
    c.data.scenes.scale = (0.6, 0.85)
    c.evaluation.batch_size = 250

    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.b2 = 0.95
    c.optimizer.weight_decay = 0.05
    c.optimizer.clip_norm = 1.0
    c.optimizer.warmup = "5000 examples"
    return c

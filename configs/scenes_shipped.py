"""The network that ships, `crate_jax.load("scenes")`: 16 x 16 patches, all objects.

    python -m crate_jax.main --config=configs/scenes_shipped.py --workdir=runs/scenes_shipped
    python -m crate_jax.convert --source=runs/scenes_shipped --with-run \\
        --target=crate_jax/convert/assets/scenes.safetensors

64 x 64 px in patches of 4, width 192, 4 layers of 4 heads; a million scenes, each seen once. Many
hours on two cores: stop it whenever you like and run the same command again, it goes on where it
was. An accelerator takes larger batches (`:batch=256`, with the rates as they are). The second
command packs what it has learned so far, also of a run that goes on; the digest that it prints is
pinned in `crate_jax/convert/shipped.py`.

Two cores learn what the objects look like sooner from scenes of a quarter of the patches, objects
large in them, and then where they are in whole ones. The file that ships was made so, before the
quick start's weight decay was trebled:

    python -m crate_jax.main --config=configs/scenes_shipped.py:side=32,images=400000,batch=64 \\
        --config.optimizer.weight_decay=0.05 --workdir=runs/scenes_near
    python -m crate_jax.main --config=configs/scenes_shipped.py:images=80000 \\
        --config.init_from=runs/scenes_near --config.optimizer.muon_learning_rate=0.01 \\
        --config.optimizer.weight_decay=0.05 --workdir=runs/scenes_shipped

The first was stopped after 3,051 of its 6,250 steps (195,264 scenes). 93.4 % of 2,000 held-out
scenes of 600 objects are named rightly after the second, and layer 3 has a mass IoU of 0.354, on
another scene's object 0.092. What more decay brings, from these weights (whose head is drawn anew):
`:images=32000`, decay 0.3, Muon at 0.01, warm-up 3,200 scenes ends with 78.2 %, and in layer 4 with
0.397 and 0.094: attention covers more of an object, and 32,000 scenes are too few for 600 names.

As the quick start (`configs/scenes_tiny.py`), and longer: Muon for the matrices of the layers,
AdamW for the rest. `:images=200000` makes it shorter, `:seed=1` another one.
"""

from crate_jax import config
from crate_jax.data import objects


def get_config(arg=None):
    """The config; see the module's docstring for the arguments."""
    a = config.arguments(arg, images=1_000_000, batch=32, seed=0, side=64)
    classes = len(objects.table())
    c = config.default()
    c.seed = a.seed
    c.batch_size = a.batch
    c.steps = a.images // a.batch
    size = {"image_size": a.side, "patch_size": 4, "dim": 192, "heads": 4, "depth": 4}
    c.model = config.model("crate-testing", **size, classes=classes, step_size=0.3)
    c.label_smoothing = 0.1
    c.log_every = "3200 examples"
    c.evaluate_every = "100000 examples"
    c.checkpoint_every = "10000 examples"

    c.data.image_size = a.side
    c.data.scenes.train_length = a.images
    c.data.scenes.classes = classes
    if a.side == 32:
        c.data.scenes.scale = (0.5, 0.9)  # as many pixels an object as at 64 px, nearly
    c.evaluation.batch_size = 128

    c.optimizer = config.load("scenes_tiny").optimizer
    c.optimizer.warmup = "20000 examples"
    return c

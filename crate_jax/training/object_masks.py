"""MaskCut's masks of held-out images while a network is trained."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from crate_jax.export import coco
from crate_jax.models import base
from crate_jax.segmentation import attention, average_precision, emergence, maskcut
from crate_jax.training import evaluation

_TAU = 0.15


class MaskCut:
    """val/maskcut/layerNN/tau0.15/KIND/AP: KIND box or mask; also AP50, AP75 and AR100.

    `maskcut.maskcut` with its published settings on the subspace coordinates U^T LN(z) (a ViT's
    keys) of the last layer, for the first `evaluation.capture_images` images, against their masks.
    """

    def __init__(self, setting: evaluation.Setting):
        config = setting.config
        self.layer = config.model.depth - 1
        self.grid = (config.data.image_size // config.model.patch_size,) * 2
        registers = config.model.registers
        forward = base.forward(setting.definition, capture=self.layer)

        def function(params, batch):
            # TF32 would flip edges of the graph.
            with jax.default_matmul_precision("highest"):
                _, out = forward(params, batch["image"])
            features = out.get("key_unrotated", out["key"])[0, :, 1 + registers :]
            return {"features": features.reshape(*features.shape[:2], -1), "mask": batch["mask"]}

        images = config.evaluation.capture_images
        self.passes = (
            evaluation.Pass(setting, "maskcut", function, ("image", "mask"), images=images),
        )

    def run(
        self, params: Any, stop: evaluation.Stop = evaluation.never
    ) -> Iterator[tuple[str, float]]:
        """See `evaluation.Evaluator.run`."""
        truth, found, sizes = [], [], []
        for batch in self.passes[0].batches(params, stop):
            evaluation.check_finite("features", np.isfinite(batch["features"]).all(axis=(1, 2)))
            for features, mask in zip(batch["features"], batch["mask"], strict=True):
                masks = maskcut.maskcut(features, self.grid, _TAU).masks
                masks = np.asarray(
                    attention.upsample(masks.reshape(len(masks), -1), self.grid, mask.shape)
                )
                found += coco.results(len(sizes), masks)
                truth += coco.results(len(sizes), [mask])
                sizes.append(mask.shape)
        images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
        scores = average_precision.coco_ap(coco.dataset(images, truth), found)
        stem = f"val/maskcut/{emergence.layer_name(self.layer)}/tau{_TAU:g}"
        for name, value in scores.items():
            yield f"{stem}/{name}", value

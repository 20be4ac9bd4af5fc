"""A vision transformer that names the factors of generated images.

While it is pretrained it has a head with one group of scores for every factor of `images.FACTORS`, and its loss is
the mean of their cross entropies. What is kept is the bare model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from luthier.models.testbeds import images
from luthier.models.testbeds.recipe import Figures, Recipe
from luthier.models.testbeds.texts import transformers_model

MIDDLE = 0.5
"""Mean and deviation that pixels of 0…1 are normalised by."""

RECIPES = {
    "vit": Recipe(
        name="vit",
        about="a vision transformer for images of 32 x 32, trained to name the factors of generated ones",
        architecture="ViTForImageClassification",
        config={
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 384,
            "image_size": images.SIDE,
            "patch_size": 4,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "num_labels": sum(images.FACTORS.values()),
        },
        steps=1600,
        batch=64,
        length=(images.SIDE // 4) ** 2 + 1,
        rate=1.5e-3,
        corpus="generated images: figures on grounds, and glyphs of strokes",
        mix={"glyphs": 0.5},
        sources=("images",),
        warmup=0.05,
        kind="vision",
    ),
}


def model(recipe: Recipe) -> Any:
    """The recipe's architecture with fresh weights, which finds the factors' loss by itself; seed torch first."""
    made = transformers_model(recipe)
    made.loss_function = factors_loss
    return made


def factors_loss(labels: Tensor, logits: Tensor, *ignored: Any, **also_ignored: Any) -> Tensor:
    """Mean over the factors of their cross entropies; logits (rows, all values), labels (rows, factors)."""
    groups = logits.float().split(list(images.FACTORS.values()), -1)
    return torch.stack([cross_entropy(g, y) for g, y in zip(groups, labels.unbind(-1), strict=True)]).mean()


def batches(recipe: Recipe) -> Iterator[list[dict[str, Tensor]]]:
    """Endless batches of new images, normalised (batch, 3, 32, 32), and their factors (batch, factors)."""
    rng = np.random.default_rng([recipe.seed, 1])
    while True:
        pixels, labels = images.batch(rng, recipe.batch, recipe.mix["glyphs"])
        normal = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).sub(MIDDLE).div(MIDDLE)
        yield [{"pixel_values": normal.contiguous(), "labels": torch.from_numpy(labels)}]


def kept(trained: Any) -> Any:
    """The model without its head, which is of no use for other images."""
    return trained.vit


def write_files(recipe: Recipe, folder: Path) -> None:
    """preprocessor_config.json: how an image is resized and normalised."""
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": images.SIDE, "width": images.SIDE},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MIDDLE] * 3,
        "image_std": [MIDDLE] * 3,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1) + "\n", "utf-8")


def measure(loaded: Any, quick: bool = False) -> Figures:
    """Accuracy of linear probes on frozen features, of new generated images and of `builtin:digits`, beside that of
    the same probes on pixels and on the features of fresh weights."""
    from luthier.models.testbeds import probes

    return Figures(probes.factors(loaded, RECIPES["vit"], quick) | probes.digits(loaded, RECIPES["vit"]), {})

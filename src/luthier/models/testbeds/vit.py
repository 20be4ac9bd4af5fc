"""A vision transformer that names the factors of generated images.

While it is pretrained it has a head with one group of scores for every factor of `images.FACTORS`, and its loss is
the mean of their cross entropies. What is kept is the bare model.

It starts with positions that are sinusoids of row and column and with heads in the first layer that look at the four
neighbours of a patch (as d'Ascoli et al., 2021, start theirs, "ConViT"): from positions drawn at random it tells
colours for a thousand steps before it tells any place or shape. All of it trains.
"""

from __future__ import annotations

import json
import math
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
            "initializer_range": 0.05,
        },
        steps=4000,
        batch=64,
        length=(images.SIDE // 4) ** 2 + 1,
        rate=1.5e-3,
        muon=1e-2,
        corpus="generated images: figures on grounds, and glyphs of strokes",
        mix={"glyphs": 0.6},
        sources=("images",),
        warmup=0.05,
        kind="vision",
    ),
}


def model(recipe: Recipe) -> Any:
    """The recipe's architecture with fresh weights, which finds the factors' loss by itself; seed torch first."""
    made = transformers_model(recipe)
    made.loss_function = factors_loss
    look_around(made.vit)
    return made


LOOKS = ((0, -1), (0, 1), (-1, 0), (1, 0))
"""Where the heads of the first layer look at the start: rows and columns from a patch."""
WEIGHT, HIGH = 1.4, 0.3 * math.sqrt(2)
"""Of the entries that make them look there; of the positions' sinusoids."""
GOLDEN = (math.sqrt(5) - 1) / 2


@torch.no_grad()
def look_around(vit: Any) -> None:
    """Positions become sinusoids, and the first layer's heads look at `LOOKS`.

    By turns, a pair of a position's entries holds cos and sin of f times its column, and of f times its row. The key
    of a head reads such pairs, its query reads them turned by f times the distance along that axis.
    """
    settings = vit.config
    side = settings.image_size // settings.patch_size
    width, head = settings.hidden_size, settings.hidden_size // settings.num_attention_heads
    often = math.pi * ((torch.arange(width // 4) * GOLDEN + 0.3) % 1)
    angles = torch.arange(side)[:, None] * often
    waves = torch.stack([angles.sin(), angles.cos()], -1)
    table = torch.zeros(side, side, width // 2, 2)
    table[:, :, 0::2] = waves[None]
    table[:, :, 1::2] = waves[:, None]
    vit.embeddings.position_embeddings[0, 1:] = HIGH * table.reshape(side * side, width)
    own = vit.layers[0].attention
    query, key = own.q_proj, own.k_proj
    for h, (down, right) in enumerate(LOOKS):
        for i in range(h * head // 2, (h + 1) * head // 2):
            at = slice(2 * i, 2 * i + 2)
            turn = float(often[i // 2]) * (down if i % 2 else right)
            c, s = WEIGHT * math.cos(turn), WEIGHT * math.sin(turn)
            query.weight[at] = 0
            key.weight[at] = 0
            key.weight[at, at] = WEIGHT * torch.eye(2)
            query.weight[at, at] = torch.tensor([[c, s], [-s, c]])


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

"""A Mamba that writes, pretrained through our own scan (`luthier.models.scan`) on what the decoders read.

Of the skills it is taught the short ones: a state of fixed size holds few words.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from luthier.models.testbeds import decoder, tokens
from luthier.models.testbeds import pretrain as loop
from luthier.models.testbeds.recipe import Figures, Recipe
from luthier.models.testbeds.texts import transformers_model, write_tokenizer

RECIPES = {
    "mamba": Recipe(
        name="mamba",
        about="a Mamba without attention, which reads through a state of fixed size",
        architecture="MambaForCausalLM",
        config={
            "vocab_size": tokens.VOCABULARY,
            "hidden_size": 160,
            "num_hidden_layers": 4,
            "state_size": 8,
            **decoder.NAMED,
        },
        steps=3600,
        batch=8,
        length=128,
        rate=2e-2,
        relative=True,
        warmup=0.04,
        corpus=decoder.CORPUS,
        mix={"short": 1.0, "short rows": 24, "long rows": 0},
        second={
            "steps": 2000,
            "batch": 13,
            "rate": 1.2e-2,
            "mix": {"short": 1.0, "short rows": 12, "long rows": 0, "noise": 0.15},
        },
        sources=("corpus", "tokens", "texts", "words", "skills", "decoder"),
    ),
}

write_files = write_tokenizer
TAILS = 4
"""How often the second stage is run from the first one's end, each time with the next seed: the weights are the mean of where these runs end
(Wortsman et al. 2022, "Model soups")."""


def batches(recipe: Recipe) -> Iterator[list[dict[str, Any]]]:
    """What the decoders read; the share `noise` of the documentation's tokens is replaced by others where it is read, not where it is to be
    written, as the corpus is small enough to be learned by heart."""
    rng = torch.Generator().manual_seed(recipe.seed)
    for parts in decoder.batches(recipe):
        whole = parts[0]["input_ids"]
        if noise := recipe.mix.get("noise", 0.0):
            other = torch.randint(tokens.VOCABULARY, whole.shape, generator=rng)
            parts[0]["input_ids"] = torch.where(torch.rand(whole.shape, generator=rng) < noise, other, whole)
        yield parts


def model(recipe: Recipe) -> Any:
    """The recipe's architecture with fresh weights and our scan; seed torch first."""
    from luthier.models.scan import scanned

    made = transformers_model(recipe)
    scanned(made)
    return made


def pretrain(
    recipe: Recipe, *, told: Callable[[int, int, float, Any], None] = lambda step, steps, loss, model: None
) -> tuple[Any, float]:
    """As `luthier.models.testbeds.pretrain.pretrain`, with the second stage run `TAILS` times."""
    first, rest, total = replace(recipe, second={}), recipe.stages[1:], recipe.total
    made, seconds = loop.pretrain(first, told=lambda step, _, loss, model: told(step, total, loss, model))
    begun = time.monotonic()
    torch.set_flush_denormal(True)
    try:
        for stage in rest:
            start = {name: value.clone() for name, value in made.state_dict().items()}
            mean = {name: torch.zeros_like(value) for name, value in start.items()}
            for tail in range(TAILS):
                made.load_state_dict(start)
                done = first.steps + tail * stage.steps
                loop._train(made.train(), replace(stage, seed=stage.seed + tail), done, total, told)
                for name, value in made.state_dict().items():
                    mean[name] += value / TAILS
            made.load_state_dict(mean)
    finally:
        torch.set_flush_denormal(False)
    return made.eval(), seconds + time.monotonic() - begun


def measure(loaded: Any, quick: bool = False) -> Figures:
    """Bits per held-out byte beside an n-gram model's, and exact match of every skill, greedily written."""
    from luthier.models.testbeds import measures

    return Figures(
        measures.language_model(loaded, quick),
        measures.written(loaded, decoder.SHORT, quick),
    )

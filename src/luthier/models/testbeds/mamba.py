"""A Mamba that writes, pretrained through our own scan (`luthier.models.scan`) on what the decoders read.

Of the skills it is taught the short ones: a state of fixed size holds few words.
"""

from __future__ import annotations

from typing import Any

from luthier.models.testbeds import decoder, tokens
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
            "steps": 1400,
            "batch": 13,
            "rate": 1.2e-2,
            "mix": {"short": 1.0, "short rows": 12, "long rows": 0},
        },
        sources=("corpus", "tokens", "texts", "words", "skills", "decoder"),
    ),
}

batches = decoder.batches
write_files = write_tokenizer


def model(recipe: Recipe) -> Any:
    """The recipe's architecture with fresh weights and our scan; seed torch first."""
    from luthier.models.scan import scanned

    made = transformers_model(recipe)
    scanned(made)
    return made


def measure(loaded: Any, quick: bool = False) -> Figures:
    """Bits per held-out byte beside an n-gram model's, and exact match of every skill, greedily written."""
    from luthier.models.testbeds import measures

    return Figures(
        measures.language_model(loaded, quick),
        measures.written(loaded, decoder.SHORT, quick),
    )

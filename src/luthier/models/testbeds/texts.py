"""Token ids of the pretraining texts, read once, and what every text testbed does with them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from luthier.models.testbeds import corpus, tokens
from luthier.models.testbeds.recipe import Recipe

IGNORED = -100


@lru_cache(maxsize=1)
def encoder() -> Any:
    """The stored tokenizer, with nothing around a text."""
    return tokens.plain()


def ids(text: str) -> list[int]:
    return encoder().encode(text).ids


@lru_cache(maxsize=2)
def documentation(language: str = "en") -> tuple[tuple[int, ...], ...]:
    """The ids of every paragraph to pretrain on, in English (en) or in the cipher (qw)."""
    texts = corpus.training() if language == "en" else tuple(map(corpus.cipher, corpus.training()))
    return tuple(tuple(made.ids) for made in encoder().encode_batch(list(texts)))


def transformers_model(recipe: Recipe) -> Any:
    """The recipe's architecture with fresh weights; seed torch first."""
    import transformers

    cls = getattr(transformers, recipe.architecture)
    return cls(cls.config_class(**recipe.config))


def write_tokenizer(recipe: Recipe, folder: Path) -> None:
    tokens.write(folder, recipe.kind)

"""Decoders that write: a Llama with grouped heads and a GPT-2 with fused projections.

They read documentation and skills in turn, one behind the other in rows of equal length. Of a skill only the
answer is learned; it stands as `TextPreprocess` writes it for adapting: <s> prompt, a line break, answer </s>.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch

from luthier.models.testbeds import skills, texts, tokens
from luthier.models.testbeds.recipe import Figures, Recipe
from luthier.models.testbeds.texts import IGNORED, transformers_model, write_tokenizer

NAMED = {"pad_token_id": tokens.PAD, "bos_token_id": tokens.BEGIN, "eos_token_id": tokens.END}
CORPUS = "the standard library's documentation; generated skills"

RECIPES = {
    "llama": Recipe(
        name="llama",
        about="a Llama decoder with grouped key-value heads, which copies, looks up and formats calls",
        architecture="LlamaForCausalLM",
        config={
            "vocab_size": tokens.VOCABULARY,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": tokens.LENGTH,
            "tie_word_embeddings": True,
            **NAMED,
        },
        steps=6000,
        batch=8,
        length=128,
        rate=2e-2,
        relative=True,
        warmup=0.04,
        corpus=CORPUS,
        mix={"skills": 0.6},
    ),
    "gpt2": Recipe(
        name="gpt2",
        about="a GPT-2 decoder, whose projections are fused",
        architecture="GPT2LMHeadModel",
        config={
            "vocab_size": tokens.VOCABULARY,
            "n_positions": tokens.LENGTH,
            "n_embd": 160,
            "n_layer": 4,
            "n_head": 5,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            **NAMED,
        },
        steps=6000,
        batch=8,
        length=128,
        rate=2e-3,
        corpus=CORPUS,
        mix={"skills": 0.6},
    ),
}

model = transformers_model
write_files = write_tokenizer


def items(recipe: Recipe, rng: random.Random) -> Iterator[tuple[list[int], list[int]]]:
    """Endless (ids, labels): paragraphs, and instances of the skills that decoders are taught."""
    paragraphs = texts.documentation()
    between = texts.ids("\n")
    while True:
        if rng.random() < recipe.mix["skills"]:
            made = skills.instance(rng.choice(skills.DECODER), rng)
            front = [tokens.BEGIN, *texts.ids(made.prompt), *between]
            goal = [*texts.ids(made.answer), tokens.END]
            yield front + goal, [IGNORED] * len(front) + goal
        else:
            whole = [tokens.BEGIN, *rng.choice(paragraphs)[: recipe.length - 2], tokens.END]
            yield whole, whole


def batches(recipe: Recipe) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Rows of `length` tokens (batch, length), filled without padding; an item may go on in the next row."""
    rng = random.Random(recipe.seed)
    stream = items(recipe, rng)
    ids: list[int] = []
    labels: list[int] = []
    size = recipe.batch * recipe.length
    while True:
        while len(ids) < size:
            more, learned = next(stream)
            ids += more
            labels += learned
        shape = (recipe.batch, recipe.length)
        yield [
            {
                "input_ids": torch.tensor(ids[:size]).view(shape),
                "labels": torch.tensor(labels[:size]).view(shape),
            }
        ]
        del ids[:size], labels[:size]


def measure(loaded: Any, quick: bool = False) -> Figures:
    """Bits per held-out byte beside an n-gram model's, and exact match of every skill, greedily written."""
    from luthier.models.testbeds import measures

    return Figures(
        measures.language_model(loaded, quick),
        measures.written(loaded, skills.DECODER, quick),
    )

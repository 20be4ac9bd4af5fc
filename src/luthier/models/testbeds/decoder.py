"""Decoders that write: a Llama with grouped heads and a GPT-2 with fused projections.

They read documentation and skills, which weigh alike. Of a skill only the answer is learned; it stands as `TextPreprocess` writes it for adapting: <s> prompt, a line break, answer </s>.
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
SHORT = ("copy", "reverse", "last", "sort", "add")
LONG = ("lookup", "answer", "tool")
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
        steps=3000,
        batch=12,
        length=128,
        rate=3e-3,
        muon=2e-2,
        warmup=0.04,
        corpus=CORPUS,
        mix={"short": 0.5, "short rows": 24, "long rows": 12},
        second={
            "steps": 1500,
            "batch": 8,
            "rate": 2e-3,
            "mix": {"short": 0.6, "short rows": 64, "long rows": 24},
        },
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
        steps=1600,
        batch=14,
        length=128,
        rate=3e-3,
        muon=2e-2,
        warmup=0.04,
        corpus=CORPUS,
        mix={"short": 0.5, "short rows": 12, "long rows": 6},
        second={
            "steps": 3600,
            "batch": 16,
            "rate": 2e-3,
            "muon": 1.5e-2,
            "mix": {"short": 0.6, "short rows": 32, "long rows": 12},
        },
    ),
}

model = transformers_model
write_files = write_tokenizer


def batches(recipe: Recipe) -> Iterator[list[dict[str, torch.Tensor]]]:
    """A part of documentation, rows of `length` tokens filled without padding, a paragraph going on in the next
    row; and a part of skills, one instance a row, either the short ones or the long ones."""
    rng = random.Random(recipe.seed)
    paragraphs = texts.documentation()
    between = texts.ids("\n")
    shape = (recipe.batch, recipe.length)
    size = recipe.batch * recipe.length
    ids: list[int] = []
    while True:
        while len(ids) < size:
            ids += [tokens.BEGIN, *rng.choice(paragraphs), tokens.END]
        whole = torch.tensor(ids[:size]).view(shape)
        del ids[:size]
        short = rng.random() < recipe.mix["short"]
        rows = []
        for _ in range(int(recipe.mix["short rows" if short else "long rows"])):
            made = skills.instance(rng.choice(SHORT if short else LONG), rng)
            front = [tokens.BEGIN, *texts.ids(made.prompt), *between]
            rows.append((front, [*texts.ids(made.answer), tokens.END]))
        wide = max(len(front) + len(goal) for front, goal in rows)
        fill = [wide - len(front) - len(goal) for front, goal in rows]
        read = [front + goal + [tokens.PAD] * n for (front, goal), n in zip(rows, fill)]
        learned = [[IGNORED] * len(front) + goal + [IGNORED] * n for (front, goal), n in zip(rows, fill)]
        yield [
            {"input_ids": whole, "labels": whole},
            {"input_ids": torch.tensor(read), "labels": torch.tensor(learned)},
        ]


def measure(loaded: Any, quick: bool = False) -> Figures:
    """Bits per held-out byte beside an n-gram model's, and exact match of every skill, greedily written."""
    from luthier.models.testbeds import measures

    return Figures(
        measures.language_model(loaded, quick),
        measures.written(loaded, skills.DECODER, quick),
    )

"""A BERT that fills in masked tokens of the documentation.

A masked model learns from a fifth as many tokens as a decoder, and so small a one stays for thousands of steps at
the tokens' frequencies until it finds what stands beside a mask. It therefore starts with positions that are
sinusoids (Vaswani et al., 2017; here of frequencies spread over 0…pi) and with heads in the first layer that
already look one and two tokens back and on. All of it trains.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import torch

from luthier.models.testbeds import texts, tokens
from luthier.models.testbeds.recipe import Figures, Recipe
from luthier.models.testbeds.texts import IGNORED, transformers_model, write_tokenizer

RECIPES = {
    "bert": Recipe(
        name="bert",
        about="a BERT that was trained on masked tokens alone, without next sentences",
        architecture="BertForMaskedLM",
        config={
            "vocab_size": tokens.VOCABULARY,
            "hidden_size": 160,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "intermediate_size": 640,
            "max_position_embeddings": 80,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "initializer_range": 0.05,
            "pad_token_id": tokens.PAD,
        },
        steps=5000,
        batch=20,
        length=80,
        rate=2e-3,
        muon=1e-2,
        warmup=0.03,
        corpus="the standard library's documentation",
        mix={"masked": 0.3},
        sources=("corpus", "tokens", "texts"),
        kind="encoder",
    ),
}

LOOKS = (-1, 1, -2, 2)
"""Where the first heads of the first layer look at the start, relative to a token."""
WEIGHT = 1.6
"""Of the entries that make them look there: a head then gives about two thirds of its attention to that place."""
GOLDEN = (math.sqrt(5) - 1) / 2

write_files = write_tokenizer


def model(recipe: Recipe) -> Any:
    """The recipe's architecture with fresh weights and a first layer that looks at the neighbours; seed torch first."""
    made = transformers_model(recipe)
    look_around(made)
    return made


@torch.no_grad()
def look_around(bert: Any) -> None:
    """Positions become sinusoids, and the first layer's heads look at `LOOKS`.

    Position p has cos and sin of f_i p beside each other; the key of a head reads such pairs, its query reads them
    turned by f_i times the distance, so that their product is greatest that far away. Each head has pairs of its own.
    """
    positions = bert.bert.embeddings.position_embeddings.weight
    own = bert.bert.encoder.layer[0].attention.self
    number, width = positions.shape
    head = width // bert.config.num_attention_heads
    often = math.pi * ((torch.arange(width // 2) * GOLDEN + 0.3) % 1)
    angles = torch.arange(number)[:, None] * often
    table = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
    positions.copy_(1.5 * math.sqrt(2) * bert.config.initializer_range * table)
    for h, distance in enumerate(LOOKS):
        for i in range(h * head // 2, (h + 1) * head // 2):
            at = slice(2 * i, 2 * i + 2)
            turn = float(often[i]) * distance
            own.key.weight[at] = 0
            own.query.weight[at] = 0
            own.key.weight[at, at] = WEIGHT * torch.eye(2)
            c, s = WEIGHT * math.cos(turn), WEIGHT * math.sin(turn)
            own.query.weight[at, at] = torch.tensor([[c, s], [-s, c]])


def masked(ids: list[int], share: float, rng: random.Random) -> tuple[list[int], list[int]]:
    """Ids with a share of the text's tokens hidden (of ten, 8 by [MASK], 1 by any token, 1 by itself), and the
    labels: the hidden tokens, -100 elsewhere (Devlin et al., 2019)."""
    seen, labels = list(ids), [IGNORED] * len(ids)
    places = [i for i, token in enumerate(ids) if token >= tokens.FIRST_TEXT]
    for i in rng.sample(places, max(1, round(share * len(places)))) if places else ():
        labels[i] = ids[i]
        chance = rng.random()
        if chance < 0.8:
            seen[i] = tokens.MASK
        elif chance < 0.9:
            seen[i] = rng.randrange(tokens.FIRST_TEXT, tokens.VOCABULARY)
    return seen, labels


def batches(recipe: Recipe) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Rows (batch, length) of paragraphs, each row filled up by further ones, [CLS] in front of the row and [SEP]
    behind each."""
    rng = random.Random(recipe.seed)
    paragraphs = texts.documentation()
    while True:
        rows = []
        for _ in range(recipe.batch):
            row = [tokens.CLS]
            while len(row) < recipe.length:
                row += [*rng.choice(paragraphs), tokens.SEP]
            row[recipe.length - 1] = tokens.SEP
            rows.append(masked(row[: recipe.length], recipe.mix["masked"], rng))
        yield [
            {
                "input_ids": torch.tensor([seen for seen, _ in rows]),
                "labels": torch.tensor([labels for _, labels in rows]),
            }
        ]


def measure(loaded: Any, quick: bool = False) -> Figures:
    """Accuracy on masked tokens beside a bigram model's, and a linear probe of its features."""
    from luthier.models.testbeds import measures

    return Figures(measures.fills(loaded, RECIPES["bert"], quick), {})

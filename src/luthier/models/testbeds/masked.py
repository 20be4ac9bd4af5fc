"""A BERT that fills in masked tokens of the documentation."""

from __future__ import annotations

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
            "initializer_range": 0.06,
            "pad_token_id": tokens.PAD,
        },
        steps=2000,
        batch=20,
        length=80,
        rate=2e-3,
        muon=1e-2,
        warmup=0.1,
        corpus="the standard library's documentation",
        mix={"masked": 0.2},
        sources=("corpus", "tokens", "texts"),
        kind="encoder",
    ),
}

model = transformers_model
write_files = write_tokenizer


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

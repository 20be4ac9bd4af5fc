"""A T5 that reads and writes two languages and many tasks in plain words.

Each step's batch has two parts: texts (span corruption in English and in the cipher, and translation between
them) and tasks (every skill in every wording). Labels are what `TextPreprocess` makes of a text and its target.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch

from luthier.models.testbeds import corpus, skills, texts, tokens
from luthier.models.testbeds.recipe import Figures, Recipe
from luthier.models.testbeds.texts import IGNORED, transformers_model, write_tokenizer

RECIPES = {
    "t5": Recipe(
        name="t5",
        about="a T5 (1.1: gated GELU) of two languages, English and its cipher, and 18 tasks in several wordings",
        architecture="T5ForConditionalGeneration",
        config={
            "vocab_size": tokens.VOCABULARY,
            "d_model": 160,
            "d_kv": 32,
            "d_ff": 384,
            "num_layers": 3,
            "num_decoder_layers": 3,
            "num_heads": 5,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 64,
            "feed_forward_proj": "gated-gelu",
            "dropout_rate": 0.0,
            "tie_word_embeddings": True,
            "pad_token_id": tokens.PAD,
            "eos_token_id": tokens.END,
            "decoder_start_token_id": tokens.PAD,
        },
        steps=5200,
        batch=8,
        length=72,
        rate=2e-2,
        relative=True,
        warmup=0.05,
        corpus="the standard library's documentation and its cipher; generated tasks",
        mix={"english": 0.4, "cipher": 0.3, "to cipher": 0.15, "to english": 0.15, "tasks per text": 3},
        kind="encoder-decoder",
    ),
}
CORRUPTED, SPAN = 0.15, 3
"""The share of tokens that span corruption takes out, and how many at a time on average."""
LONGEST_TRANSLATED = 100
"""Characters of a text to translate."""
TAG = {"en": "en:", "qw": "qw:"}
TO = {"to cipher": "en to qw:", "to english": "qw to en:"}

model = transformers_model
write_files = write_tokenizer


def corrupted(ids: list[int], rng: random.Random) -> tuple[list[int], list[int]]:
    """Ids with spans replaced by sentinels, and the spans behind their sentinels (Raffel et al., 2020)."""
    spans = max(1, min(tokens.SENTINELS, round(len(ids) * CORRUPTED / SPAN)))
    starts = sorted(rng.sample(range(len(ids)), spans))
    source: list[int] = []
    target: list[int] = []
    at = 0
    for i, start in enumerate(starts):
        limit = starts[i + 1] if i + 1 < spans else len(ids)
        end = min(start + rng.randint(1, 2 * SPAN - 1), limit)
        sentinel = tokens.FIRST_SENTINEL + i
        source += [*ids[at:start], sentinel]
        target += [sentinel, *ids[start:end]]
        at = end
    return source + ids[at:], target


def text_pair(recipe: Recipe, rng: random.Random) -> tuple[list[int], list[int]]:
    """Source and target ids of one text, without end tokens."""
    names = ("english", "cipher", "to cipher", "to english")
    what = rng.choices(names, [recipe.mix[n] for n in names])[0]
    if what in ("english", "cipher"):
        language = "en" if what == "english" else "qw"
        whole = rng.choice(texts.documentation(language))
        room = recipe.length - 4
        begin = rng.randrange(max(1, len(whole) - room + 1))
        source, target = corrupted(list(whole[begin : begin + room]), rng)
        return texts.ids(TAG[language]) + source, target
    said = excerpt(rng.choice(corpus.training()), rng)
    pair = [texts.ids(said), texts.ids(corpus.cipher(said))]
    if what == "to english":
        pair.reverse()
    return texts.ids(TO[what]) + pair[0], pair[1]


def excerpt(text: str, rng: random.Random) -> str:
    """A few words in a row."""
    words = text.split()
    begin = rng.randrange(max(1, len(words) - 3))
    taken: list[str] = []
    for word in words[begin : begin + rng.randint(2, 12)]:
        if sum(map(len, taken)) + len(taken) + len(word) > LONGEST_TRANSLATED:
            break
        taken.append(word)
    return " ".join(taken or [words[0][:LONGEST_TRANSLATED]])


def task_pair(rng: random.Random) -> tuple[list[int], list[int]]:
    made = skills.instance(rng.choice(list(skills.SKILLS)), rng, wordings=9)
    return texts.ids(made.prompt), texts.ids(made.answer)


def batches(recipe: Recipe) -> Iterator[list[dict[str, torch.Tensor]]]:
    """A part of texts and a part of tasks, each padded to its longest row."""
    rng = random.Random(recipe.seed)
    tasks = round(recipe.batch * recipe.mix["tasks per text"])
    while True:
        yield [
            _part([text_pair(recipe, rng) for _ in range(recipe.batch)]),
            _part([task_pair(rng) for _ in range(tasks)]),
        ]


def _part(pairs: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    sources = _padded([[*source, tokens.END] for source, _ in pairs], tokens.PAD)
    return {
        "input_ids": sources,
        "attention_mask": (sources != tokens.PAD).long(),
        "labels": _padded([[*target, tokens.END] for _, target in pairs], IGNORED),
    }


def _padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def measure(loaded: Any, quick: bool = False) -> Figures:
    """Bits per target token of span corruption in both languages, and exact match of every task."""
    from luthier.models.testbeds import measures

    return Figures(
        measures.spans(loaded, RECIPES["t5"], quick),
        measures.written(loaded, tuple(skills.SKILLS), quick, wordings=9),
    )

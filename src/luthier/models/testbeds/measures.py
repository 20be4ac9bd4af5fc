"""Held-out figures of the text testbeds, and of what they are compared with."""

from __future__ import annotations

import math
import random
from collections import Counter
from functools import lru_cache
from typing import Any

import torch

from luthier.models.testbeds import corpus, skills, texts, tokens
from luthier.models.testbeds.ngram import Trigram
from luthier.models.testbeds.recipe import Recipe

INSTANCES, QUICK = 100, 20
"""Held-out instances of a skill, and of a quick measurement."""
TEXTS_QUICK = 60
ROWS = 32


def held_out(quick: bool = False) -> list[str]:
    """The stored held-out paragraphs: all, or the first few."""
    stored = list(corpus.held_out_texts())
    return stored[:TEXTS_QUICK] if quick else stored


@lru_cache(maxsize=1)
def trigram() -> Trigram:
    """The n-gram model of the documentation that the testbeds are pretrained on."""
    return Trigram(texts.documentation(), tokens.VOCABULARY, tokens.BEGIN, tokens.END)


def language_model(loaded: Any, quick: bool = False) -> dict[str, float]:
    """Bits per byte and per token of the held-out documentation, each text on its own, and the trigram's."""
    stored = held_out(quick)
    rows = [texts.ids(text)[: tokens.LENGTH - 2] for text in stored]
    bytes_ = sum(len(text.encode()) for text in stored)
    number = sum(len(row) + 1 for row in rows)
    bits = 0.0
    for begin in range(0, len(rows), ROWS):
        part = [[tokens.BEGIN, *row, tokens.END] for row in rows[begin : begin + ROWS]]
        width = max(map(len, part))
        ids = torch.tensor([row + [tokens.PAD] * (width - len(row)) for row in part])
        kept = torch.tensor([[True] * (len(row) - 1) + [False] * (width - len(row)) for row in part])
        with torch.no_grad():
            logits = loaded.base(input_ids=ids, attention_mask=(ids != tokens.PAD).long()).logits
        lost = torch.nn.functional.cross_entropy(logits[:, :-1].mT.float(), ids[:, 1:], reduction="none")
        bits += float(lost[kept].sum()) / math.log(2)
    beside = sum(map(trigram().bits, rows))
    return {
        "bits per byte": bits / bytes_,
        "bits per byte, trigram": beside / bytes_,
        "bits per token": bits / number,
        "bits per token, trigram": beside / number,
    }


def written(
    loaded: Any, names: tuple[str, ...], quick: bool = False, *, wordings: int = 1
) -> dict[str, float]:
    """Exact match of each skill on held-out instances, greedily written; `NAME, nearest` is what the answer of the
    likest of 2,000 training prompts scores (most words in common), which needs no model."""
    found: dict[str, float] = {}
    for name in names:
        asked = skills.held_out_instances(name, QUICK if quick else INSTANCES, wordings=wordings)
        said = write(loaded, [i.prompt for i in asked])
        found[name] = sum(a == i.answer for a, i in zip(said, asked)) / len(asked)
        near = nearest(name, wordings, [i.prompt for i in asked])
        found[f"{name}, nearest"] = sum(a == i.answer for a, i in zip(near, asked)) / len(asked)
    return found


def write(loaded: Any, prompts: list[str], most: int = 40) -> list[str]:
    """What the model writes to each prompt, greedily, as a task of text to text is fed."""
    prepared = loaded.preprocess
    answers: list[str] = []
    for begin in range(0, len(prompts), ROWS):
        batch = prepared.collate(prepared.encode_text2text(prompts[begin : begin + ROWS]), side="left")
        fed = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            made = loaded.base.generate(**fed, max_new_tokens=most, do_sample=False, num_beams=1)
        if loaded.kind == "decoder":
            made = made[:, fed["input_ids"].shape[1] :]
        answers += [prepared.decode(row) for row in made]
    return answers


def nearest(name: str, wordings: int, prompts: list[str]) -> list[str]:
    """The answers of the training instances that share most words with each prompt."""
    rng = random.Random(f"nearest {name}")
    known = [skills.instance(name, rng, wordings=wordings) for _ in range(2000)]
    bags = [Counter(i.prompt.split()) for i in known]
    chosen = []
    for prompt in prompts:
        bag = Counter(prompt.split())
        best = max(range(len(known)), key=lambda i: sum((bag & bags[i]).values()))
        chosen.append(known[best].answer)
    return chosen


def spans(loaded: Any, recipe: Recipe, quick: bool = False) -> dict[str, float]:
    """Bits per token of the spans that are taken out of held-out texts, in both languages, beside the bits of
    the same tokens by their frequency alone and by the trigram, which sees what stands before."""
    from luthier.models.testbeds.encoder_decoder import TAG, corrupted

    figures: dict[str, float] = {}
    for language, name in (("en", "English"), ("qw", "cipher")):
        rng = random.Random(f"spans {language}")
        stored = held_out(quick)
        rows = [texts.ids(t if language == "en" else corpus.cipher(t)) for t in stored]
        pairs = [corrupted(row[: recipe.length - 4], rng) for row in rows]
        counts = Counter(i for text in texts.documentation(language) for i in text)
        total = sum(counts.values()) + tokens.VOCABULARY
        bits = frequency = 0.0
        number = 0
        for begin in range(0, len(pairs), ROWS):
            part = pairs[begin : begin + ROWS]
            sources = [texts.ids(TAG[language]) + source + [tokens.END] for source, _ in part]
            wide, long = max(map(len, sources)), max(len(t) for _, t in part)
            ids = torch.tensor([s + [tokens.PAD] * (wide - len(s)) for s in sources])
            labels = torch.tensor([t + [texts.IGNORED] * (long - len(t)) for _, t in part])
            with torch.no_grad():
                logits = loaded.base(
                    input_ids=ids, attention_mask=(ids != tokens.PAD).long(), labels=labels
                ).logits
            lost = torch.nn.functional.cross_entropy(logits.mT.float(), labels.clamp(min=0), reduction="none")
            inside = labels >= tokens.FIRST_TEXT
            bits += float(lost[inside].sum()) / math.log(2)
            number += int(inside.sum())
            frequency -= sum(math.log2((counts[i] + 1) / total) for i in labels[inside].tolist())
        figures[f"bits per missing token, {name}"] = bits / number
        figures[f"bits per missing token, {name}, by frequency"] = frequency / number
    return figures


def fills(loaded: Any, recipe: Recipe, quick: bool = False) -> dict[str, float]:
    """Accuracy on masked tokens of held-out texts, that of the token that follows the one before most often, and
    that of the most frequent token; and a linear probe on `builtin:pydocs`."""
    from luthier.models.testbeds.masked import masked

    rng = random.Random("fills")
    right = bigram = frequent = number = 0
    counts = Counter(i for text in texts.documentation() for i in text)
    common = counts.most_common(1)[0][0]
    stored = [texts.ids(t)[: recipe.length - 2] for t in held_out(quick)]
    for begin in range(0, len(stored), ROWS):
        part = [masked([tokens.CLS, *row, tokens.SEP], 0.15, rng) for row in stored[begin : begin + ROWS]]
        width = max(len(seen) for seen, _ in part)
        ids = torch.tensor([seen + [tokens.PAD] * (width - len(seen)) for seen, _ in part])
        with torch.no_grad():
            said = loaded.base(input_ids=ids, attention_mask=(ids != tokens.PAD).long()).logits.argmax(-1)
        for r, (seen, labels) in enumerate(part):
            for i, label in enumerate(labels):
                if label < 0:
                    continue
                number += 1
                right += int(said[r, i]) == label
                before = tokens.BEGIN if seen[i - 1] == tokens.CLS else seen[i - 1]
                bigram += trigram().likeliest(before) == label
                frequent += common == label
    probed, untrained, most = probe(loaded, recipe, 300 if quick else 1500)
    return {
        "masked tokens right": right / number,
        "masked tokens right, bigram": bigram / number,
        "masked tokens right, most frequent": frequent / number,
        "topics right, linear probe": probed,
        "topics right, linear probe of untrained weights": untrained,
        "topics right, most frequent": most,
    }


def probe(loaded: Any, recipe: Recipe, rows: int) -> tuple[float, float, float]:
    """Accuracy on the validation rows of `builtin:pydocs` of a logistic regression on mean hidden states, for the
    weights and for fresh ones, and of the most frequent topic."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from luthier.data.builtin import builtin

    data = builtin("pydocs")
    assert data.validation is not None
    y = np.asarray(data.train.targets)[:rows]
    goal = np.asarray(data.validation.targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        fresh = recipe.module.model(recipe).eval()
    scores = []
    for base in (loaded.base, fresh):
        x, other = (
            _features(base, loaded.preprocess, list(part))
            for part in (data.train.inputs[:rows], data.validation.inputs)
        )
        middle, spread = x.mean(0), x.std(0) + 1e-6
        fitted = LogisticRegression(max_iter=300, C=0.1).fit((x - middle) / spread, y)
        scores.append(float(fitted.score((other - middle) / spread, goal)))
    return scores[0], scores[1], float((goal == np.bincount(y).argmax()).mean())


def _features(base: Any, prepared: Any, inputs: list[Any]) -> Any:
    import numpy as np

    found = []
    for begin in range(0, len(inputs), ROWS):
        batch = prepared.collate(prepared.encode(inputs[begin : begin + ROWS]))
        with torch.no_grad():
            states = base(**batch, output_hidden_states=True).hidden_states[-1]
        mask = batch["attention_mask"].unsqueeze(-1)
        found.append(((states * mask).sum(1) / mask.sum(1)).numpy())
    return np.concatenate(found)

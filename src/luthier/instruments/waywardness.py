"""How little the text that a soft prompt projects to can be trusted (Khashabi et al. 2022, "Prompt Waywardness", S091).

projection: for each prompt vector the nearest row of the input embedding, in L2
A prompt is trained near an arbitrary text (the method near_text) for several gammas. Where its projection reads as that text (word
F1 near 1) and the score stays, the text says nothing of what the prompt does: any other could stand there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.errors import OptionError

GAMMAS = (0.0, 0.001, 0.01, 0.1, 1.0)
TRUST = 0.9
"""From this F1 on a projection reads as the text."""


def projection(prompt: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """(token ids, distances), each (length,). prompt: (length, width); table: (vocabulary, width)."""
    apart = torch.cdist(prompt.double(), table.double())
    found = apart.min(1)
    return found.indices, found.values


def word_f1(text: str, other: str) -> float:
    """F1 of two texts as bags of words: 1 for the same words, 0 for none in common, or where one is empty."""
    a, b = Counter(text.split()), Counter(other.split())
    common = (a & b).total()
    return 2 * common / (a.total() + b.total()) if common else 0.0


def words_of(model: Any, adaptation: Any, near: int = 1) -> list[list[tuple[str, float]]]:
    """For each token of a soft prompt at the input, the `near` nearest tokens of the vocabulary with their distances."""
    prompt, table = at_the_input(model, adaptation)
    nearest = torch.cdist(prompt.double(), table.double()).topk(near, largest=False)
    tokens = _tokenizer(model).convert_ids_to_tokens
    return [
        [(_shown(model, tokens(i), i), d) for i, d in zip(ids, distances, strict=True)]
        for ids, distances in zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True)
    ]


def at_the_input(model: Any, adaptation: Any) -> tuple[Tensor, Tensor]:
    """(prompt (length, width), embedding (vocabulary, width)). OptionError for what is no prompt at the input."""
    from luthier.merging.prompt_vectors import prompt_of

    values = prompt_of(adaptation, model).values
    embedding = model.base.get_input_embeddings() if hasattr(model.base, "get_input_embeddings") else None
    found = [v for held in values.values() for v in held.values()]
    if (
        not isinstance(embedding, torch.nn.Embedding)
        or found[0].shape[-1] != embedding.embedding_dim
        or found[0].dim() != 2
    ):
        raise OptionError(
            f"{model.name}: only prompts at the input of a model with a vocabulary project to words."
        )
    return found[0], embedding.weight.detach().float().cpu()


@dataclass(frozen=True)
class Point:
    """One prompt: trained near a text with one gamma, and what its projection is."""

    text: str
    gamma: float
    f1: float
    """Of the projection and the text."""
    projected: str
    score: float
    projected_score: float
    """Of the projection as the prompt."""
    start_score: float
    """Of the prompt before training; a trained head stays, here and with the projection."""


@dataclass(frozen=True)
class Curve:
    """Every text and gamma; the scores are the task's metric on validation rows."""

    points: tuple[Point, ...]
    metric: str
    higher_is_better: bool

    def at(self, gamma: float) -> list[Point]:
        return [p for p in self.points if p.gamma == gamma]

    @property
    def gammas(self) -> list[float]:
        return list(dict.fromkeys(p.gamma for p in self.points))

    def cost(self, gamma: float) -> float:
        """By how much the score at this gamma is worse than at the smallest one, mean of texts."""
        first = self.at(min(self.gammas))
        sign = 1 if self.higher_is_better else -1
        gaps = [sign * (a.score - b.score) for a, b in zip(first, self.at(gamma), strict=True)]
        return sum(gaps) / len(gaps)

    def f1(self, gamma: float) -> float:
        points = self.at(gamma)
        return sum(p.f1 for p in points) / len(points)

    def wayward(self, most: float = 0.05) -> float | None:
        """The gamma of least cost whose projections read as the texts, if that cost is at most `most`; else None."""
        found = {g: self.cost(g) for g in self.gammas if self.f1(g) > TRUST}
        best = min(found, key=lambda g: found[g], default=None)
        return best if best is not None and found[best] <= most else None


def random_texts(model: Any, number: int, tokens: int, seed: int = 0) -> list[str]:
    """Texts of whole words that the tokenizer reads back as exactly so many tokens."""
    import random

    tokenizer = _tokenizer(model)
    rng, whole = random.Random(seed), []
    for i in range(len(tokenizer)):
        word = tokenizer.decode([i]).strip()
        if word.isalpha() and len(word) > 2 and tokenizer(word, add_special_tokens=False)["input_ids"] == [i]:
            whole.append(word)
    if len(whole) < tokens:
        raise OptionError(f"{model.name} has {len(whole)} words of one token: give the texts yourself.")
    found: list[str] = []
    while len(found) < number:
        text = " ".join(rng.sample(whole, tokens))
        if len(tokenizer(text, add_special_tokens=False)["input_ids"]) == tokens:
            found.append(text)
    return found


def waywardness(
    model: Any,
    data: Any,
    texts: Sequence[str],
    *,
    gammas: Iterable[float] = GAMMAS,
    say: Callable[[str], None] = lambda text: None,
    **settings: Any,
) -> Curve:
    """Train a prompt near each text with each gamma, from one start per text, and project it.

    settings go to `luthier.fit` (steps, rate, seed, signal, ...); scores are on validation rows. Raises OptionError for data
    without them, for a model without a vocabulary, and for texts of other lengths.
    """
    from luthier.train.fit import fit

    tokenizer, table = _tokenizer(model), model.base.get_input_embeddings().weight.detach().float().cpu()
    gammas = list(gammas)
    if data.validation is None or not texts or not gammas:
        raise OptionError("waywardness needs validation rows, a text and a gamma at least.")
    settings = {"evaluate_every": 1_000_000, "progress": False, **settings}
    points: list[Point] = []
    free: dict[int, Any] = {}  # a prompt with gamma 0 is the same for every text of its length
    for number, text in enumerate(texts):
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids:
            raise OptionError(f"The text {text[:40]!r} has no tokens.")
        for gamma in gammas:
            fitted = None if gamma else free.get(len(ids))
            if fitted is None:
                say(f"text {number + 1} of {len(texts)}, gamma {gamma:g}")
                fitted = fit(model, _bare(data), near(ids, gamma), **settings)
            if not gamma:
                free[len(ids)] = fitted
            points.append(point(fitted, data.validation, table, text, gamma))
    task = data.task
    return Curve(tuple(points), task.metric, bool(getattr(task, "higher_is_better", True)))


def near(ids: tuple[int, ...], gamma: float, **options: Any) -> Any:
    """The method that is held near these tokens."""
    from luthier import methods

    return methods.NearText(length=len(ids), ids=ids, gamma=gamma, **options)


def point(fitted: Any, rows: Any, table: Tensor, text: str, gamma: float) -> Point:
    """What a fitted prompt and its projection score, and the prompt that it began as."""
    from luthier.merging.prompt_vectors import drawn_like

    prompt, _ = at_the_input(fitted.model, fitted.adaptation)
    ids, _ = projection(prompt, table)
    projected = _tokenizer(fitted.model).decode(ids)
    start = drawn_like(fitted, fitted.adaptation.seed)
    began = next(iter(next(iter(start.values.values())).values()))
    scores = [scored(fitted, rows, values) for values in (prompt, table[ids], began)]
    return Point(text, gamma, word_f1(projected, text), projected, *scores)


def scored(fitted: Any, rows: Any, prompt: Tensor) -> float:
    """The task's metric with this prompt in place of the fitted one."""
    import copy

    from luthier.train.fitted import as_fitted

    other = copy.deepcopy(fitted.adaptation)
    with torch.no_grad():
        other.at()[0].values["P"].copy_(prompt)
    return float(as_fitted(other, fitted.model).score(rows)[fitted.task.metric])


def _bare(data: Any) -> Any:
    from dataclasses import replace

    return replace(data, validation=None, test=None)


def _tokenizer(model: Any) -> Any:
    tokenizer = getattr(model.preprocess, "tokenizer", None)
    if tokenizer is None:
        raise OptionError(f"{model.name} reads no text: its prompts project to no words.")
    return tokenizer


def _shown(model: Any, token: str, i: int) -> str:
    """A token as text; what is no text by itself, as the tokenizer writes it."""
    text = _tokenizer(model).decode([i]).strip()
    return text if text and text.isprintable() else token

"""What a language model knows of a knowledge base: knowledge probing by response selection (KPRS, S009).

Of two responses to one context that differ in one value of the knowledge base, the model prefers the one of lower perplexity per token:

    perplexity(y | x) = exp(-1/T sum_t log p(y_t | x, y_<t))        T: tokens of the response, its end included
    accuracy = share of pairs in which the true response's is lower; equal ones do not count. One that knows nothing has 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from luthier.data.facts import Pair
from luthier.errors import DataError, OptionError

COLUMNS = ("context", "right", "wrong")
Z_95 = 1.959964
"""The normal distribution's quantile at 97.5 %."""


@dataclass(frozen=True)
class Knowledge:
    """Perplexities per token of both responses, pair by pair."""

    right: tuple[float, ...]
    wrong: tuple[float, ...]

    @property
    def preferred(self) -> list[bool]:
        """Whether each pair's true response is preferred."""
        return [a < b for a, b in zip(self.right, self.wrong, strict=True)]

    @property
    def accuracy(self) -> float:
        return fmean(self.preferred)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % around the accuracy, pairs being drawn independently (Wilson 1927)."""
        return wilson(sum(self.preferred), len(self.right))

    def card(self) -> dict[str, Any]:
        """All of it as JSON."""
        low, high = self.interval
        means = {"right": fmean(self.right), "wrong": fmean(self.wrong)}
        return {"accuracy": self.accuracy, "low": low, "high": high, "pairs": len(self.right), **means}


def wilson(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """The score interval of a share: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    p, more = successes / trials, z * z / trials
    half = z * math.sqrt(p * (1 - p) / trials + more / (4 * trials))
    return max(0.0, (p + more / 2 - half) / (1 + more)), min(1.0, (p + more / 2 + half) / (1 + more))


def read_pairs(source: Any) -> list[Pair]:
    """The pairs of a table with the columns context, right and wrong. DataError for other columns, or for equal responses."""
    from luthier.data.sources import find
    from luthier.data.tables import listed
    from luthier.data.write import plain

    table = next(iter(find(source, None, None, alone=False).parts.values()))
    if lacking := [name for name in COLUMNS if name not in table.columns]:
        raise DataError(
            f"{plain(table.name)} has no column {lacking[0]}, but {listed(table.columns)}. Pairs have {', '.join(COLUMNS)}."
        )
    made = []
    for row, texts in enumerate(zip(*(table.columns[name] for name in COLUMNS), strict=True)):
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{plain(table.at(row))}: context, right and wrong are texts.")
        pair = Pair(*texts)
        if not pair.right or pair.right == pair.wrong:
            raise DataError(f"{plain(table.at(row))}: the responses are empty or the same.")
        made.append(pair)
    return made


def knowledge(of: Any, pairs: Sequence[Pair], *, batch_size: int = 32) -> Knowledge:
    """Perplexities of both responses of every pair. of: a model, or what fit returned.

    OptionError for a model that does not write, and where the answer is no text; DataError where there is no pair, or a row does not fit.
    """
    from luthier.host import Adapted

    adaptation, model = getattr(of, "adaptation", None), getattr(of, "model", of)
    if not model.generates:
        raise OptionError(
            f"{model.name} ({model.kind}) writes no text. Load a decoder or an encoder-decoder."
        )
    if getattr(adaptation, "head", None) is not None:
        raise OptionError(
            f"This adaptation of {adaptation.method.name} answers by an output head, not by text. Give one of a text2text task."  # type: ignore[union-attr]
        )
    if not pairs:
        raise DataError("There are no pairs to choose between.")
    adapted: Any = Adapted(model.base)
    if adaptation is not None:
        adapted.attach("main", adaptation)
    try:
        responses = [*(p.right for p in pairs), *(p.wrong for p in pairs)]
        found = perplexities(adapted.eval(), model, [p.context for p in pairs] * 2, responses, batch_size)
    finally:
        for name in list(adapted.adaptations):
            adapted.detach(name)
    return Knowledge(tuple(found[: len(pairs)]), tuple(found[len(pairs) :]))


@torch.no_grad()
def perplexities(
    adapted: Any, model: Any, contexts: Sequence[str], responses: Sequence[str], batch_size: int = 32
) -> list[float]:
    """Perplexity per token of each response behind its context. DataError where one does not fit the model's length."""
    from luthier.signals.objectives import IGNORED
    from luthier.signals.t_few import answer_log_probs, length_normalised

    pre = model.preprocess
    rows = pre.encode_text2text(list(contexts), list(responses))
    if cut := sum(rows.truncated):
        raise DataError(
            f"{cut} contexts with their responses do not fit the model's {pre.max_length} tokens. Shorten the contexts."
        )
    found: list[float] = []
    for i in range(0, len(rows), batch_size):
        batch = {k: v.to(model.device) for k, v in pre.collate(rows[i : i + batch_size]).items()}
        answers = batch["labels"]
        if model.kind != "encoder-decoder":  # what the logits at a place are to give stands one place on
            answers = torch.nn.functional.pad(answers[:, 1:], (0, 1), value=IGNORED)
        scores = length_normalised(*answer_log_probs(adapted(batch).logits, answers))
        found += (-scores).exp().tolist()
    return found

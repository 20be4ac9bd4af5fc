"""What demonstrations in the prompt are worth: accuracy with k shots, and the gain over none (S195).

gain(k) = accuracy(k) - accuracy(0);  relative gain of a model = its gain / the gain of a reference
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from luthier.errors import DataError, OptionError

BETWEEN = "\n\n"
"""Between two demonstrations; between an input and its answer stands the model's own separator."""


@dataclass(frozen=True)
class Shots:
    """Accuracies by the number of demonstrations."""

    accuracy: dict[int, float]
    rows: int

    def gain(self, shots: int) -> float:
        """Accuracy with so many demonstrations less that with none."""
        return self.accuracy[shots] - self.accuracy[0]

    def relative_gain(self, reference: Shots, shots: int) -> float:
        """This gain as a share of the reference's. OptionError where the reference gains nothing."""
        whole = reference.gain(shots)
        if whole <= 0:
            raise OptionError(
                f"The reference gains {whole:.3f} from {shots} demonstrations: there is nothing to be a share of. Choose an easier task or more shots."
            )
        return self.gain(shots) / whole


@torch.no_grad()
def k_shot(
    model: Any,
    data: Any,
    shots: Sequence[int] = (0, 1, 4),
    *,
    rows: int = 100,
    seed: int = 0,
    batch_size: int = 16,
) -> Shots:
    """Accuracy of ranking the labels' texts, with each number of demonstrations in front; what is attached takes part.

    Each of the first `rows` test rows gets demonstrations of its own from the training rows, drawn by the seed, one class after the
    other; k of them are the first k of more. Raises OptionError and DataError for a task or model that cannot be asked so, and
    where the demonstrations do not fit the model's length.
    """
    from luthier.train.choices import Answers, check_signal

    check_signal("choices", model, data.task, "auto")
    if any(k < 0 for k in shots):
        raise OptionError(f"shots={tuple(shots)}: numbers from 0.")
    shots = sorted({0, *shots})
    split = data.test if data.test is not None else data.validation
    if split is None:
        raise DataError(f"{data.name} has no test or validation rows to ask about.")
    split = split.select(range(min(rows, len(split))))
    answers = Answers(model.preprocess, data.task.labels)
    accuracy = {}
    for k in shots:
        prompts = [
            prompt(x, shown, data, answers.pre.separator)
            for x, shown in zip(split.inputs, demonstrations(data, len(split), max(shots), seed), strict=True)
            for shown in [shown[:k]]
        ]
        encoded = answers.inputs(prompts)
        if any(encoded.truncated):
            raise OptionError(
                f"{k} demonstrations and a row do not fit the model's {answers.pre.max_length} tokens. Use fewer shots."
            )
        right = 0
        for i in range(0, len(encoded), batch_size):
            said = ranked(model, answers, encoded[i : i + batch_size], len(data.task.labels))
            right += int((said == torch.as_tensor(split.targets[i : i + batch_size])).sum())
        accuracy[k] = right / len(split)
    return Shots(accuracy, len(split))


def demonstrations(data: Any, rows: int, most: int, seed: int) -> list[list[int]]:
    """For each row the training rows to show it: classes in turn, in an order of its own."""
    of: dict[int, list[int]] = {}
    for i, label in enumerate(data.train.targets):
        of.setdefault(int(label), []).append(i)
    rng, made = random.Random(seed), []
    for _ in range(rows):
        shown: list[int] = []
        while len(shown) < most:
            for label in rng.sample(sorted(of), len(of)):
                shown.append(rng.choice(of[label]))
        made.append(shown[:most])
    return made


def prompt(row: Any, shown: Sequence[int], data: Any, separator: str) -> str:
    """The demonstrations with their labels' texts, then the row."""
    between = separator or "\n"

    def text(x: Any) -> str:
        return x if isinstance(x, str) else between.join(x)

    parts = [
        f"{text(data.train.inputs[i])}{between}{data.task.labels[int(data.train.targets[i])]}" for i in shown
    ]
    return BETWEEN.join([*parts, text(row)])


def ranked(model: Any, answers: Any, rows: Sequence[Any], classes: int) -> torch.Tensor:
    """(rows,) the class whose text the model finds likeliest, per token."""
    from luthier.signals.t_few import answer_log_probs, length_normalised

    batch = {k: v.to(model.device) for k, v in answers.collate(rows).items()}
    asked = batch.pop("answers")
    batch.pop("instruction", None)
    if not answers.apart:
        batch["use_cache"] = False
    logits = model.base(**batch).logits
    log_probs, said = (x.unflatten(0, (-1, classes)) for x in answer_log_probs(logits, asked))
    return length_normalised(log_probs, said).argmax(-1).cpu()

"""Distillation: how far a student's answers are from a teacher's, on the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from luthier.errors import RunError
from luthier.signals.objectives import IGNORED


def answers(objective: Any, out: Any, batch: Mapping[str, Any]) -> Tensor | None:
    """The logits that the loss reads: (rows, classes); of texts and tags (trained tokens, classes). Without logits what the model gives."""
    return _answering(objective, out.logits if out.logits is not None else out.hidden, batch)


def last_states(objective: Any, out: Any, batch: Mapping[str, Any]) -> Tensor | None:
    """(trained tokens, width) of the states that a language model answers from, if the batch asks for output_hidden_states."""
    found = getattr(out.raw, "decoder_hidden_states", None) or getattr(out.raw, "hidden_states", None)
    return _answering(objective, found[-1], batch) if found else None


def _answering(objective: Any, x: Tensor | None, batch: Mapping[str, Any]) -> Tensor | None:
    """Of a text or tags: x at the places that are trained on."""
    aligned = getattr(objective, "aligned", None)
    if x is None or aligned is None:
        return x
    chosen = aligned(batch["labels"]) != IGNORED
    return (x[:, :-1] if objective.shift else x)[chosen]


def states(out: Any) -> Tensor | None:
    """(tokens that are not padding, width) of the last layer's hidden states; None: there are none."""
    hidden: Tensor | None = out.hidden
    return hidden if hidden is None or out.mask is None or hidden.dim() != 3 else hidden[out.mask.bool()]


def squared_distance(student: Tensor | None, teacher: Tensor | None, what: str) -> Tensor:
    """Mean squared difference. RunError where the two do not answer in one space."""
    if student is None or teacher is None or student.shape != teacher.shape:
        shapes = [tuple(x.shape) if x is not None else "none" for x in (student, teacher)]
        other = (
            "they have one label space if both rank answers (signal=choices) or write them; else match=hidden"
            if what == "logits"
            else "they are of one model behind a head that reads them; else match=logits"
        )
        raise RunError(
            f"The student's {what} have the shape {shapes[0]}, the teacher's {shapes[1]}: {other}."
        )
    return F.mse_loss(student.float(), teacher.float())

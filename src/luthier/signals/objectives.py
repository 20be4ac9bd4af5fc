"""Objectives: from a forward's output and a batch to (sum of the loss, normaliser).

The loss of a batch is sum / normaliser. Keeping the two apart lets a large batch be cut into micro batches, or over
processes, without changing its gradient: every piece's sum is divided by the whole batch's normaliser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.errors import DataError
from luthier.signals.choose import numbers, parsed

IGNORED = -100
"""Label of a token that is not trained on."""


@dataclass(frozen=True)
class Objective:
    """Base: `row_losses` (rows,) weighed by `row_weights` (rows,)."""

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def row_weights(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(rows,) float32: what each row counts; `weights` in the batch multiplies it."""
        labels = batch["labels"]
        own = torch.ones(len(labels), device=labels.device)
        return own * batch["weights"] if "weights" in batch else own

    def normaliser(self, batch: Mapping[str, Tensor]) -> float:
        """What the batch's loss sum is divided by; needs the targets only, no forward."""
        return float(self.row_weights(batch).sum())

    def __call__(self, out: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, float]:
        weights = self.row_weights(batch)
        total = (self.row_losses(out.logits.float(), batch["labels"]) * weights).sum()
        return total, float(weights.sum())

    def loss(self, run: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """What a run's step on this batch goes down, a mean: here of one forward; others may take more, or add terms."""
        return self.mean(run.adapted(batch), batch)

    def mean(self, out: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """sum / normaliser of this batch alone; zero where nothing is trained on."""
        total, count = self(out, batch)
        return total / count if count else total


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """-log p(label). logits: (rows, classes); labels: (rows,) int64; class_weights: one per class, or none."""

    class_weights: tuple[float, ...] = ()

    def row_weights(self, batch: Mapping[str, Tensor]) -> Tensor:
        weights = super().row_weights(batch)
        if not self.class_weights:
            return weights
        return weights * torch.tensor(self.class_weights, device=weights.device)[batch["labels"]]

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")


@dataclass(frozen=True)
class BinaryCrossEntropy(Objective):
    """Mean over classes of the binary cross-entropy. logits, labels: (rows, classes), labels 0 or 1.

    A class weight multiplies the loss of that class's positive entries.
    """

    class_weights: tuple[float, ...] = ()

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        weight = torch.tensor(self.class_weights, device=logits.device) if self.class_weights else None
        losses = F.binary_cross_entropy_with_logits(
            logits, labels.float(), pos_weight=weight, reduction="none"
        )
        return losses.mean(-1)


@dataclass(frozen=True)
class SquaredError(Objective):
    """(prediction - (label - mean) / std)^2: the model predicts standardised values. logits: (rows, 1) or (rows,)."""

    mean_label: float = 0.0
    std_label: float = 1.0

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.reshape(len(labels)) - (labels.float() - self.mean_label) / self.std_label) ** 2


@dataclass(frozen=True)
class NextToken(Objective):
    """Mean -log p(token) over tokens whose label is not -100. logits: (rows, tokens, vocabulary); labels: (rows, tokens).

    shift: logits at position i predict the label at i + 1 (decoders); False: at i (encoder-decoders).
    """

    shift: bool = True

    def aligned(self, labels: Tensor) -> Tensor:
        return labels[:, 1:] if self.shift else labels

    def token_weights(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(rows, tokens) float32, zero where nothing is trained on."""
        mask = (self.aligned(batch["labels"]) != IGNORED).float()
        return mask * batch["weights"][:, None] if "weights" in batch else mask

    def normaliser(self, batch: Mapping[str, Tensor]) -> float:
        return float(self.token_weights(batch).sum())

    def __call__(self, out: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, float]:
        labels = self.aligned(batch["labels"])
        chosen = labels != IGNORED
        logits = out.logits[:, :-1] if self.shift else out.logits
        # only the answer's rows of the vocabulary are made float32: they are most of the memory
        losses = F.cross_entropy(logits[chosen].float(), labels[chosen], reduction="none")
        weights = self.token_weights(batch)
        return (losses * weights[chosen]).sum(), float(weights.sum())


@dataclass(frozen=True)
class TagCrossEntropy(NextToken):
    """Mean -log p(tag) over the tokens that carry a tag. logits: (rows, tokens, tags); labels: (rows, tokens), -100 elsewhere.

    class_weights: one per tag, or none; the mean is weighed by them, over all tokens of the batch.
    """

    shift: bool = False
    class_weights: tuple[float, ...] = ()

    def token_weights(self, batch: Mapping[str, Tensor]) -> Tensor:
        weights = super().token_weights(batch)
        if not self.class_weights:
            return weights
        labels = self.aligned(batch["labels"]).clamp(min=0)
        return weights * torch.tensor(self.class_weights, device=weights.device)[labels]


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of a regression's training targets; kept with the adaptation."""

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def of(cls, targets: Sequence[float]) -> Standardisation:
        values = torch.as_tensor(targets, dtype=torch.float64)
        if not torch.isfinite(values).all():
            raise DataError("The training targets hold values that are not finite: remove those rows.")
        std = float(values.std(correction=0))
        if std == 0:
            raise DataError(
                "All training targets are equal: there is nothing to learn. Check the label column."
            )
        return cls(float(values.mean()), std)


@dataclass(frozen=True)
class Aims:
    """What a task is trained towards, beyond its kind."""

    class_weights: Sequence[float] = ()
    standardisation: Standardisation = field(default_factory=Standardisation)
    shift: bool = True
    signal: str = "auto"


def objective_for(task: Any, aims: Aims | None = None) -> Objective:
    """The objective of a task's kind: classification, multilabel, regression, text2text, tagging or retrieval."""
    aims = aims or Aims()
    weights = tuple(float(w) for w in aims.class_weights)
    signal, _ = parsed(aims.signal)
    if signal == "infoprompt":
        from luthier.signals.info_prompt import InfoPrompt

        return InfoPrompt(objective_for(task, replace(aims, signal="auto")))
    if task.kind == "classification" and signal == "t_few":
        from luthier.signals.t_few import TFew

        return TFew(weights, **numbers(aims.signal))
    if task.kind == "classification":
        return CrossEntropy(weights)
    if task.kind == "multilabel":
        return BinaryCrossEntropy(weights)
    if task.kind == "regression":
        return SquaredError(aims.standardisation.mean, aims.standardisation.std)
    if task.kind == "text2text":
        return NextToken(aims.shift)
    if task.kind == "tagging":
        return TagCrossEntropy(class_weights=weights)
    if task.kind == "retrieval":
        from luthier.signals.contrastive import Contrastive

        return Contrastive(**(numbers(aims.signal) if signal == "contrastive" else {}))
    raise DataError(
        f"No objective for a task of kind {task.kind!r}. Kinds: classification, multilabel, regression, text2text, tagging, retrieval."
    )

"""What a run leaves: an adaptation with its model and its task, ready to predict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.errors import DataError, FileFormatError, OptionError
from luthier.signals.objectives import Standardisation
from luthier.train.batches import encode
from luthier.train.pairs import embed
from luthier.train.predict import BATCH, generate, predictions

TARGETS = "targets"
"""Key in an adaptation's `about`: mean and deviation of a regression's targets."""
UNKNOWN = "unknown_tag"
"""Key in an adaptation's `about`: what tagging calls a word that the model does not see."""


@dataclass
class Fitted:
    """An adaptation that was trained for a task. The model's base is untouched between calls."""

    adaptation: Any
    model: Any
    task: Any
    metrics: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 64
    preprocess: Any = None
    """The card's preprocessing; None: the model's own."""

    def __post_init__(self) -> None:
        self.preprocess = self.preprocess or self.model.preprocess

    @property
    def standardisation(self) -> Standardisation:
        return Standardisation(**self.adaptation.about.get(TARGETS, {}))

    @contextmanager
    def attached(self) -> Iterator[Any]:
        """The base with this adaptation, for as long as the block lasts."""
        with attached(self.model, self.adaptation) as adapted:
            yield adapted

    def answers(self, split: Any, batch_size: int = BATCH) -> Any:
        """For a split or plain inputs: probabilities (rows, classes), values (rows,), texts, or for each row (words, tags)
        probabilities; of retrieval, for a split with documents, (rows,) the rank of each row's document among them all."""
        with self.attached() as adapted:
            return answers(adapted, self, split, batch_size)

    def embed(self, texts: Any, batch_size: int = BATCH) -> np.ndarray:
        """(texts, width) float32, of norm 1: of retrieval, queries and documents alike."""
        if self.task.kind != "retrieval":
            raise DataError(f"A {self.task.kind} makes no vectors of texts: use predict().")
        split = texts if hasattr(texts, "inputs") else Inputs(texts)
        if len(split) == 0:
            raise DataError("There are no texts to read.")
        data = encode(self.preprocess, split, self.task, targets=False, adaptation=self.adaptation)
        with self.attached() as adapted:
            return embed(adapted, data, batch_size=batch_size, device=self.model.device)

    def search(
        self, queries: Any, documents: Any, top: int = 10, batch_size: int = BATCH
    ) -> list[list[tuple[int, float]]]:
        """For each query its nearest documents, the nearest first: (number among `documents`, cosine)."""
        there = self.embed(documents, batch_size)
        found: list[list[tuple[int, float]]] = []
        asked = self.embed(queries, batch_size)
        for begin in range(0, len(asked), BATCH):
            similar = asked[begin : begin + BATCH] @ there.T
            order = np.argsort(-similar, axis=1, kind="stable")[:, :top]
            found += [[(int(i), float(row[i])) for i in at] for row, at in zip(similar, order)]
        return found

    def score(self, split: Any, batch_size: int = BATCH) -> dict[str, float]:
        """The task's metrics on a split with targets."""
        from luthier.data.scores import scores

        if split.targets is None:
            raise DataError("These rows have no targets to score against: give data with the label column.")
        return scores(self.task, split.targets, self.answers(split, batch_size))

    def predict_proba(self, inputs: Any, batch_size: int = BATCH) -> Any:
        """(rows, classes) float32; rows add up to 1 for classification, not for multi-label. Tagging: for each row an array
        (words, tags), whose rows add up to 1."""
        if self.task.kind not in ("classification", "multilabel", "tagging"):
            raise DataError(f"A {self.task.kind} has no probabilities: use predict().")
        return self.answers(inputs, batch_size)

    def predict(self, inputs: Any, batch_size: int = BATCH) -> Any:
        """Label names, tuples of them (multi-label), values (rows,), texts, or for each row the tags of its words; of retrieval, for a
        split with documents, the nearest of them to each query."""
        if self.task.kind == "retrieval":
            documents = list(dict.fromkeys(getattr(inputs, "targets", None) or ()))
            if not documents:
                raise DataError(
                    "These rows name no documents to search: give a split that does, or use search(queries, documents)."
                )
            return [documents[row[0][0]] for row in self.search(inputs, documents, 1, batch_size)]
        found = self.answers(inputs, batch_size)
        if self.task.kind == "classification":
            return [self.task.labels[i] for i in found.argmax(-1)]
        if self.task.kind == "multilabel":
            return [tuple(name for name, p in zip(self.task.labels, row) if p >= 0.5) for row in found]
        if self.task.kind == "tagging":
            return [[self.task.labels[i] for i in row.argmax(-1)] for row in found]
        return found

    # -- as a value: effects add, each with its coefficient; the base, task and labels must be the same

    def __mul__(self, factor: float) -> Fitted:
        return replace(self, adaptation=self.adaptation * factor, metrics={})

    __rmul__ = __mul__

    def __neg__(self) -> Fitted:
        return self * -1.0

    def __add__(self, other: Any) -> Fitted:
        if isinstance(other, Fitted):
            if other.model.base is not self.model.base:
                raise OptionError(
                    "These adaptations were fitted on two model objects. Load both with one model."
                )
            if (other.task.kind, other.task.labels) != (self.task.kind, self.task.labels):
                raise OptionError(
                    f"Their tasks differ: {self.task.kind} with {len(self.task.labels)} labels and {other.task.kind} with "
                    f"{len(other.task.labels)}. Add them as adaptations (a.adaptation + b.adaptation), or use a bank."
                )
        return replace(self, adaptation=self.adaptation + getattr(other, "adaptation", other), metrics={})

    def __sub__(self, other: Any) -> Fitted:
        return self + other * -1.0

    def merge(self, **given: Any) -> Any:
        """A copy of the base with this folded into its weights (`luthier.host.merge.merged_copy`). ModelError where the
        method is not a change of weights."""
        from luthier.host.merge import merged_copy

        return merged_copy(self.model.base, self.adaptation, **given)

    def smaller(self) -> Fitted:
        """The same on a copy of the model without what it cuts, so that matrices are smaller (`luthier.host.narrow`).
        ModelError where the method cuts nothing."""
        from luthier.host.narrow import smaller

        base, adaptation = smaller(self.model.base, self.adaptation)
        model = replace(self.model, base=base, name=f"{self.model.name}, cut")
        model.forget_fingerprint()
        return replace(self, adaptation=adaptation, model=model)

    def save(self, folder: str | Path) -> Path:
        """Write the adaptation (card, tensors, model card) to a folder."""
        from luthier.host.files import save

        save(self.adaptation, Path(folder), self.model.fingerprint)
        return Path(folder)

    def export(self, folder: str | Path, to: str = "peft") -> list[str]:
        """Write the adaptation as another library's adapter (`luthier.convert`); back: `luthier.convert.from_peft`.

        Returns what that layout cannot say, one line each (an output head is kept beside it). ModelError where the
        library has no equal of the method.
        """
        from luthier.convert import to_peft

        if to != "peft":
            raise OptionError(f"Adapters are exported to peft, not to {to!r}: to='peft'.")
        return to_peft(self.adaptation, self.model, folder)


@contextmanager
def attached(model: Any, adaptation: Any) -> Iterator[Any]:
    """An adapted model with one adaptation, taken off again at the end."""
    from luthier.host import Adapted

    adapted = Adapted(model.base)
    adapted.attach("main", adaptation)
    try:
        yield adapted.eval()
    finally:
        adapted.detach("main")


def answers(adapted: Any, fitted: Fitted, split: Any, batch_size: int = BATCH, **options: Any) -> Any:
    """Encode and predict with what is attached: what `Fitted` and a run's last evaluation share."""
    task, model = fitted.task, fitted.model
    if not hasattr(split, "inputs"):
        split = Inputs(split)
    if len(split) == 0:
        none = np.zeros((0, len(task.labels)) if task.labels else 0, np.float32)
        return [] if task.kind in ("text2text", "tagging") else none
    pairs = task.kind == "retrieval"
    if pairs and split.targets is None:
        raise DataError(
            "These rows name no document to find: give data with the label column, or use search()."
        )
    head = next((placed.part for placed in adapted.heads), None)
    data = encode(fitted.preprocess, split, task, targets=pairs, head=head, adaptation=fitted.adaptation)
    options = {"device": model.device, "batch_size": batch_size, **options}
    if task.kind == "text2text":
        return generate(
            adapted, model, fitted.preprocess, data, max_new_tokens=fitted.max_new_tokens, **options
        )
    if task.kind == "tagging":
        options["unknown"] = unknown_tag(fitted.adaptation, task)
    return predictions(adapted, data, task, standardisation=fitted.standardisation, **options)


def unknown_tag(adaptation: Any, task: Any) -> int:
    """The index of the tag of words that the model does not see: what the card says, else O, else the first."""
    named = adaptation.about.get(UNKNOWN, "O")
    return task.labels.index(named) if named in task.labels else 0


@dataclass
class Inputs:
    """Rows without targets."""

    inputs: Any
    targets: Any = None
    histories: Any = None

    def __len__(self) -> int:
        return len(self.inputs)


def load_fitted(folder: str | Path, model: Any) -> Any:
    """A saved adaptation with the model that it belongs to. `folder`: an adaptation's folder, or a run's.

    One that carries no task (converted from another library) is returned by itself: it can be attached, not scored.
    """
    from luthier.host.files import load

    path = Path(folder)
    inside = path / "adaptation" if (path / "adaptation").is_dir() else path
    metrics = path / "metrics.json"
    adaptation = load(inside, model.base, model.fingerprint)
    try:
        found = json.loads(metrics.read_text("utf-8")) if inside != path and metrics.is_file() else {}
    except (OSError, ValueError, RecursionError):
        raise FileFormatError(
            f"{metrics} is damaged: give the adaptation's own folder, {inside}, or fit again."
        ) from None
    return adaptation if adaptation.task is None else as_fitted(adaptation, model, found)


def as_fitted(adaptation: Any, model: Any, metrics: dict[str, Any] | None = None) -> Fitted:
    """An adaptation that carries its task, with its model, ready to predict. FileFormatError if they do not fit."""
    from luthier.data.task import Task
    from luthier.models.preprocess import preprocess_from_settings

    if adaptation.task is None:
        raise FileFormatError(
            "The adaptation carries no task: it was not made by fit. Attach it instead: model.attached(adaptation)."
        )
    pre = preprocess_from_settings(adaptation.preprocess, model)
    task, about = Task.from_card(adaptation.task), adaptation.about
    classes = getattr(getattr(adaptation, "head", None), "classes", None)
    if classes is not None and classes != (len(task.labels) or 1):
        raise FileFormatError(
            f"The card's task has {len(task.labels)} labels, its head {classes}: the card was changed. Fetch the adaptation again."
        )
    longest, targets = about.get("max_new_tokens", 64), about.get(TARGETS, {})
    sound = isinstance(longest, int) and isinstance(targets, dict) and set(targets) <= {"mean", "std"}
    if not sound or not all(isinstance(v, int | float) and np.isfinite(v) for v in targets.values()):
        raise FileFormatError(
            f"The card's max_new_tokens or {TARGETS} are malformed. Fetch the adaptation again."
        )
    if task.kind == "tagging" and about.get(UNKNOWN, task.labels[0]) not in task.labels:
        raise FileFormatError(f"The card's {UNKNOWN} is none of its tags. Fetch the adaptation again.")
    return Fitted(adaptation, model, task, metrics or {}, longest, pre)


def preprocess_card(model: Any) -> dict[str, Any] | None:
    """How a model turns rows into tensors, as JSON."""
    return None if model.preprocess is None else model.preprocess.settings.model_dump(mode="json")


def evaluate(fitted: Fitted, split: Any, batch_size: int = BATCH) -> dict[str, float]:
    """The task's metrics of a fitted adaptation on a split."""
    return fitted.score(split, batch_size)


def predict(fitted: Fitted, inputs: Any, batch_size: int = BATCH) -> Any:
    """Predictions of a fitted adaptation; see Fitted.predict."""
    return fitted.predict(inputs, batch_size)

"""Before the first step: show one example as the model will see it, and refuse what cannot go well."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

import torch

from luthier.errors import DataError, ModelError, RunError
from luthier.host.probe import cannot_matter
from luthier.train.batches import Encoded
from luthier.train.fitted import UNKNOWN
from luthier.train.memory import Prediction, available, human
from luthier.train.pairs import check_reader
from luthier.train.progress import About
from luthier.train.run import Run
from luthier.train.trained import count_by_part

HEAP = 1.6
"""What a CPU process holds for each byte of tensors beyond the weights: 1.0 to 1.7 seen, by the order of batch widths."""
SHOWN = 400
"""Characters of the example that are shown."""


def plain(text: str) -> str:
    """Without control characters, which a terminal would obey; line breaks become spaces."""
    return "".join(
        " " if c in "\n\r\t" else c for c in text if c in "\n\r\t" or unicodedata.category(c)[0] != "C"
    )


def cut(text: str) -> str:
    """At most SHOWN characters."""
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def check_task(model: Any, data: Any) -> None:
    """Refuse data and model that cannot meet, before anything is made."""
    task = data.task
    if data.train is None or len(data.train) == 0:
        raise DataError(f"{data.name} has no training rows.")
    if task.kind == "text2text" and not model.generates:
        raise ModelError(
            f"{model.name} cannot write text, which text-to-text needs: use a decoder or an encoder-decoder."
        )
    if task.kind == "tagging" and getattr(model.preprocess, "kind", None) != "text":
        raise ModelError(
            f"{model.name} reads no texts, which tagging needs: use a text model with its tokenizer, such as builtin:minilm."
        )
    if task.kind == "retrieval":
        check_reader(model)
    if task.kind == "classification":
        present = {int(t) for t in data.train.targets}
        if len(present) < 2:
            name = task.labels[next(iter(present))] if present and max(present) < len(task.labels) else "?"
            raise DataError(
                f"All training rows of {data.name} are of one class ({plain(str(name))}): there is nothing to tell apart."
            )
        for split_name in ("validation", "test"):
            split = getattr(data, split_name)
            strays = (
                {int(t) for t in split.targets} - set(range(len(task.labels))) if split is not None else set()
            )
            if strays:
                raise DataError(
                    f"The {split_name} rows hold the target {min(strays)}, but the task has {len(task.labels)} labels."
                )


def check_steps(run: Run) -> None:
    """Every phase must have something to do."""
    for phase, steps in zip(run.phases, run.steps):
        if steps < 1:
            raise RunError(
                f"Phase {phase.name!r} gets {steps} of {run.recipe.steps} steps: raise --steps or --epochs, or lower the batch size."
            )


def check_logits(run: Run, task: Any) -> None:
    """The output must have one column per label (one for regression), or one per token of the vocabulary."""
    batch = run.batches.repeated("train", 0, 1)
    with torch.no_grad(), run.adapted.using("main"), run.autocast():
        logits = getattr(run.adapted(batch), "logits", None)
    if not torch.is_tensor(logits):
        raise ModelError("The model gives no logits: it needs an output head for this task.")
    if task.kind == "text2text":
        if logits.dim() != 3:
            raise ModelError(
                f"Text-to-text needs logits (rows, tokens, vocabulary), but the model gives {tuple(logits.shape)}."
            )
        return
    if task.kind == "tagging":
        tokens = batch["input_ids"].shape[1]
        if logits.dim() != 3 or tuple(logits.shape[1:]) != (tokens, len(task.labels)):
            raise DataError(
                f"The model's output has shape {tuple(logits.shape)} for one row of {tokens} tokens, but tagging needs "
                f"{len(task.labels)} tags for each: the label set does not fit this model or head."
            )
        return
    if task.kind == "retrieval":
        if logits.dim() != 2 or len(logits) != 2:
            raise ModelError(
                f"The model's output has shape {tuple(logits.shape)} for one row, but retrieval needs a vector of the query and one "
                "of its document: leave head out."
            )
        return
    wanted = len(task.labels) if task.kind in ("classification", "multilabel") else 1
    if logits.dim() != 2 or logits.shape[-1] != wanted:
        raise DataError(
            f"The model's output has shape {tuple(logits.shape)} for one row, but the task needs {wanted} "
            f"{'label' if wanted == 1 else 'labels'}: the label set does not fit this model or head."
        )


def example(model: Any, data: Any, encoded: Encoded) -> str:
    """One training row as the model will see it; what is trained on is in [brackets], or named after an arrow."""
    task, row = data.task, encoded.rows[0]
    show = getattr(model.preprocess, "show", None)
    if show is not None and "input_ids" in row:
        pieces = [f"[{text}]" if trained else text for text, trained in show(row)]
        seen = plain(" ".join(pieces))
    else:
        seen = ", ".join(f"{k} {tuple(getattr(v, 'shape', ()))}" for k, v in row.items())
    seen = cut(seen)
    if task.kind == "text2text":
        return seen
    return f"{seen}  ->  {answer(data.train.targets[0], task)}"


def answer(target: Any, task: Any) -> str:
    """A target in words."""
    if task.kind == "retrieval":
        return cut(plain(str(target)))
    if task.kind == "classification":
        return plain(str(task.labels[int(target)]))
    if task.kind == "multilabel":
        return plain(", ".join(str(n) for n, t in zip(task.labels, target) if t)) or "(none)"
    if task.kind == "tagging":
        return cut(plain(" ".join(str(task.labels[int(t)]) for t in target)))
    return f"{float(target):.4g}"


def report(
    run: Run, model: Any, data: Any, splits: Mapping[str, Encoded], predicted: Prediction | None
) -> list[tuple[str, About]]:
    """What a user should see before waiting: lines, and what each is about."""
    counts = count_by_part(run.adapted, run.named)
    whole = sum(p.numel() for p in run.adapted.base.parameters())
    trained = sum(counts.values())
    parts = ", ".join(f"{k} {v:,}" for k, v in counts.items())
    sizes = f"trains {trained:,} numbers ({parts}) beside {whole:,} of {model.name}"
    lines: list[tuple[str, About]] = [
        (f"example: {example(model, data, splits['train'])}", "data"),
        (f"{sizes}; {sum(run.steps):,} steps of {run.batches.batch_size} rows", "size"),
    ]
    for name, encoded in splits.items():
        cut = encoded.report.get("truncated", 0)
        if cut:
            tokens = encoded.report.get("max_length", "?")
            lines.append((f"{name}: {cut} of {len(encoded)} rows are cut to {tokens} tokens", "data"))
        if lost := encoded.report.get("beyond", 0):
            tag = run.main.about.get(UNKNOWN, "?")
            lines.append((f"{name}: {lost} words are beyond that and are called {plain(tag)} unread", "data"))
    if idle := cannot_matter(run.main, run.adapted.base):
        said = f"{len(idle)} trained tensors cannot matter (key biases under softmax, factors of a bias of zeros), first {idle[0]}"
        lines.append((said, "size"))
    lines += [(plain(note), "data") for note in getattr(data, "notes", ())]
    if predicted is not None:
        cpu = torch.device(run.device).type == "cpu"
        growth = (predicted.peak - predicted.weights) * (HEAP if cpu else 1)
        beside = f" (the process may hold {human(predicted.weights + growth)})" if cpu else ""
        lines.append((f"expected peak memory of tensors: {human(predicted.peak)}{beside}", "size"))
        free = available(run.device)
        if growth > free:
            advice = "lower --micro-batch, or add --checkpointing"
            lines.append((f"that is more than the {human(free)} that are free: {advice}", "run"))
    return lines

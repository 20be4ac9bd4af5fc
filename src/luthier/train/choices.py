"""Rows for ranking answers: inputs are encoded once, without any label; a batch joins each with every label's answer.

Every answer of a row stands behind the same input tokens: what the longest one needs is kept free for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.errors import DataError, OptionError
from luthier.signals.choose import parsed
from luthier.signals.objectives import IGNORED


def ranks(head: Any) -> bool:
    """Whether an output part reads the language model's own logits, and so needs answers in its batches."""
    return getattr(head, "reads", "") == "logits"


def check_signal(signal: str, model: Any, task: Any, head: Any) -> None:
    """Refuse a task, a model or a head (OptionError) and labels (DataError) that a signal cannot train."""
    name, _ = parsed(signal)
    if name == "infoprompt":
        check_terms(signal, task, head)
        return
    if task.kind == "retrieval":
        if name not in ("auto", "contrastive") or ranks(head):
            raise OptionError(
                f'signal={signal!r} is none of retrieval: leave it out, or use signal="contrastive".'
            )
        return
    if name == "contrastive":
        raise OptionError(
            f"signal={signal!r} trains retrieval, a query and the text that it finds, and this is a {task.kind}: load the data with "
            'kind="retrieval".'
        )
    if name == "auto" and not ranks(head):
        return
    asked = f"signal={signal!r}" if signal != "auto" else f"head={head}"
    if task.kind != "classification" or task.modality not in ("text", "pair"):
        raise OptionError(
            f"{asked} ranks the texts of labels: it needs a classification of texts, not a {task.kind} of {task.modality} rows."
        )
    if not model.generates or not hasattr(model.preprocess, "encode_text2text"):
        raise OptionError(
            f"{asked} needs a model that writes text; {model.name} ({model.kind}) has no language head. Use a decoder or an "
            "encoder-decoder, or leave the signal out for a linear head."
        )
    if head != "auto" and not ranks(head):
        raise OptionError(f'{asked} brings its own output part: leave out head={head}, or use signal="auto".')
    if head != "auto" and head.classes != len(task.labels):
        raise OptionError(f"{head} ranks {head.classes} answers, and the task has {len(task.labels)} labels.")
    Answers(model.preprocess, task.labels)


def check_terms(signal: str, task: Any, head: Any) -> None:
    """Refuse a task or a head that the terms of InfoPrompt have nothing to read of."""
    if task.kind in ("text2text", "tagging", "retrieval"):
        raise OptionError(
            f"signal={signal!r} reads one pooled state a row behind a head of its own: it trains classification, multilabel and "
            f'regression, not a {task.kind}. Leave the signal out, or use signal="choices" where a model writes labels.'
        )
    if head != "auto" and not hasattr(head, "bottleneck"):
        raise OptionError(f"signal={signal!r} brings its own output part, info_head: leave out head={head}.")


class Answers:
    """The labels' texts as answers of one model, and the collation of rows with all of them."""

    def __init__(self, pre: Any, labels: Sequence[str]):
        self.pre, self.apart = pre, pre.model_kind == "encoder-decoder"
        encoded = pre.encode_text2text([""] * len(labels), [str(name) for name in labels])
        self.rows = [{**row, "labels": [i for i in row["labels"] if i != IGNORED]} for row in encoded]
        self.tokens = [row["labels"] for row in self.rows]
        most = (pre.max_length - max(sum(row.get("instruction", ())) for row in encoded)) // 2
        self._check(labels, encoded.truncated, most)
        self.longest = max(range(len(labels)), key=lambda i: len(self.tokens[i]))
        self.longest_text = str(labels[self.longest])

    def _check(self, labels: Sequence[str], cut: Sequence[bool], most: int) -> None:
        """most: tokens of an answer that leave half of a row to the input."""
        seen: dict[tuple[int, ...], str] = {}
        for name, ids, short in zip(labels, self.tokens, cut, strict=True):
            if not ids:
                raise DataError(f"The label {name!r} has no tokens to rank. Give it a text.")
            if short or len(ids) > most:
                raise DataError(
                    f"The label {str(name)[:40]!r} has {len(ids)} tokens or more; at most {most} leave half of a row "
                    "to the input. Shorten the label, or raise max_length."
                )
            if (twin := seen.setdefault(tuple(ids), name)) != name:
                raise DataError(
                    f"The labels {twin!r} and {name!r} are the same tokens to this model: it cannot tell them apart. Rename one."
                )

    def inputs(self, inputs: Sequence[Any]) -> Any:
        """Encoded rows that hold the input alone: {"input_ids"}. A pair is one text, with the separator between."""
        between = self.pre.separator or "\n"
        texts = [x if isinstance(x, str) else between.join(x) for x in inputs]
        rows = self.pre.encode_text2text(texts, None if self.apart else [self.longest_text] * len(texts))
        for row in rows:
            marked = row.get("instruction", [1] * len(row["input_ids"]))
            front = [i for i, mine in zip(row["input_ids"], marked, strict=True) if mine]
            row.clear()
            row["input_ids"] = front
        return rows

    def joined(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One sequence per class; of a decoder, `instruction` marks the input."""
        front = list(row["input_ids"])
        told = {k: row[k] for k in ("attributes", "covariates") if k in row}
        if self.apart:
            return [{**answer, **told, "input_ids": front} for answer in self.rows]
        return [
            {
                **told,
                "input_ids": front + ids,
                "instruction": [1] * len(front) + [0] * len(ids),
                "labels": [IGNORED] * len(front) + ids,
            }
            for ids in self.tokens
        ]

    def collate(self, rows: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, Tensor]:
        """(rows * classes, tokens), a row's choices one after the other.

        answers: at every place the token that the logits there are to give, -100 where none is asked for.
        """
        batch = self.pre.collate([one for row in rows for one in self.joined(row)], **options)
        answers = batch.pop("labels")
        if not self.apart:  # a decoder's logits are of the next token
            answers = torch.cat([answers[:, 1:], answers.new_full((len(answers), 1), IGNORED)], 1)
        return {**batch, "answers": answers}

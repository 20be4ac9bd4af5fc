"""Batches as a function of (seed, stream, step): nothing to save, nothing to fast-forward.

Rows are encoded once. An epoch's order is drawn from (seed, stream, epoch): rows are shuffled, sorted by length inside windows
of fifty batches, cut into batches, and the batches shuffled; so that a batch pads little and its composition stays random.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.data.ranks import numbered
from luthier.errors import DataError, RunError
from luthier.models.words import encode_words
from luthier.train.choices import Answers, ranks
from luthier.train.covariates import covariates_for
from luthier.train.histories import histories_for
from luthier.train.pairs import Pairs, longer

WINDOW = 50
"""Batches that are sorted by length together."""

SCANNED = 5000
"""Steps among which the largest batch is looked for."""

Rows = list[dict[str, Any]]
Batch = dict[str, Any]


@dataclass
class Encoded:
    """A split, encoded once. rows: one dict per row (ids, pixels, ...); targets: (rows, ...) or None for text2text and
    tagging, whose rows hold their labels."""

    rows: Rows
    targets: Tensor | None
    collate: Callable[..., Batch]
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    report: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    first_example: int = 0
    """Number of the first row among all rows of a run: `example` names one row, whatever split it is of."""
    per_row: int = 1
    """Sequences that a batch holds for each row: one per class where answers are ranked, a query and its document in retrieval."""
    histories: tuple[Tensor, Tensor] | None = None
    """(rows, items, width) vectors of each row's history and (rows, items) which are there; batches carry `history` and
    `history_mask`."""
    starts: list[np.ndarray] | None = None
    """Of tagging: for each row (words,), the token that each word's tag is read at; -1 for none."""

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int] | np.ndarray, device: Any = "cpu", **options: Any) -> Batch:
        """The rows of `indices` collated, with `example` (rows,) and, if there are targets, `labels`."""
        made = dict(self.collate([self.rows[i] for i in indices], **options))
        where = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        made["example"] = where + self.first_example
        if self.histories is not None:
            made["history"], made["history_mask"] = (h[where] for h in self.histories)
        if self.targets is not None:
            made["labels"] = self.targets[where]
        if str(device) != "cpu":
            made = {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in made.items()}
        return made


def encode(
    pre: Any, split: Any, task: Any, *, targets: bool = True, head: Any = None, adaptation: Any = None
) -> Encoded:
    """Encode a whole split by a model's preprocessing, for the output part `head`. targets=False: inputs only (prediction).

    adaptation: what will read the batches; one that reads histories finds them there.
    """
    if len(split) == 0:
        raise DataError("The data has no rows to encode. Check the split and the limits.")
    collate, per_row, more = stack_rows if pre is None else pre.collate, 1, 0
    if task.kind == "text2text":
        rows = pre.encode_text2text(split.inputs, split.targets if targets else None)
        labels = None
    elif task.kind == "tagging":
        rows = encode_words(pre, split.inputs, split.targets if targets else None)
        labels = None
    elif task.kind == "retrieval" and targets:
        pairs = Pairs(pre)
        rows, collate, per_row = pairs.rows(split.inputs, split.targets), pairs.collate, 2
        labels = torch.from_numpy(numbered(split.targets)[0])
    elif ranks(head):
        answers = Answers(pre, task.labels)
        rows, collate, per_row = answers.inputs(split.inputs), answers.collate, len(task.labels)
        more = len(answers.tokens[answers.longest])
        labels = target_tensor(split.targets, task) if targets else None
    else:
        rows = plain_rows(split.inputs) if pre is None else pre.encode(split.inputs)
        labels = target_tensor(split.targets, task) if targets else None
    numbers = covariates_for(adaptation, split, task)
    told = {"attributes": getattr(split, "attributes", None), "covariates": numbers}
    for key, values in told.items():
        if values is not None:
            for row, own in zip(rows, values, strict=True):
                row[key] = own
    report = pre.report(rows) if pre is not None and hasattr(pre, "report") else {}
    lengths = np.array([row_length(r) + longer(r) + more for r in rows], dtype=np.int64)
    digest = str(getattr(split, "digest", ""))
    starts = getattr(rows, "starts", None)
    if starts is not None:
        report = {**report, "beyond": int(sum((at < 0).sum() for at in starts))}
    histories = None if adaptation is None else histories_for(adaptation, split)
    return Encoded(
        rows,
        labels,
        collate,
        lengths,
        dict(report or {}),
        digest,
        per_row=per_row,
        starts=starts,
        histories=histories,
    )


def number_examples(splits: Iterable[Encoded]) -> None:
    """Give every row of a run a number of its own."""
    first = 0
    for data in splits:
        data.first_example = first
        first += len(data)


def plain_rows(inputs: Any) -> Rows:
    """Rows of an array for a model without preprocessing."""
    return [{"x": np.asarray(row, dtype=np.float32)} for row in inputs]


def stack_rows(rows: Rows, **_: Any) -> Batch:
    return {"x": torch.from_numpy(np.stack([r["x"] for r in rows]))}


def row_length(row: dict[str, Any]) -> int:
    """Tokens of a row, its answer included; 0 where rows are all of one size."""
    return sum(len(row[k]) for k in ("input_ids", "decoder_input_ids") if k in row)


def target_tensor(targets: Any, task: Any) -> Tensor:
    """classification: (rows,) int64; multilabel: (rows, classes) float32; regression: (rows,) float32."""
    values = np.asarray(targets)
    if task.kind == "classification":
        if values.dtype.kind not in "iu":
            raise DataError(f"The targets of a classification must be integers, but they are {values.dtype}.")
        low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
        if low < 0 or high >= len(task.labels):
            raise DataError(
                f"A target is {low if low < 0 else high}, but the task has {len(task.labels)} labels "
                f"(0 to {len(task.labels) - 1}). Load the data and its labels together."
            )
        return torch.from_numpy(values.astype(np.int64))
    if not np.isfinite(values.astype(np.float64)).all():
        raise DataError("Some targets are missing or not finite: remove those rows.")
    if task.kind == "multilabel" and (values.ndim != 2 or values.shape[1] != len(task.labels)):
        raise DataError(
            f"Multi-label targets have shape {values.shape}, but the task has {len(task.labels)} labels."
        )
    return torch.from_numpy(values.astype(np.float32))


def epoch_order(
    rows: int, batch_size: int, lengths: np.ndarray, seed: int, stream: str, epoch: int
) -> list[np.ndarray]:
    """The batches of one epoch, each an array of row numbers; the last may be smaller before the batches are shuffled."""
    rng = np.random.default_rng([seed % 2**32, zlib.crc32(stream.encode()), epoch])
    order = rng.permutation(rows)
    span = WINDOW * batch_size
    windows = [order[i : i + span] for i in range(0, rows, span)]
    order = np.concatenate([w[np.argsort(lengths[w], kind="stable")] for w in windows])
    batches = [order[i : i + batch_size] for i in range(0, rows, batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


class Batches:
    """All streams of a run. `rows(stream, step)` and `pieces(stream, step)` depend on nothing but their arguments."""

    def __init__(
        self,
        streams: dict[str, Encoded],
        *,
        batch_size: int,
        seed: int,
        micro_batch: int | None = None,
        device: Any = "cpu",
        rank: int = 0,
        world: int = 1,
    ):
        if batch_size < 1 or (micro_batch is not None and micro_batch < 1):
            raise RunError(
                f"A batch of {batch_size} rows, micro batch {micro_batch}: both must be at least 1."
            )
        self.streams, self.batch_size, self.seed = streams, batch_size, seed
        self.micro = min(micro_batch or batch_size, batch_size)
        self.device, self.rank, self.world = device, rank, world
        self._orders: dict[str, tuple[int, list[np.ndarray]]] = {}

    def stream(self, name: str) -> Encoded:
        if name not in self.streams:
            raise RunError(
                f"The plan asks for the data stream {name!r}; this run has: {', '.join(self.streams)}."
            )
        return self.streams[name]

    def per_epoch(self, stream: str = "train") -> int:
        """Batches in one pass over a stream."""
        return -(-len(self.stream(stream)) // self.batch_size)

    def rows(self, stream: str, step: int) -> np.ndarray:
        """Row numbers of the whole batch of a step, over all processes."""
        data = self.stream(stream)
        epoch, place = divmod(step, self.per_epoch(stream))
        held = self._orders.get(stream)
        if held is None or held[0] != epoch:
            order = epoch_order(len(data), self.batch_size, data.lengths, self.seed, stream, epoch)
            held = self._orders[stream] = (epoch, order)
        return held[1][place]

    def pieces(self, stream: str, step: int) -> list[Batch]:
        """This process's share of the step's batch, cut into micro batches of similar length."""
        data, rows = self.stream(stream), self.rows(stream, step)
        mine = rows[self.rank :: self.world]
        return [data.batch(mine[i : i + self.micro], self.device) for i in range(0, len(mine), self.micro)]

    def most_pieces(self, stream: str, step: int) -> int:
        """Pieces of a step on the process that has most of them."""
        return math.ceil(math.ceil(len(self.rows(stream, step)) / self.world) / self.micro)

    def whole(self, stream: str, step: int) -> Batch:
        """This process's share of the step's batch in one piece."""
        data, rows = self.stream(stream), self.rows(stream, step)
        return data.batch(rows[self.rank :: self.world], self.device)

    def heaviest(self, stream: str, first: int, steps: int) -> tuple[int, int, int]:
        """(step, rows, longest row) of the largest padded micro batch of this process among some steps.

        At most SCANNED steps are looked at: the first epoch is much like the others.
        """
        data, best, found = self.stream(stream), -1, (first, 1, 0)
        for step in range(first, first + min(steps, SCANNED)):
            mine = self.rows(stream, step)[self.rank :: self.world]
            for start in range(0, len(mine), self.micro):
                rows = mine[start : start + self.micro]
                longest = int(rows[data.lengths[rows].argmax()])
                if (size := len(rows) * max(1, int(data.lengths[longest]))) > best:
                    best, found = size, (step, len(rows), longest)
        return found

    def repeated(self, stream: str, row: int, times: int) -> Batch:
        """A batch of one row over and over: for trials."""
        return self.stream(stream).batch([row] * times, self.device)


def in_order(
    data: Encoded, batch_size: int, device: Any = "cpu", *, rank: int = 0, world: int = 1, **options: Any
) -> Iterator[tuple[np.ndarray, Batch]]:
    """(row numbers, batch) over a whole split, longest rows first, in an order that depends on the data alone."""
    order = np.argsort(-data.lengths, kind="stable")
    batch_size = max(1, batch_size // data.per_row)
    cuts = range(0, len(order), batch_size)
    for number, start in enumerate(cuts):
        if number % world == rank:
            rows = order[start : start + batch_size]
            yield rows, data.batch(rows, device, **options)

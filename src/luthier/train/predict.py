"""Predictions of an adapted model: in batches of similar length, given back in the caller's order."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from luthier.errors import DataError
from luthier.host.context import GIVEN
from luthier.signals.objectives import Objective, Standardisation
from luthier.train.batches import Encoded, in_order
from luthier.train.pairs import embed, ranks_of
from luthier.train.processes import Processes

BATCH = 64
"""Rows of a batch where nothing else is said."""


def autocast(precision: str, device: Any) -> AbstractContextManager[Any]:
    """bf16 where asked for; trained tensors stay float32."""
    if precision == "bf16":
        return torch.autocast(torch.device(device).type, torch.bfloat16)
    return nullcontext()


def predictions(
    adapted: Any,
    data: Encoded,
    task: Any,
    *,
    device: Any = "cpu",
    batch_size: int = BATCH,
    precision: str = "fp32",
    standardisation: Standardisation | None = None,
    processes: Processes | None = None,
    unknown: int = 0,
) -> Any:
    """classification, multilabel: probabilities (rows, classes) float32; regression: values (rows,); tagging: for each row
    probabilities (words, tags), of which the tag `unknown` is certain for words that have no token; retrieval: (rows,) the rank of
    each row's document among those of all rows."""
    if task.kind == "retrieval":
        vectors = embed(adapted, data, batch_size=batch_size, device=device, precision=precision)
        return ranks_of(vectors, data.targets)
    rank, world = (processes.rank, processes.world) if processes else (0, 1)
    found: list[tuple[np.ndarray, Any]] = []
    adapted.eval()
    with torch.no_grad(), adapted.using("main"), autocast(precision, device):
        for rows, batch in in_order(data, batch_size, device, rank=rank, world=world):
            said: Any = to_answers(adapted(batch).logits.float(), task, standardisation).cpu().numpy()
            if task.kind == "tagging":
                said = by_word(said, batch["attention_mask"].cpu().numpy(), data, rows, unknown)
            found.append((rows, said))
    if processes:
        found = [pair for part in processes.gather(found) for pair in part]
    if task.kind == "tagging":
        by_row = {int(row): one for rows, several in found for row, one in zip(rows, several)}
        return [by_row[row] for row in range(len(data))]
    return put_in_order(found, len(data))


def by_word(
    said: np.ndarray, mask: np.ndarray, data: Encoded, rows: np.ndarray, unknown: int | None
) -> list[np.ndarray]:
    """said (rows, tokens, tags), padded on either side -> for each row (words, tags): what the first token of each word says.

    unknown: the tag that is certain for a word without tokens; None: all are NaN there.
    """
    assert data.starts is not None
    out = []
    for i, row in enumerate(rows):
        starts = data.starts[int(row)]
        made = said[i][mask[i].astype(bool)][starts]
        made[starts < 0] = np.nan if unknown is None else np.eye(said.shape[2], dtype=said.dtype)[unknown]
        out.append(made)
    return out


def put_in_order(found: list[tuple[np.ndarray, np.ndarray]], rows: int) -> np.ndarray:
    """Undo the order of batches."""
    where = np.concatenate([r for r, _ in found])
    values = np.concatenate([v for _, v in found])
    out = np.empty((rows, *values.shape[1:]), values.dtype)
    out[where] = values
    return out


def to_answers(
    logits: torch.Tensor, task: Any, standardisation: Standardisation | None = None
) -> torch.Tensor:
    """logits (..., classes) -> probabilities, or (rows, 1) -> values in the target's own unit."""
    if task.kind in ("classification", "tagging"):
        return logits.softmax(-1)
    if task.kind == "multilabel":
        return logits.sigmoid()
    by = standardisation or Standardisation()
    return logits.reshape(len(logits)) * by.std + by.mean


def mean_loss(
    adapted: Any,
    data: Encoded,
    objective: Objective,
    *,
    device: Any = "cpu",
    batch_size: int = BATCH,
    precision: str = "fp32",
    processes: Processes | None = None,
) -> float:
    """The objective over a whole split."""
    processes = processes or Processes(device)
    total, count = 0.0, 0.0
    adapted.eval()
    with torch.no_grad(), adapted.using("main"), autocast(precision, device):
        for _, batch in in_order(data, batch_size, device, rank=processes.rank, world=processes.world):
            loss, weight = objective(adapted(batch), batch)
            total, count = total + float(loss), count + weight
    both = processes.sum(torch.tensor([total, count], dtype=torch.float64))
    return float(both[0] / both[1]) if both[1] else float("nan")


def generate(
    adapted: Any,
    model: Any,
    preprocess: Any,
    data: Encoded,
    *,
    max_new_tokens: int = 64,
    device: Any = "cpu",
    batch_size: int = BATCH,
    precision: str = "fp32",
    processes: Processes | None = None,
    **options: Any,
) -> list[str]:
    """Texts that the adapted model writes for encoded inputs, greedily unless `options` of `generate` say otherwise."""
    if not model.generates:
        raise DataError(f"{model.name} cannot write text: text-to-text needs a model with a language head.")
    rank, world = (processes.rank, processes.world) if processes else (0, 1)
    writes_after = model.kind != "encoder-decoder"
    pad = getattr(preprocess, "pad_token_id", None)
    options = {
        "do_sample": False,
        "max_new_tokens": max_new_tokens,
        **({"pad_token_id": pad} if pad is not None else {}),
        **options,
    }
    side = {"side": "left"} if writes_after else {}
    texts: dict[int, str] = {}
    adapted.eval()
    with torch.no_grad(), adapted.using("main"), autocast(precision, device):
        for rows, batch in in_order(data, batch_size, device, rank=rank, world=world, **side):
            given = {k: v for k, v in batch.items() if k in GIVEN and k != "labels"}
            inputs = {k: v for k, v in batch.items() if k not in GIVEN and k != "decoder_input_ids"}
            with adapted.given(**given):
                written = adapted.generate(**inputs, **options)
            start = inputs["input_ids"].shape[1] if writes_after else 0
            beams = len(written) // len(rows)
            texts |= {
                int(r): preprocess.decode(ids.tolist()) for r, ids in zip(rows, written[::beams, start:])
            }
    if processes:
        texts = {k: v for part in processes.gather(texts) for k, v in part.items()}
    return [texts[i] for i in range(len(data))]


def latency(adapted: Any, data: Encoded, device: Any = "cpu", times: int = 7) -> float:
    """Milliseconds of one forward of one row of median length; the median of a few."""
    row = int(np.argsort(data.lengths, kind="stable")[len(data) // 2])
    batch = data.batch([row], device)
    took = []
    adapted.eval()
    with torch.no_grad(), adapted.using("main"):
        for _ in range(times + 1):
            _wait(device)
            began = time.perf_counter()
            adapted(batch)
            _wait(device)
            took.append(1000 * (time.perf_counter() - began))
    return float(np.median(took[1:]))


def _wait(device: Any) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)

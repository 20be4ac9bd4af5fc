"""What a prompt does to a model, as one vector: its task's embedding, and the cosine of two (Zhong et al. 2022, PANDA, S324).

e = mean over rows of h(x; prompt) - h(x)    h: (width,) the last hidden state where the model predicts
sim(s, t) = cosine(e_s, e_t)    both over the same rows, of the target task
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.host.context import GIVEN


@torch.no_grad()
def task_embedding(adapted: Any, name: str, batches: Iterable[Mapping[str, Any]]) -> Tensor:
    """e of the attached adaptation `name`: (width,), double."""
    total, rows = torch.zeros(()), 0
    for batch in batches:
        with adapted.using(name):
            with_it = prediction_states(adapted, batch)
        with adapted.using():
            without = prediction_states(adapted, batch)
        total = total + (with_it.double() - without.double()).sum(0).cpu()
        rows += len(with_it)
    return total / max(1, rows)


def similarity(a: Tensor, b: Tensor) -> float:
    """The cosine of two embeddings; 0 where one is zero."""
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size else 0.0


def prediction_states(adapted: Any, batch: Mapping[str, Any]) -> Tensor:
    """(rows, width): the last hidden state where the model predicts, without any output head.

    A decoder: the token before the answer. An encoder-decoder: the decoder's first token. Others: the mean over tokens.
    """
    towers = adapted.structure.towers
    if any(t.reads for t in towers):
        start = adapted.base.config.decoder_start_token_id
        first = torch.full((len(batch["input_ids"]), 1), start, device=batch["input_ids"].device)
        inputs = {k: v for k, v in batch.items() if k not in GIVEN and not k.startswith("decoder_")}
        with adapted.given(
            **{k: v for k, v in batch.items() if k in GIVEN}
        ):  # past the head, which wants answers
            raw = adapted.base(**inputs, decoder_input_ids=first, output_hidden_states=True)
        return raw.decoder_hidden_states[-1][:, 0]
    out = adapted({k: v for k, v in batch.items() if k != "labels"}, body=True)
    if out.hidden is None:
        raise ModelError(
            f"{adapted.structure.model} gives no hidden states, which a task's embedding is made of."
        )
    if out.hidden.dim() == 2:
        return out.hidden
    mask = out.mask if out.mask is not None else torch.ones(out.hidden.shape[:2], device=out.hidden.device)
    if towers and towers[0].causal:
        front = batch.get("instruction", mask)  # what stands before the answer
        last = (torch.arange(mask.shape[1], device=mask.device) * front.bool()).argmax(1)
        return out.hidden[torch.arange(len(last), device=last.device), last]
    weight = mask[:, :, None].to(out.hidden.dtype)
    return (out.hidden * weight).sum(1) / weight.sum(1).clamp(min=1)

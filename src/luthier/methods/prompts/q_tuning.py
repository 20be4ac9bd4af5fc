"""Q-Tuning: a queue of earlier tasks' prompts, reweighed and compressed, beside the task's own (Guo et al. 2024, "Q-Tuning: Queue-based Prompt Tuning for Lifelong Few-shot Language Learning", S372).

[S; (u v) * Q; P; E(x)]    P: (length, width), of this task  S: (shared_length, width), of all tasks  Q: (queued, width), earlier prompts, frozen
u: (queued, 1)  v: (1, width), both ones at the start    trained: (length + shared_length) * width
on the first task; later queued + width more
Loss: the task's + retain * InfoNCE of the pooled states under [S; Q] and, of the same rows, under [S as the task before left it; Q].
Not an identity at step 0; not a weight change: it cannot merge. Alone it trains a stream's first task; `luthier stream`, or
`fit(..., after=...)`, trains the next: Q and P become its queue, and S goes on.

When the queue holds more than queue - 1 prompts, it is compressed: Q = mean + s_k v_k, the top principal components of its rows in
their own scale (s_k the singular values of the centred rows). They are new rows, no longer any one task's prompt. Each task's
adaptation holds its own queue, so an earlier one answers as it did.

Differs: the mean is added back; the critic of the retention term is the cosine over a temperature, with the batch's other rows as
negatives, and its gradient trains S alone; a queued prompt is kept as it was trained, without its task's weights u v.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch.nn.functional import normalize

from luthier.host.part import Phase, Spec, SpecLike, method, ones, zeros
from luthier.methods.heads import pool
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.signals.info_nce import info_nce
from luthier.sources.principal import compressed

NEW, OLD = "q_tuning: new shared prompt", "q_tuning: shared prompt of the task before"
"""What a forward is given as `task` to see [S; Q] and [S before; Q]."""


@method("q_tuning", targets="embedding", rate=1e-1)
class QTuning(PromptTuning):
    length: PositiveInt = 10  # tokens of a task's own prompt
    shared_length: NonNegativeInt = 10  # tokens of the prefix prompt that all tasks train on
    queue: PositiveInt = 5  # prompts at most, the new one included
    evict: Literal["pca", "fifo"] = "pca"  # what makes room: principal components, or the oldest rows go
    reweigh: bool = True  # train a rank-one weight of the queue; off: the queue as it is
    retain: NonNegativeFloat = 0.1  # weight of the retention term
    temperature: PositiveFloat = 0.1  # of its scores

    def layout(self, site):
        return {"queued": 0, "remembers": False}

    def tensors(self, site, layout):
        width, queued = site.out_features, layout["queued"]
        made: dict[str, SpecLike] = {"P": (self.length, width)}
        if self.shared_length:
            made["S"] = (self.shared_length, width)
        if queued:
            made["Q"] = Spec((queued, width), zeros, trained=False)
            if self.shared_length and layout["remembers"]:
                made["S_before"] = Spec((self.shared_length, width), zeros, trained=False)
            if self.reweigh:
                made |= {"u": Spec((queued, 1), ones), "v": Spec((1, width), ones)}
        return made

    def carry(self, site, before):
        if "P" not in before:
            return self.layout(site), {}
        rows = torch.cat([before.Q, before.P]) if "Q" in before else before.P
        room = (self.queue - 1) * self.length
        if len(rows) > room:
            rows = compressed(rows, room) if self.evict == "pca" else rows[len(rows) - room :]
        shared = {"S": before.S, "S_before": before.S} if "S" in before else {}
        return {"queued": len(rows), "remembers": bool(shared)}, {"Q": rows, **shared}

    def tokens(self, t, ctx):
        view = ctx.given.get("task")
        if view in (NEW, OLD):
            return torch.cat([t.S if view == NEW else t.S_before, t.Q])
        queue = t.get("Q")
        if queue is not None and self.reweigh:
            queue = (t.u @ t.v) * queue
        return torch.cat([x for x in (t.get("S"), queue, t.P) if x is not None])

    def phases(self):
        return (Phase("train", objective=self.with_retention),)

    def with_retention(self, run, batch):
        loss = run.objective.loss(run, batch)
        if self.retain and "S_before" in run.main.at()[0].values:
            loss = loss + self.retain * self.forgetting(run, batch)
        return loss

    def forgetting(self, run, batch):
        """InfoNCE between the pooled states of the batch's rows under the new and under the old shared prompt."""

        def states(view):
            with run.adapted.given(task=view):
                out = run.adapted(batch, body=True)
            copies = len(out.hidden) // len(
                batch["labels"]
            )  # a row stands there once per answer that is ranked
            return normalize(pool(out.hidden, out.mask, "mean")[::copies].float(), dim=-1)

        with torch.no_grad():
            old = states(OLD)
        scores = states(NEW) @ old.mT / self.temperature
        others = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        return info_nce(scores.diagonal(), scores, others).mean()

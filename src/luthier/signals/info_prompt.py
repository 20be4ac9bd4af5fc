"""InfoPrompt's terms: a prompt that tells of the head, and codes that tell of the prompt (Wu et al. 2023, "InfoPrompt", S349).

Of prompt tokens P, the embedded input E(x), head rows W, and the code z of the pooled state, sampled from N(mean, deviation^2):

    L_head = InfoNCE(<mean P, w>; <E(x)_j, w> for every token j of the input),   w = mean of W's rows,          I(P; head | X)
    L_rep  = InfoNCE(<z with P, c>; <z without P, c>, K draws),   c = mean of the mapped rows of P, detached,   I(P; Z | X)
    L_KL   = KL(N(mean, deviation^2) || N(0, 1)), a mean over dimensions, with P and without

    loss = task's + fade(step) (head L_head + representation L_rep + bottleneck L_KL)

Scores are divided by sqrt(D). The tensors are those of the output part `info_head`; their weights are its options. A second
forward, without the prompt and without gradient, gives the codes of the same input that are the negatives.

Differs: the negatives of L_rep are a fixed number of draws instead of four times the batch, so that a batch cut into micro
batches has the same expected gradient. The prompt is the method's own, static or not, where the public code makes it from the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.errors import OptionError, RunError
from luthier.signals.info_nce import info_nce
from luthier.signals.objectives import Objective

NOTE = "info_prompt"
"""Under this name `info_head` notes what it read."""


def head_information(prompt: Tensor, tokens: Tensor, seen: Tensor, head: Tensor) -> Tensor:
    """L_head. prompt: (rows or 1, length, width); tokens: (rows, n, width), seen: (rows, n) bool; head: (classes, width) -> (rows,)."""
    direction = head.mean(0) / head.shape[-1] ** 0.5
    positive = (prompt.mean(-2) @ direction).expand(len(tokens))
    return info_nce(positive, tokens @ direction, seen)


def representation_information(code: Tensor, others: Tensor, context: Tensor) -> Tensor:
    """L_rep. code: (rows, width), with the prompt; others: (rows, K, width), without; context: (rows or 1, width) -> (rows,)."""
    context = context.expand(len(code), -1) / code.shape[-1] ** 0.5
    return info_nce((code * context).sum(-1), (others @ context[..., None]).squeeze(-1))


def standard_divergence(mean: Tensor, log_deviation: Tensor) -> Tensor:
    """L_KL of one Gaussian a row: the mean over dimensions. mean, log_deviation: (rows, code) -> (rows,)."""
    return (-log_deviation + 0.5 * (2 * log_deviation).exp() + 0.5 * mean**2 - 0.5).mean(-1)


@dataclass(frozen=True)
class InfoPrompt(Objective):
    """`inner`, the task's own objective, and the terms that the output part `info_head` weighs."""

    inner: Objective

    def normaliser(self, batch: Mapping[str, Tensor]) -> float:
        return self.inner.normaliser(batch)

    def __call__(self, out: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, float]:
        return self.inner(out, batch)

    def loss(self, run: Any, batch: Mapping[str, Tensor]) -> Tensor:
        out = run.adapted(batch)
        loss = self.mean(out, batch)
        noted = out.notes.get(NOTE)
        if not noted:
            raise RunError(
                'InfoPrompt\'s terms read the output part info_head: train with head="auto", signal="infoprompt".'
            )
        part, t, read = noted[-1]
        fade = 1 - part.fade * (run.step + 1) / run.steps[run.index]
        if part.head:
            loss = loss + fade * part.head * self.of_head(t, read).mean()
        if part.stochastic:
            with torch.no_grad(), run.adapted.using():
                plain = part.pooled(run.adapted(batch, body=True).hidden, read["mask"])
            without = part.gaussian(plain.to(read["pooled"].dtype), t)
            if part.representation:
                others = part.sampled(without, t, part.negatives)
                terms = representation_information(read["code"], others, part.context(read["prompt"], t))
                loss = loss + fade * part.representation * terms.mean()
            divergence = standard_divergence(*read["gaussian"]) + standard_divergence(*without)
            loss = loss + fade * part.bottleneck * divergence.mean()
        return loss

    def of_head(self, t: Any, read: Mapping[str, Any]) -> Tensor:
        """L_head of a forward, (rows,)."""
        prompt, tokens = read["prompt"], read["tokens"]
        if prompt.shape[-1] != t.W.shape[-1]:
            raise OptionError(
                f"InfoPrompt compares prompts of width {prompt.shape[-1]} with head rows of {t.W.shape[-1]}: this model's widths "
                'differ. Set head=0 (signal="infoprompt head=0").'
            )
        seen = read["mask"]
        if seen is None:
            seen = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return head_information(prompt.float(), tokens.float(), seen, t.W.float())

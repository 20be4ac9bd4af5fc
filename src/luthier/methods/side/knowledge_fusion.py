"""Knowledge fusion: a language model tuned with frozen knowledge adapters beside it (Emelin et al. 2022, "Injecting Domain Knowledge in Language Models for Task-Oriented Dialogue Systems", S009).

out = sum_n g_n o_n    o_0: the model's last state, o_n: what knowledge adapter n joins to it, read from the model as it is tuned
gate: g = softmax_n(o'_0 . G o'_n / width), o' = o / rms(o), for every token    G: (width, width), zero at first
mean: g_n = 1 / (adapters + 1)
trained: width * width for the gate, and what `tuning` trains: another method tunes the model by its own plan and at its own rate, every
parameter unless asked otherwise. A rate for the run stands for the gate's, and scales the others' in proportion.
Not the base at step 0: the adapters act (g is the mean). It cannot merge. In an encoder-decoder the model's decoder reads its own
encoder, each adapter's decoder its own encoder, and states are combined behind the decoder.

It needs the adapters, which stay as they are and travel in its file: train each with `luthier fit --method knowledge_adapter` on facts
(`luthier verbalise`), then `luthier fit --method knowledge_fusion --member hotels=DIR --member trains=DIR`, or fit(members={...}).

Differs: states are combined, not logits. The paper's gate makes the weights from o_0 alone, so many as adapters; here each state is
scored, so that G has one size for any number of them. Its other combinations (dense, attention, GRU) are left out.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch.nn import functional as F

from luthier.errors import OptionError
from luthier.host.options import options
from luthier.host.part import Method, Part, Spec, method, zeros
from luthier.host.places import Stack
from luthier.host.structure import structure_of
from luthier.methods.side.knowledge_adapter import KnowledgeAdapter
from luthier.methods.sparse.parameters import Full
from luthier.signals.optimisers import adamw
from luthier.starts.narrow import sizes_of

NOTE = "knowledge"
"""Under this name a forward notes the weights of the model and of each adapter: (rows, tokens, 1 + adapters)."""


RATE = 1e-3


@options
class Fused(Stack):
    """trained: width * width"""

    how: Literal["gate", "mean"] = "gate"

    name = "knowledge_fusion"
    rate = RATE
    members = ("trained knowledge adapters",)

    def shared(self, sites):
        width = sites[-1].out_features
        return {"G": Spec((width, width), zeros)} if self.how == "gate" else {}

    def check_base(self, base, sites):
        structure = structure_of(base)
        for tower in structure.towers:  # adapters have layers like its blocks
            sizes_of(base, structure, tower, 1, self.name)

    def build(self, base, sites, rng):
        """Nothing of its own; but its adapters' networks are made of the base's values, as whoever asks must know."""

    def check_member(self, name, part):
        if not isinstance(part, KnowledgeAdapter):
            raise OptionError(
                f"knowledge_fusion: the member {name!r} ({part.name}) is no knowledge adapter. Give adaptations of `knowledge_adapter`."
            )

    def sides(self, placed):
        return len(placed.members)

    def run(self, blocks, h, ts, network, ctx):
        adapters = [member.network for member in ts[0].members]
        beside = [None] * len(adapters)
        for i, block in enumerate(blocks):
            h = block(h)
            beside = [
                a.beside(partial(block, side=n), i, h, s)
                for n, (a, s) in enumerate(zip(adapters, beside, strict=True), 1)
            ]
        states = [a.joined(h, s) for a, s in zip(adapters, beside, strict=True)]
        if blocks[0].handed_on:
            return torch.cat(states, 1)
        return self.mixed(torch.stack([h, *states], -2), ts[0], ctx)

    def mixed(self, states, t, ctx):
        """states: (rows, tokens, 1 + adapters, width), the model's first -> (rows, tokens, width)."""
        if self.how == "mean":
            return states.mean(-2)
        even = F.rms_norm(states, states.shape[-1:])  # states grow from block to block: scores must not
        weights = (even @ (even[..., 0, :] @ t.G / states.shape[-1])[..., None]).softmax(-2)
        ctx.note(NOTE, weights[..., 0])
        return (weights * states).sum(-2)


@method("knowledge_fusion", rate=RATE)
class KnowledgeFusion(Method):
    how: Literal["gate", "mean"] = "gate"  # how states are combined: by learned weights, or with equal ones
    tuning: Part = Full()  # what tunes the model beside it

    def parts(self):
        tuning = self.tuning.parts()
        if any(isinstance(p, Stack) for p in tuning):
            raise OptionError(
                f"knowledge_fusion: tuning={self.tuning.name} walks through the blocks, as the adapters do. Choose one that does not, e.g. lora."
            )
        return *tuning, Fused(targets="block", how=self.how)

    def phases(self):
        return tuple(replace(p, optimiser=p.optimiser or self.in_proportion) for p in self.tuning.phases())

    def in_proportion(self, named, run):
        """AdamW at each part's own rate; another rate for the run scales all of them in proportion."""
        scaled = {rf"\.parts\.{i}\.": p.rate / self.rate for i, p in enumerate(self.parts())}
        return adamw(named, run, factors=None if run.recipe.rate is None else scaled)

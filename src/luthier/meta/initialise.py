"""SUPMER's meta-training: a prompt's start theta and a regulator phi of its gradients, from pseudo tasks (Pan et al. 2023, S306).

Of each pseudo task, with g the gradient of the support loss with respect to theta, taken as a constant:

    theta' = theta - inner_rate psi(g)                                          one inner step
    loss   = lambda L(y1 | H) + (1 - lambda) L(y2 | H),  H = lambda H1 + (1 - lambda) H2     under theta'
    regulariser = (z - (c + s) / 2)^2

H1, y1: encoder states and answers of the query; H2, y2: of a second task of the same format. lambda ~ Beta(alpha, b alpha) with
b = 2^S - 1, S a running mean of s: at first there is nearly no second task, later as much of it (a curriculum). c is the similarity
of the two tasks' clusters, s that of query and support gradients, both (1 + cosine) / 2. The outer step is of AdamW on theta and
phi, over several tasks; nothing else has a gradient.

Differs: each answer is read by its own decoder pass from the mixed states, where the public code lets both share the first one's
decoder input; a cluster is named in an input by the word that is most its own, where it has an embedding of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from luthier.errors import ModelError, OptionError
from luthier.host import Adaptation, Adapted
from luthier.host.part import T
from luthier.meta.pseudo_tasks import FORMATS, Episode, PseudoTasks, embedded, similarity
from luthier.methods.prompts.supmer import SUPMER
from luthier.signals.objectives import IGNORED
from luthier.signals.regulator import PREFIX, gate, regulated, states

Batch = dict[str, Tensor]
Tell = Callable[[int, float], None]


@dataclass(frozen=True)
class Meta:
    """How the meta-training goes."""

    steps: int = 300  # outer steps
    tasks: int = 4  # pseudo tasks of an outer step
    rows: int = 16  # rows of support, and of query
    ways: int = 4  # choices of a question
    clusters: int = 250  # of sentence embeddings
    inner_rate: float = 0.1  # of the inner step
    outer_rate: float = 0.1  # of AdamW on the prompt
    regulator_rate: float = 1e-4  # of AdamW on the regulator
    alpha: float = 1.0  # of the Beta distribution of lambda
    seed: int = 0

    def check(self) -> None:
        """Refuse values that mean nothing, naming the option."""
        for name, value in asdict(self).items():
            if name != "seed" and not value > 0:
                raise OptionError(f"{name}={value!r}: it must be a number above 0.")


def initialise(
    model: Any,
    texts: Sequence[str],
    *,
    method: SUPMER | None = None,
    embedder: Any = None,
    meta: Meta | None = None,
    tell: Tell | None = None,
) -> Adaptation:
    """An adaptation of `supmer` for `model` with a meta-learned start and regulator; fit begins with it: `fit(..., after=it)`.

    texts: unlabelled sentences. embedder: an encoder whose mean states are clustered; None: builtin:minilm. tell: told the outer
    step and its loss. Raises ModelError for a model without an encoder that a decoder reads, DataError for too few texts.
    """
    meta = meta or Meta()
    meta.check()
    if model.kind != "encoder-decoder":
        raise ModelError(
            f"SUPMER mixes what an encoder hands to a decoder, and {model.name} ({model.kind}) has none. Use an encoder-decoder (T5)."
        )
    if embedder is None:
        from luthier.models.load import load

        embedder = load("builtin:minilm", device=str(model.device))
    sentences = list(dict.fromkeys(t.strip() for t in texts if t.strip()))
    tasks = PseudoTasks(
        sentences, embedded(embedder, sentences), clusters=meta.clusters, rows=meta.rows, ways=meta.ways, seed=meta.seed
    )  # fmt: skip
    made = Adaptation.new(method or SUPMER(), model.base, seed=meta.seed)
    adapted = Adapted(model.base)
    with adapted.attached(made, "main"):
        learner = Learner(model, adapted, made, tasks, meta)
        for step in range(meta.steps):
            loss = learner.outer_step()
            if tell is not None:
                tell(step + 1, loss)
    made.about = {"meta": asdict(meta), "sentences": len(sentences), "clusters": len(tasks.members)}
    made.eval()
    made.requires_grad_(False)
    return made


class Mixed(nn.Module):
    """The query's loss: states of two batches mixed by lambda, and each one's answers read from the mixture."""

    def __init__(self, adapted: Adapted):
        super().__init__()
        self.adapted = adapted

    def forward(self, first: Batch, second: Batch, lam: float) -> Tensor:
        if lam == 1.0:
            return answered(self.adapted(first).logits, first["labels"])
        encoder = self.adapted.base.get_encoder()  # type: ignore[operator]
        masks, encoded = [], []
        width = max(b["input_ids"].shape[1] for b in (first, second))
        for batch in (first, second):
            short = width - batch["input_ids"].shape[1]
            ids, mask = (F.pad(batch[k], (0, short)) for k in ("input_ids", "attention_mask"))
            encoded.append(encoder(input_ids=ids, attention_mask=mask).last_hidden_state)
            masks.append(mask)
        front = encoded[0].shape[1] - width  # the prompt's positions, which both see
        kept = [F.pad(m, (front, 0), value=1)[:, :, None].to(s.dtype) for m, s in zip(masks, encoded)]
        mixed = lam * kept[0] * encoded[0] + (1 - lam) * kept[1] * encoded[1]
        seen = (masks[0] | masks[1]) if lam > 0 else masks[1]
        loss: Any = 0.0
        for share, batch in ((lam, first), (1 - lam, second)):
            given = {"encoder_outputs": (mixed,), "attention_mask": seen, "decoder_input_ids": batch["decoder_input_ids"]}  # fmt: skip
            loss = loss + share * answered(self.adapted(given).logits, batch["labels"])
        return loss


def answered(logits: Tensor | None, labels: Tensor) -> Tensor:
    """Mean -log p over the tokens of the answers."""
    assert logits is not None
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)


class Learner:
    """Where a meta-training stands."""

    def __init__(self, model: Any, adapted: Adapted, made: Adaptation, tasks: PseudoTasks, meta: Meta):
        self.model, self.adapted, self.tasks, self.meta = model, adapted, tasks, meta
        self.rng = random.Random(meta.seed)
        placed = made.placed()[0]
        self.psi = T(placed.common)
        self.psi["psi_learned"].data.fill_(1.0)
        made.requires_grad_(False)
        self.prompt = made.at()[0].values["P"].requires_grad_(True)
        self.phi = [p.requires_grad_(True) for n, p in self.psi.items() if n != f"{PREFIX}learned"]
        self.mixed = Mixed(adapted)
        self.name = next(n for n, p in self.mixed.named_parameters() if p is self.prompt)
        self.optimiser = torch.optim.AdamW(
            [
                {"params": [self.prompt], "lr": meta.outer_rate},
                {"params": self.phi, "lr": meta.regulator_rate},
            ],
            weight_decay=0.0,
        )
        self.running = 0.0
        """Mean similarity of query and support gradients, halved with each outer step."""

    def outer_step(self) -> float:
        """One step over several pseudo tasks; returns their mean loss."""
        self.optimiser.zero_grad(set_to_none=True)
        losses, similar = [], []
        for _ in range(self.meta.tasks):
            format = self.rng.choice(FORMATS)
            loss, s = self.learn(*(self.tasks.draw(self.rng, format) for _ in range(2)))
            losses.append(loss)
            similar.append(s)
        for group in ([self.prompt], self.phi):
            nn.utils.clip_grad_norm_(group, 1.0)
        self.optimiser.step()
        new = sum(similar) / len(similar)
        self.running = new if not self.running else (self.running + new) / 2
        return sum(losses) / len(losses)

    def learn(self, task: Episode, other: Episode) -> tuple[float, float]:
        """Add one task's gradients to theta's and phi's; returns its query loss and the similarity of its gradients."""
        share, support = 1 / self.meta.tasks, self.batch(task.support)
        out = self.adapted({k: v for k, v in support.items() if k != "labels"})
        g = torch.autograd.grad(answered(out.logits, support["labels"]), self.prompt)[0]
        with torch.no_grad():
            body = self.adapted(support, body=True)
            state = states(body.hidden, body.mask).mean(0)  # type: ignore[arg-type]
        z = gate(state, self.psi)
        turned = regulated(g, z, self.psi)
        ahead = self.prompt - self.meta.inner_rate * turned
        before = torch.zeros_like(self.prompt) if self.prompt.grad is None else self.prompt.grad.clone()
        query, second = self.batch(task.query), self.batch(other.query)
        loss = functional_call(self.mixed, {self.name: ahead}, (query, second, self.draw()))
        (share * loss).backward(retain_graph=True)
        assert self.prompt.grad is not None
        asked = (self.prompt.grad - before) / share
        s = (1 + float(F.cosine_similarity(asked, turned.detach(), dim=-1).mean())) / 2
        target = (similarity(task, other) + s) / 2
        (share * (z - target).pow(2).sum()).backward()
        return float(loss.detach()), s

    def draw(self) -> float:
        """lambda: near 1 while gradients do not agree yet."""
        b = 2.0**self.running - 1 + 1e-7
        return self.rng.betavariate(self.meta.alpha, b * self.meta.alpha)

    def batch(self, rows: tuple[list[str], list[str]]) -> Batch:
        """Encoded and collated questions with their answers."""
        pre = self.model.preprocess
        made = pre.collate(pre.encode_text2text(*rows), side="right")
        return {k: v.to(self.model.device) for k, v in made.items()}

"""The stage between compressing and tuning: a slim model learns to compute as the original did (Guo et al. 2024, S213).

loss = own + hidden * mean over blocks of MSE(h_slim, h_teacher) + logits * MSE of logits
     + bound * mean over layers of (max |U V - W| - eps)^2

The last term bounds the largest changed entry of a layer; it is not |U V - W|^2. `own` is the loss of pretraining: a decoder's next token, or
what `objective` says. All of the slim model trains; the teacher is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError, OptionError
from luthier.host.adaptation import site_weight
from luthier.host.structure import structure_of
from luthier.models.model import Model
from luthier.models.slim import Slimmed

Objective = Callable[[Any, Mapping[str, Any]], Tensor]


def perturbation(slim: Slimmed, teacher: nn.Module, eps: float = 1e-3) -> Tensor:
    """mean over layers of (max |U V - W| - eps)^2: 0 exactly where the largest changed entry of every layer is eps."""
    sites = {s.path: s for s in structure_of(teacher).sites if s.rows is None}
    terms = []
    for layer in slim.layers:
        made: Any = slim.model.base.get_submodule(layer.path)
        weight = site_weight(teacher, sites[layer.path])
        terms.append(((made.product - weight).abs().max() - eps) ** 2)
    return torch.stack(terms).mean()


def next_token(out: Any, batch: Mapping[str, Any]) -> Tensor:
    """The loss of a decoder's pretraining, over the tokens that are not padding."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    wanted = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return nn.functional.cross_entropy(out.logits[:, :-1].mT.float(), wanted, ignore_index=-100)


def batches(model: Model, inputs: Any, size: int, seed: int) -> Iterable[dict[str, Any]]:
    """Endless batches of unlabelled inputs, in a new order in every pass."""
    pre = model.preprocess
    if pre is None:
        raise ModelError(
            f"{model.name} has no preprocessing for its inputs: give batches of tensors in Python."
        )
    rows: Any = pre.encode(inputs)
    rng = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(rows), generator=rng).split(size):
            batch = pre.collate([rows[i] for i in chosen.tolist()])
            yield {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in batch.items()}


def distil(
    slim: Slimmed,
    teacher: Model,
    data: Iterable[Mapping[str, Any]],
    *,
    steps: int,
    rate: float = 1e-4,
    hidden: float = 1.0,
    logits: float = 0.0,
    bound: float = 1.0,
    eps: float = 1e-3,
    objective: Objective | None = None,
    also: Iterable[nn.Parameter] = (),
    say: Callable[[int, float], None] = lambda step, loss: None,
) -> dict[str, list[float]]:
    """Train the slim model in place on batches (arguments of its forward), and freeze it again.

    objective: (what the model returns, batch) -> the loss of pretraining; None: next tokens for a decoder, else none. also:
    parameters of an objective's own. Returns the terms of the loss at every step.
    """
    if steps < 1 or min(hidden, logits, bound, eps) < 0:
        raise OptionError("steps is 1 or more, and hidden, logits, bound and eps are 0 or more.")
    student: Any = slim.model.base
    own = objective or (next_token if teacher.kind == "decoder" else None)
    blocks = [b for t in structure_of(teacher.base).towers for b in t.blocks]
    told: dict[str, list[float]] = {"own": [], "hidden": [], "logits": [], "bound": []}
    student.requires_grad_(True)
    trained = [*student.parameters(), *also]
    optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=max(2, steps), pct_start=0.1)
    with ExitStack() as stack:
        seen = stack.enter_context(_Watched(student, blocks))
        meant = stack.enter_context(_Watched(teacher.base, blocks))
        for step, batch in zip(range(steps), data):
            inputs = {k: v for k, v in batch.items() if k != "labels"}
            with torch.no_grad():
                target: Any = teacher.base(**inputs)
            out = student(**inputs)
            mask = inputs.get("attention_mask")
            terms = {"bound": perturbation(slim, teacher.base, eps)}
            if own is not None:
                terms["own"] = own(out, batch)
            if hidden:
                pairs = zip(seen.states, meant.states, strict=True)
                terms["hidden"] = torch.stack([_mse(a, b, mask) for a, b in pairs]).mean()
            if logits:
                if getattr(target, "logits", None) is None:
                    raise OptionError(f"logits={logits:g}: {teacher.name} gives no logits. Set logits=0.")
                terms["logits"] = _mse(out.logits, target.logits, mask)
            weights = {"own": 1.0, "hidden": hidden, "logits": logits, "bound": bound}
            total = torch.stack([weights[k] * v for k, v in terms.items()]).sum()
            total.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            for name, value in terms.items():
                told[name].append(float(value.detach()))
            say(step, float(total.detach()))
    student.requires_grad_(False)
    slim.model.forget_fingerprint()
    return told


def _mse(a: Tensor, b: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared difference, over what is not padding. a, b: (rows, tokens, ...)."""
    squared = (a.float() - b.float()).square()
    if mask is None or squared.dim() != 3 or mask.shape != squared.shape[:2]:
        return squared.mean()
    return squared[mask.bool()].mean()


class _Watched:
    """What the blocks of a model return, in order, in every forward while this is entered."""

    def __init__(self, base: nn.Module, blocks: Sequence[str]):
        self.base, self.blocks = base, blocks
        self.found: dict[str, Tensor] = {}

    @property
    def states(self) -> list[Tensor]:
        return [self.found[b] for b in self.blocks]

    def __enter__(self) -> _Watched:
        def hook(name: str) -> Any:
            def keep(module: Any, args: Any, out: Any) -> None:
                self.found[name] = out[0] if isinstance(out, tuple) else out

            return keep

        self.hooks = [self.base.get_submodule(b).register_forward_hook(hook(b)) for b in self.blocks]
        return self

    def __exit__(self, *error: Any) -> None:
        for each in self.hooks:
            each.remove()

"""MPT over several tasks: one shared prompt and every task's own factors, trained together (Wang et al. 2023, "Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning", S070).

[P * (u_k v_k); E(x)]    P: (length, width), shared  u_k: (length, rank)  v_k: (rank, width), of task k
loss of a step = mean over the drawn tasks of: task loss + distil * (KL(teacher's || student's answers) + MSE of last hidden states)
Not an identity at step 0; not a weight change: it cannot merge. A file holds P once, and rank * (length + width) numbers for each task.

At each step a number of tasks is drawn, then so many of them, each with a batch of its own stream (fit's `streams`, by the tasks'
names). Where distil is above 0 each task has a teacher (fit's `companions`, by the same names). `luthier prompts share` does all
of it: teachers, then this; `luthier prompts task` takes one task, or the mean of all to start another from, as `mpt`.

Differs (the paper's losses could not be verified): one weight for both terms of distillation, over answers' tokens; the factors start
with product 1 (source.initial=normal draws them); AdamW, the factors' rate being factor_rate times P's.
"""

from __future__ import annotations

import random

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from luthier.errors import OptionError
from luthier.host.part import Phase, Source, method
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.signals.distillation import answers, last_states, squared_distance
from luthier.signals.optimisers import adamw
from luthier.sources.task_factors import TaskFactors


def drawn(tasks: tuple[str, ...], seed: int, step: int) -> list[str]:
    """The tasks of a step: their number is drawn first, from 1 to all."""
    rng = random.Random(seed * 1_000_003 + step)
    return rng.sample(tasks, rng.randint(1, len(tasks)))


def divergence(student: Tensor | None, teacher: Tensor | None) -> Tensor:
    """Mean over answers of KL(teacher || student). student, teacher: (answers, classes) logits."""
    assert student is not None and teacher is not None, "a task of texts has logits"
    theirs = teacher.float().log_softmax(-1)
    return F.kl_div(student.float().log_softmax(-1), theirs, reduction="batchmean", log_target=True)


@method("mpt_group", targets="embedding", rate=1e-1)
class MPTGroup(PromptTuning):
    source: Source = TaskFactors()  # the shared prompt and the tasks' factors
    tasks: tuple[str, ...] = ()  # their names; none: one task, as mpt
    distil: NonNegativeFloat = 0.9  # weight of the distance to the tasks' teachers; 0: none are needed
    factor_rate: PositiveFloat = 4 / 3  # the factors' learning rate as a multiple of the shared prompt's

    @property
    def companions(self):
        return self.tasks if self.distil else ()

    def check(self, sites) -> None:
        if len(set(self.tasks)) < len(self.tasks) or not all(self.tasks):
            raise OptionError(
                f"mpt_group: tasks={self.tasks} has an empty or a repeated name. Name each once."
            )
        if taken := sorted({"main", "train", "validation"} & set(self.tasks)):
            raise OptionError(f"mpt_group: a run has a {taken[0]!r} of its own. Give that task another name.")

    def of_task(self, run, task: str) -> Tensor:
        batch = {**run.batches.whole(task, run.total), "output_hidden_states": True}
        with run.adapted.given(task=task):
            out = run.adapted(batch)
        loss = run.objective.mean(out, batch)
        if not self.distil:
            return loss
        with torch.no_grad(), run.adapted.using(task):
            theirs = run.adapted(batch)
        objective = run.objective
        ours = answers(objective, out, batch), last_states(objective, out, batch)
        taught = answers(objective, theirs, batch), last_states(objective, theirs, batch)
        near = divergence(ours[0], taught[0])
        return loss + self.distil * (near + squared_distance(ours[1], taught[1], "hidden states"))

    def loss(self, run, batch):
        if not self.tasks:
            return run.objective.mean(run.adapted(batch), batch)
        now = drawn(self.tasks, run.seed, run.total)
        return sum(self.of_task(run, task) for task in now) / len(now)

    def optimiser(self, named, run):
        return adamw(named, run, factors={r"_[uv]$": self.factor_rate})

    def phases(self):
        return (Phase("train", objective=self.loss, optimiser=self.optimiser),)

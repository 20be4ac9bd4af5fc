"""PANDA: a prompt that learns from a source task's prompt by distillation (Zhong et al. 2022, "PANDA: Prompt Transfer Meets Knowledge Distillation for Efficient Model Adaptation", S324).

loss = task loss + distil * lambda * MSE(student's logits, teacher's logits) / batch size
The student is the model with a prompt of its own from a random start; the teacher is the same model with the source's prompt, on
the student's rows, and is not trained. lambda: how well the source transfers, from 0 (plain prompt tuning) on.
trained: as the carrier's method; not an identity at step 0; not a weight change: it cannot merge.

It needs the source's adaptation: `luthier fit --method panda --companion teacher=DIR`, or fit(companions={"teacher": it}).
transfer=auto finds lambda: for the share `scout` of the steps a plain prompt is trained on the target, and lambda is the cosine of
its task embedding and the teacher's (`luthier.signals.task_embedding`), 0 where that is below 0; then the student begins, and the
card says lambda. If you know it (`luthier instruments transferability`), give the number: no step is spent on it.

Differs: the teacher may be any adaptation of the base. It answers through its own head where that is of the student's kind and
size; where they have no space in common, match=hidden compares the last hidden states. What a task embedding is, the paper
leaves open: the mean over rows of the last hidden state at the place of prediction, less the base's. The rate is the carrier's
(paper: 7e-3, prefixes of 20).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt

from luthier.host.part import Phase, method
from luthier.methods.prompts.prompt import Prompt
from luthier.signals.distillation import answers, squared_distance, states
from luthier.signals.task_embedding import similarity, task_embedding


@method("panda", rate=1e-2)
class Panda(Prompt):
    carrier: Literal["input", "deep", "keys_values", "kernel"] = "keys_values"  # where the prompt enters
    transfer: NonNegativeFloat | Literal["auto"] = "auto"  # lambda; auto: measured first
    distil: NonNegativeFloat = 0.1  # weight of the distance to the teacher, before lambda
    match: Literal["logits", "hidden"] = "logits"  # what the student is held to
    scout: Annotated[float, Field(gt=0, lt=1)] = 0.3  # share of the steps that measuring lambda takes
    sample: PositiveInt = 8  # batches that task embeddings are averaged over

    companions = ("teacher",)

    def scouting(self, run):
        """Attach a plain prompt of the same shape, which the first phase trains on the target."""
        plain = Prompt(carrier=self.carrier, length=self.length, source=self.source, start=self.start)
        run.companion("target", plain, seed=run.seed)

    def measure(self, run):
        run.adapted.eval()
        batches = [run.batches.whole("train", step) for step in range(self.sample)]
        found = [task_embedding(run.adapted, name, batches) for name in ("teacher", "target")]
        run.state["transfer"] = max(0.0, similarity(*found))
        run.main.about = {**run.main.about, "transfer": run.state["transfer"]}  # for the card

    def loss(self, run, batch):
        out = run.adapted(batch)
        with torch.no_grad(), run.adapted.using("teacher"):
            theirs = run.adapted(batch, body=self.match == "hidden")
        if self.match == "hidden":
            distance = squared_distance(states(out), states(theirs), "hidden states")
        else:
            ours = answers(run.objective, out, batch)
            distance = squared_distance(ours, answers(run.objective, theirs, batch), "logits")
        weight = run.state["transfer"] if self.transfer == "auto" else self.transfer
        return run.objective.mean(out, batch) + self.distil * weight * distance / run.batches.batch_size

    def phases(self):
        if self.transfer != "auto":
            return (Phase("distil", objective=self.loss),)
        return (
            Phase("scout", share=self.scout, uses=("target",), enter=self.scouting, leave=self.measure),
            Phase("distil", share=1 - self.scout, objective=self.loss),
        )

"""S070, multitask prompt tuning (Wang et al. 2023): what a task adds to a shared prompt."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.checks.s282 import inputs
from luthier.papers.claims import AtMost, Equals

CHECK = Check(
    "S070",
    "A task's prompt is the shared one times a rank-one matrix: it starts as the shared prompt, and trains length + width numbers.",
    claims=(
        Equals("ones", "with u = 1 and v = 1 it is the shared prompt (largest difference of logits)", 0),
        Equals("rank", "rank of the matrix that the shared prompt is multiplied with, after 5 steps", 1),
        Equals("stored", "trained numbers of a task beside the shared prompt, less length + width", 0),
        Equals(
            "shared",
            "values of the shared prompt that 5 steps changed where it is not the task's to train",
            0,
        ),
        AtMost("settled", "the multiplied-out prompt gives the same logits (largest difference)", 1e-6),
    ),
    covers=(
        "luthier.methods.prompts.mpt",
        "luthier.sources.rank_one",
        "luthier.sources.settle",
        "luthier.papers.checks.s282",
        "testbed:llama",
        "testbed:t5",
    ),
    data="the Llama and T5 testbeds, random tokens",
    against="the shared prompt alone, as prompt tuning",
    minutes=1,
    notes="The parametrisation only: training on several source tasks, with distillation, and its transfer to a target are not measured.",
)


@CHECK.measures("ones", "rank", "stored", "shared", "settled", cheap=True)
def what_a_task_adds(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.sources.rank_one import RankOne
    from luthier.sources.settle import settled

    length = 10
    for name in ("llama", "t5"):
        model = run.model(name)
        batch = inputs(model, 3, 9)
        adapted: Any = Adapted(model.base)

        def logits(made: Any, adapted: Any = adapted, batch: Any = batch) -> Any:
            with torch.no_grad(), adapted.attached(made):
                return adapted(batch).logits

        shared = Adaptation.new(lt.methods.PromptTuning(length=length), model.base)
        made = Adaptation.new(lt.methods.MPT(length=length, source=RankOne(train_shared=False)), model.base)
        start = logits(made)
        run.record("ones", (start - logits(shared)).abs().max(), arm=name)
        width = model.base.get_input_embeddings().embedding_dim
        run.record("stored", made.counts()["method"] - (length + width), arm=name)

        at = made.at()[0]
        before = at.values["P"].detach().clone()
        optimiser = torch.optim.AdamW(made.trainable().values(), lr=0.1)
        with adapted.attached(made):
            for _ in range(5):
                optimiser.zero_grad()
                adapted(batch).logits.square().mean().backward()
                optimiser.step()
        after = logits(made)
        if torch.allclose(start, after, atol=1e-3):
            raise RuntimeError("five steps change nothing, so that the rank would show nothing")
        run.record("shared", (at.values["P"] != before).sum(), arm=name)
        with torch.no_grad():
            product = at.values["P_u"] @ at.values["P_v"]
            run.record("rank", torch.linalg.matrix_rank(product.double(), rtol=1e-5), arm=name)
        run.record("settled", (after - logits(settled(made, model.base))).abs().max(), arm=name)

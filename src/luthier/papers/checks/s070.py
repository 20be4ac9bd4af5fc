"""S070, multitask prompt tuning (Wang et al. 2023): what a task adds to a shared prompt."""

from __future__ import annotations

from functools import partial
from typing import Any

from luthier.papers.check import Check
from luthier.papers.checks.s282 import inputs
from luthier.papers.checks.s351 import HALVES, task
from luthier.papers.claims import AtMost, Beats, Equals

LENGTH, RATE, TEACHER_STEPS, JOINT_STEPS, STEPS, SHOTS, ROWS = 10, 0.3, 100, 200, 60, 32, 100
SOURCES, TARGET = (*HALVES, "verdicts", "order-a", "order-b", "order-c"), "departments"
SETTINGS: dict[str, Any] = {"batch_size": 8, "max_new_tokens": 8}

CHECK = Check(
    "S070",
    "A task's prompt is the shared one times a rank-one matrix: it starts as the shared prompt, and trains length + width numbers. What "
    "several tasks share starts a related one better than nothing, and more so where their own prompts teach it.",
    claims=(
        Beats(
            "transfer",
            "exact match on the target after 32 rows: from the shared prompt above prompt tuning from scratch, equal steps, mean of "
            "3 seeds",
            arm="mpt",
            over="scratch",
        ),
        Beats(
            "distil",
            "the same: from a shared prompt that was distilled at least that from one that was not, mean of 3 seeds",
            arm="mpt",
            over="undistilled",
            ties=True,
        ),
        Equals("grouped", "numbers that a file holds for one more task of a group, less length + width", 0),
        AtMost(
            "mixed", "a batch of several tasks equals each task by itself (largest difference, float64)", 1e-5
        ),
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
        "luthier.methods.prompts.mpt_group",
        "luthier.merging.multitask",
        "luthier.sources.task_factors",
        "luthier.signals.distillation",
        "luthier.train.carry",
        "luthier.papers.checks.s351",
        "luthier.sources.rank_one",
        "luthier.sources.settle",
        "luthier.papers.checks.s282",
        "testbed:llama",
        "testbed:t5",
    ),
    data="identities on the Llama and T5 testbeds, random tokens; transfer on T5 and tasks that it was not pretrained on, answers written: "
    "from two halves of `departments`, `verdicts` and three orders of digits to 32 rows of the whole of `departments`",
    against="prompt tuning from scratch, and the same plan without teachers, each at its own best of three learning rates on the target",
    minutes=12,
    notes="Teachers and joint training have one rate. A seed's shared prompts are trained with that seed; its teachers are one set for all.",
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


@CHECK.measures("grouped", "mixed", cheap=True)
def what_tasks_share(run: Any) -> None:
    import torch

    from luthier.host import Adaptation, Adapted
    from luthier.methods import make

    for name in ("llama", "t5"):
        model = run.model(name, dtype="float64")
        width = model.base.get_input_embeddings().embedding_dim
        groups = {
            n: Adaptation.new(make("mpt_group", {"length": LENGTH, "tasks": SOURCES[:n]}), model.base)
            for n in (3, 4)
        }
        three, four = (sum(v.numel() for v in groups[n].state().values()) for n in (3, 4))
        run.record("grouped", four - three - (LENGTH + width), arm=name)

        made, batch = groups[3].to(torch.float64), inputs(model, 4, 9)
        rng = torch.Generator().manual_seed(0)
        adapted: Any = Adapted(model.base)
        with torch.no_grad(), adapted.attached(made):
            for p in made.trainable().values():
                p.add_(0.3 * torch.randn(p.shape, generator=rng, dtype=p.dtype))
            rows = [SOURCES[i] for i in (2, 0, 1, 0)]
            together = adapted({**batch, "task": rows}).logits
            alone = [adapted({**batch, "task": one}).logits[i] for i, one in enumerate(rows)]
        if torch.allclose(alone[1], alone[2], atol=1e-3):
            raise RuntimeError("the tasks answer alike, so that equality would show nothing")
        run.record("mixed", (together - torch.stack(alone)).abs().max(), arm=name)


@CHECK.measures("transfer", "distil")
def to_a_related_task(run: Any) -> None:
    import torch

    from luthier.host import Adaptation
    from luthier.merging.multitask import one_task, share
    from luthier.methods import make

    model = run.model("t5")
    sources = {name: task(name).limit(validation=8) for name in SOURCES}
    target = task(TARGET).limit(train=SHOTS, validation=ROWS, test=ROWS)
    plain, mpt = make("prompt_tuning", {"length": LENGTH}), make("mpt", {"length": LENGTH})

    def taught(name: str) -> Any:
        fitted = run.fit(model, sources[name], plain, steps=TEACHER_STEPS, rate=RATE, **SETTINGS)
        return fitted.adaptation.at()[0].values["P"].tolist()

    def filled(method: Any, values: dict[str, Any]) -> Any:
        made = Adaptation.new(method, model.base)
        with torch.no_grad():
            for name, value in values.items():
                made.at()[0].values[name].copy_(torch.tensor(value))
        return made

    teachers = {n: filled(plain, {"P": run.once(["teacher", n], partial(taught, n))}) for n in SOURCES}

    def joined(distil: float, seed: int) -> Any:
        method = make("mpt_group", {"length": LENGTH, "distil": distil})
        given = {"steps": JOINT_STEPS, "rate": RATE, "seed": seed, "progress": False, **SETTINGS}
        made = one_task(share(model, sources, method, teachers=teachers, **given), model)
        return {name: value.tolist() for name, value in made.at()[0].values.items()}

    shared = {
        (arm, seed): filled(mpt, run.once(["joint", arm, seed], partial(joined, distil, seed)))
        for arm, distil in (("mpt", 0.9), ("undistilled", 0.0))
        for seed in range(3)
    }
    for arm in ("mpt", "undistilled", "scratch"):
        method = plain if arm == "scratch" else mpt

        def given(seed: int, arm: str = arm) -> dict[str, Any]:
            start = {} if arm == "scratch" else {"after": shared[arm, seed]}
            return {"steps": STEPS, **start, **SETTINGS}

        rate = run.best_rate("transfer", arm, model, target, method, **given(0))

        def tuned(seed: int, method: Any = method, rate: float = rate, given: Any = given) -> float:
            fitted = run.fit(model, target, method, seed=seed, rate=rate, **given(seed))
            return float(fitted.score(target.test)["exact_match"])

        for seed in range(3):
            score = run.once(["target", arm, seed], partial(tuned, seed))
            if arm != "undistilled":
                run.record("transfer", score, arm=arm, seed=seed, rate=rate)
            if arm != "scratch":
                run.record("distil", score, arm=arm, seed=seed, rate=rate)

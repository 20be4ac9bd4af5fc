"""S348, EPT (2024): a short prompt that reads the shift of the input's embeddings and is mapped into several spaces."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.checks.s282 import inputs
from luthier.papers.claims import AtMost, Equals, WithinError

TASKS, LONG, SHORT, INPUT = ("verdicts", "departments"), 100, 40, 128
SETTINGS: dict[str, Any] = {"signal": "choices", "batch_size": 16, "steps": 150}

CHECK = Check(
    "S348",
    "With no more numbers than a prompt of 100 tokens it takes a tenth less time and is as good; without fusion and with one space it is "
    "DePT, and without the shift prompt tuning.",
    claims=(
        *(
            WithinError(
                task,
                f"accuracy on {task} not below a prompt of 100 tokens by more than one standard error, 3 seeds",
                arm="ept",
                over="prompt_100",
            )
            for task in TASKS
        ),
        AtMost("time", "time of a training step as a share of the prompt of 100 tokens', input of 128", 0.9),
        AtMost("budget", "trained numbers above those of the prompt of 100 tokens (below it: negative)", 0),
        Equals("dept", "without fusion, one space: logits less DePT's (largest difference)", 0),
        Equals("plain", "and with A = 0: logits less prompt tuning's (largest difference)", 0),
        AtMost("gate", "sum of the gate's weights less 1", 1e-6),
        AtMost("space", "a gate of one 1: the prompt less that of its space (largest difference)", 1e-6),
        Equals("reached", "trained tensors without a gradient in the second step", 0),
    ),
    covers=(
        "luthier.methods.prompts.ept",
        "luthier.methods.prompts.embedding_shift",
        "luthier.methods.prompts.dept",
        "luthier.papers.checks.s282",
        "testbed:llama",
        "testbed:t5",
    ),
    data="the Llama and T5 testbeds; the comparisons on T5 and two tasks that it was not pretrained on",
    against="a prompt of 100 tokens, each at its own best of three learning rates",
    minutes=25,
    notes="Two generated tasks of classification stand for the paper's GLUE.",
)


@CHECK.measures("budget", "dept", "plain", "gate", "space", "reached", cheap=True)
def what_it_is(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.methods.prompts.ept import combined, fused, gate, table

    for name in ("llama", "t5"):
        model = run.model(name)
        batch = inputs(model, 3, 9)
        adapted: Any = Adapted(model.base)

        def logits(made: Any, adapted: Any = adapted, batch: Any = batch) -> Any:
            with torch.no_grad(), adapted.attached(made):
                return adapted(batch).logits

        dept = Adaptation.new(lt.methods.DePT(length=SHORT, budget=LONG), model.base)
        bare = Adaptation.new(lt.methods.EPT(length=SHORT, budget=LONG, fusion=False, spaces=1), model.base)
        plain = Adaptation.new(lt.methods.PromptTuning(length=SHORT), model.base)
        with torch.no_grad():
            values = {k: v for i in (0, 1) for k, v in dept.at(i)[0].values.items()}
            values["B"].normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
            for k, p in bare.at()[0].values.items():
                p.copy_(values[k])
            plain.at()[0].values["P"].copy_(values["P"])
        shifted = logits(bare)
        run.record("dept", (shifted - logits(dept)).abs().max(), arm=name)
        with torch.no_grad():
            bare.at()[0].values["A"].zero_()
        run.record("plain", (logits(bare) - logits(plain)).abs().max(), arm=name)
        if torch.allclose(shifted, logits(plain), atol=1e-3):
            raise RuntimeError("the shift changes nothing, so that equality would show nothing")

        part = lt.methods.EPT(length=SHORT, budget=LONG)
        made = Adaptation.new(part, model.base)
        width = model.base.get_input_embeddings().embedding_dim
        run.record("budget", made.counts()["method"] - LONG * width, arm=name)
        trained = made.trainable()
        optimiser = torch.optim.AdamW(trained.values(), lr=0.05)
        with adapted.attached(made):
            for _ in range(2):
                optimiser.zero_grad()
                adapted(batch).logits.square().mean().backward()
                optimiser.step()
        silent = [n for n, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
        run.record("reached", len(silent), arm=name, of=len(trained))
        with torch.no_grad():
            t = made.at()[0].values
            prompt = fused(t["P"], table(part.alpha, t["A"], t["B"]))
            g = gate(prompt, t["gate"], t["bias"])
            run.record("gate", (g.sum() - 1).abs(), arm=name)
            for i in range(part.spaces):
                only = torch.eye(part.spaces)[i][None]
                own = prompt if i == 0 else prompt + prompt @ t["D"][i - 1] @ t["U"][i - 1]
                run.record("space", (combined(prompt, only, t["D"], t["U"]) - own).abs().max(), arm=name)


@CHECK.measures("time")
def what_it_saves(run: Any) -> None:
    import luthier as lt
    from luthier.papers.seconds import least_seconds

    model = run.model("t5")
    batch = inputs(model, 8, INPUT)
    arms = {
        "prompt": lt.methods.PromptTuning(length=LONG),
        "ept": lt.methods.EPT(length=SHORT, budget=LONG),
    }
    best = least_seconds(model.base, batch, arms, turns=20, update=False)
    run.record("time", best["ept"] / best["prompt"], **best)


@CHECK.measures(*TASKS)
def what_it_is_worth(run: Any) -> None:
    import luthier as lt

    arms = {
        "ept": lt.methods.EPT(length=SHORT, budget=LONG),
        "prompt_100": lt.methods.PromptTuning(length=LONG),
    }
    for task in TASKS:
        run.compare(task, run.model("t5"), run.data(task), arms, **SETTINGS)

"""S207, DePT (Shi & Lipani 2024): a prompt's budget divided between a shorter prompt and a shift of the input's embeddings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from luthier.papers.check import Check
from luthier.papers.checks.s282 import inputs
from luthier.papers.claims import AtMost, Beats, Equals, WithinError

CHECK = Check(
    "S207",
    "With the numbers of a prompt of 100 tokens and the sequence of one of 40, DePT takes a tenth less time, is as good, and needs two "
    "learning rates for it.",
    claims=(
        WithinError(
            "score",
            "accuracy not below a prompt of 100 tokens by more than one standard error, 5 seeds",
            arm="dept",
            over="prompt_100",
            seeds=5,
        ),
        Beats(
            "rates",
            "accuracy with two learning rates above that with one, each at its best of three, mean of 5 seeds",
            arm="dept",
            over="one_rate",
            seeds=5,
        ),
        AtMost("time", "time of a training step as a share of the prompt of 100 tokens', input of 128", 0.9),
        Equals(
            "solver", "sizes for which the solved rank leaves no or more than a further rank's numbers", 0
        ),
        Equals("plain", "with B = 0 it is prompt tuning of its length (largest difference of logits)", 0),
        Equals("tokens", "tokens in the encoder less those of the input and of the short prompt", 0),
        AtMost("budget", "trained numbers above those of the prompt of 100 tokens (below it: negative)", 0),
    ),
    covers=(
        "luthier.methods.prompts.dept",
        "luthier.methods.prompts.embedding_shift",
        "luthier.papers.checks.s282",
        "testbed:llama",
        "testbed:t5",
    ),
    data="the Llama and T5 testbeds; the comparisons on T5 and a task that it was not pretrained on",
    against="a prompt of 100 tokens, and DePT whose prompt and shift share one learning rate, each at its own best of three",
    minutes=25,
)

TASK, LONG, SHORT, INPUT = "verdicts", 100, 40, 128
SETTINGS: dict[str, Any] = {"signal": "choices", "batch_size": 16, "steps": 150}


@CHECK.measures("solver", "plain", "tokens", "budget", cheap=True)
def what_it_is(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted

    wrong = 0
    for width in (32, 128, 768, 1024):
        for positions in (16, 64, 256, 500):
            for length in range(1, LONG):
                shift = lt.methods.DePT(length=length, budget=LONG, max_positions=positions).parts()[1]
                rank = shift.rank_at(SimpleNamespace(out_features=width))
                left = LONG * width - length * width - rank * (positions + width)
                wrong += not 0 <= left < positions + width
    run.record("solver", wrong)
    for name in ("llama", "t5"):
        model = run.model(name)
        batch, found, adapted = inputs(model, 3, 9), [], Adapted(model.base)
        short = lt.methods.PromptTuning(length=SHORT)
        for method in (short, lt.methods.DePT(length=SHORT, budget=LONG)):
            made = Adaptation.new(method, model.base)
            with torch.no_grad(), adapted.attached(made):
                found.append(adapted(batch).logits)
        if torch.allclose(model.base(**batch).logits, found[0], atol=1e-3):
            raise RuntimeError("the prompt changes nothing, so that equality would show nothing")
        run.record("plain", (found[0] - found[1]).abs().max(), arm=name)
        width = model.base.get_input_embeddings().embedding_dim
        trained = sum(p.numel() for p in made.trainable().values())
        run.record("budget", trained - LONG * width, arm=name)

    lengths = []
    last = model.base.encoder.block[-1]
    hook = last.register_forward_pre_hook(lambda m, a: lengths.append(a[0].shape[1]))
    with torch.no_grad(), adapted.attached(made):
        adapted(inputs(model, 2, INPUT))
    hook.remove()
    run.record("tokens", lengths[0] - INPUT - SHORT)


@CHECK.measures("time")
def what_it_saves(run: Any) -> None:
    import luthier as lt
    from luthier.papers.seconds import least_seconds

    model = run.model("t5")
    batch = inputs(model, 8, INPUT)
    arms = {
        "prompt": lt.methods.PromptTuning(length=LONG),
        "dept": lt.methods.DePT(length=SHORT, budget=LONG),
    }
    best = least_seconds(model.base, batch, arms, turns=20)
    run.record("time", best["dept"] / best["prompt"], **best)


@CHECK.measures("score", "rates")
def what_it_is_worth(run: Any) -> None:
    import luthier as lt

    arms = {
        "dept": lt.methods.DePT(length=SHORT, budget=LONG),
        "one_rate": lt.methods.DePT(length=SHORT, budget=LONG, shift_rate=1.0),
        "prompt_100": lt.methods.PromptTuning(length=LONG),
    }
    run.compare(("score", "rates"), run.model("t5"), run.data(TASK), arms, seeds=range(5), **SETTINGS)

"""S286, XPrompt (Ma et al. 2022): what importance is, what stays zero, and whether a pruned prompt is as good."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals

TASK, LENGTH, STEPS, SEEDS = "verdicts", 20, 300, range(5)
SETTINGS: dict[str, Any] = {"signal": "choices", "batch_size": 16, "steps": STEPS}

CHECK = Check(
    "S286",
    "The importance of a prompt token is the gradient of its mask, pruned pieces stay zero, and a prompt pruned to half of "
    "its tokens and rewound is at least as good as the whole one and better than one pruned at random.",
    claims=(
        Beats(
            "whole",
            "accuracy after pruning and rewinding: at least that of the unpruned prompt trained as long, mean of 5 seeds",
            arm="xprompt",
            over="prompt_tuning",
            ties=True,
            seeds=5,
        ),
        Beats(
            "random",
            "accuracy after pruning by importance: above pruning as many tokens and pieces at random, mean of 5 seeds",
            arm="xprompt",
            over="random_pruning",
            seeds=5,
        ),
        AtMost("kept", "share of the tokens that is left", 0.5),
        AtMost(
            "gradient", "d loss / d mask of a token and <d loss / d P, P> (largest relative difference)", 1e-5
        ),
        Equals("hidden", "importance of tokens that the attention mask hides", 0),
        Equals("ranked", "hidden tokens that are not ranked last", 0),
        Equals("zero", "values of pruned pieces that are not zero after retraining", 0),
        AtMost(
            "removed",
            "hidden tokens that are removed change no logit where positions are explicit (largest, float64)",
            1e-6,
        ),
    ),
    covers=(
        "luthier.methods.prompts.xprompt",
        "luthier.methods.prompts.prompt_tuning",
        "testbed:llama",
        "testbed:t5",
    ),
    data="the T5 testbed and a task that it was not pretrained on; hidden tokens on the Llama testbed",
    against="prompt tuning for as many steps, and pruning at random, each at its own best of three learning rates",
    minutes=14,
    notes="Pruned tokens leave the sequence, and the survivors are trained again without them, so that T5's relative positions "
    "are those of the shorter prompt from then on.",
)


def masked(length: int, hidden: tuple[int, ...], show: bool = True) -> Any:
    """XPrompt of which some tokens are hidden by the attention mask."""
    import torch

    from luthier.methods.prompts.xprompt import XPrompt

    class Masked(XPrompt):
        hides = True

        def tokens(self, t: Any, ctx: Any) -> Any:
            visible = torch.ones(1, length, dtype=torch.bool)
            visible[0, list(hidden)] = False
            return super().tokens(t, ctx), visible

    return Masked(length=length, pieces=4)


def sentences(model: Any, rows: int = 4, tokens: int = 11) -> dict[str, Any]:
    import torch

    ids = torch.randint(
        20, model.base.config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(0)
    )
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.kind == "encoder-decoder":
        made["decoder_input_ids"] = ids[:, :3]
    return made


@CHECK.measures("gradient", "hidden", "ranked", "removed", cheap=True)
def importance(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted

    def gradients(model: Any, method: Any) -> tuple[Any, Any, Any]:
        """(d loss / d token mask, <d loss / d P, P> by token, logits)."""
        made = Adaptation.new(method, model.base).to(torch.float64)
        values: Any = made.at()[0].values
        gamma = values["token"].requires_grad_(True)
        adapted: Any = Adapted(model.base)
        with adapted.attached(made):
            logits = adapted(sentences(model)).logits
            by_gamma, by_prompt = torch.autograd.grad(logits.logsumexp(-1).mean(), [gamma, values["P"]])
        return by_gamma, (by_prompt * values["P"]).sum(-1).detach(), logits.detach()

    for name in ("t5", "llama"):
        model = run.model(name, dtype="float64")
        mine, product, _ = gradients(model, lt.methods.XPrompt(length=6, pieces=4))
        run.record("gradient", ((mine - product).abs().max() / product.abs().max()), arm=name)
        if name == "t5":
            continue
        hidden = (1, 4)
        mine, _, logits = gradients(model, masked(6, hidden))
        run.record("hidden", mine[list(hidden)].abs().max(), arm=name)
        last = set(mine.abs().argsort()[: len(hidden)].tolist())
        run.record("ranked", len(set(hidden) - last), arm=name)
        left = [i for i in range(6) if i not in hidden]
        whole = Adaptation.new(masked(6, hidden), model.base).to(torch.float64)
        short = Adaptation.new(lt.methods.XPrompt(length=len(left), pieces=4), model.base).to(torch.float64)
        with torch.no_grad():
            short.at()[0].values["P"].copy_(whole.at()[0].values["P"][left])
            adapted: Any = Adapted(model.base)
            with adapted.attached(short):
                run.record("removed", (adapted(sentences(model)).logits - logits).abs().max(), arm=name)


@CHECK.measures("whole", "random", "kept", "zero")
def pruned(run: Any) -> None:
    import luthier as lt

    model, data = run.model("t5"), run.data(TASK)
    arms = {
        "xprompt": lt.methods.XPrompt(length=LENGTH),
        "prompt_tuning": lt.methods.PromptTuning(length=LENGTH),
        "random_pruning": at_random(),
    }
    run.compare(("whole", "random"), model, data, arms, seeds=SEEDS, **SETTINGS)
    fitted = run.fit(model, data, arms["xprompt"], **SETTINGS)
    at = fitted.adaptation.at()[0]
    left, pieces = at.values["P"].detach(), at.values["piece"].detach()
    run.record("kept", len(left) / LENGTH)
    from luthier.host.context import Context

    made = fitted.adaptation.method.tokens(at.t(Context()), Context()).detach()
    cut = made.view(len(left), pieces.shape[1], -1)[pieces == 0]
    if not len(cut):
        raise RuntimeError("no piece was pruned, so that their staying zero shows nothing")
    run.record("zero", int((cut != 0).sum()), pieces=len(cut))


def at_random() -> Any:
    """XPrompt whose importance is drawn: it prunes as many tokens and pieces, whichever."""
    import torch

    from luthier.methods.prompts.xprompt import XPrompt

    class Random(XPrompt):
        def score(self, which: str) -> Any:
            def step(run: Any) -> None:
                gamma = run.main.at()[0].values[which]
                rng = torch.Generator().manual_seed(run.seed)
                run.extra["importance"] = torch.rand(gamma.shape, generator=rng)

            return step

    return Random(length=LENGTH)

"""S369, DPT (Xiao et al. 2023): how many numbers a factored prompt has, what it settles to, and what it is worth."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals, Reported

TASKS, LENGTH, STEPS = ("departments", "verdicts", "pydocs"), 40, 200
MODELS = ("llama", "t5")

CHECK = Check(
    "S369",
    "A prompt of length c and width e that is a product of rank b has b (c + e) numbers and settles to an ordinary prompt; "
    "with fewer than 15 % of a full prompt's numbers it is within a point of it on the mean of three tasks.",
    claims=(
        Beats(
            "accuracy",
            "exact match, mean of three tasks and three seeds: the factored prompt is within 1 point of the full one",
            arm="dpt",
            over="prompt_tuning",
            by=-0.01,
            ties=True,
            seeds=9,
        ),
        Equals("count", "b (c + e) numbers train (difference)", 0),
        AtMost("share", "trained numbers as a share of the full prompt's", 0.15),
        Equals("rank", "rank of the prompt above b", 0),
        AtMost("settled", "the settled prompt gives the same logits (largest difference, float64)", 1e-6),
        Reported("spread", "standard deviation of the prompt's entries at the start"),
    ),
    covers=(
        "luthier.methods.prompts.dpt",
        "luthier.methods.prompts.prompt_tuning",
        "luthier.sources.low_rank",
        "luthier.sources.rows",
        "luthier.sources.settle",
        "testbed:llama",
        "testbed:t5",
    ),
    data="the Llama and T5 testbeds; for the accuracy three tasks of the T5 that it was not pretrained on",
    against="prompt tuning of the same length on the same rows, each at its own best of three learning rates",
    minutes=25,
)


def method(width: int) -> Any:
    """DPT of the largest rank below 15 % of a full prompt's numbers."""
    import luthier as lt
    from luthier.sources.low_rank import LowRank

    rank = int(0.15 * LENGTH * width / (LENGTH + width))
    return lt.methods.DPT(length=LENGTH, source=LowRank(rank=rank, initial="random"))


@CHECK.measures("count", "share", "rank", "settled", "spread", cheap=True)
def the_product(run: Any) -> None:
    import torch

    from luthier.host import Adaptation, Adapted
    from luthier.sources.settle import settled

    for name in MODELS:
        model = run.model(name, dtype="float64")
        width = model.base.get_input_embeddings().embedding_dim
        asked = method(width)
        made = Adaptation.new(asked, model.base).to(torch.float64)
        trained = sum(p.numel() for p in made.trainable().values())
        prompt = made.at()[0].t(None).P.detach()
        run.record("count", trained - asked.source.rank * (LENGTH + width), arm=name)
        run.record("share", trained / (LENGTH * width), arm=name)
        run.record("rank", max(0, int(torch.linalg.matrix_rank(prompt)) - asked.source.rank), arm=name)
        run.record("spread", prompt.std(), arm=name)
        rng = torch.Generator().manual_seed(0)
        ids = torch.randint(20, model.base.config.vocab_size, (3, 9), generator=rng)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if model.kind == "encoder-decoder":
            given["decoder_input_ids"] = ids[:, :4]
        adapted: Any = Adapted(model.base)
        logits = []
        with torch.no_grad():
            alone = adapted(given).logits
            for each in (made, settled(made, model.base).to(torch.float64)):
                with adapted.attached(each):
                    logits.append(adapted(given).logits)
        if torch.allclose(alone, logits[0], atol=1e-3):
            raise RuntimeError("the prompt changes nothing, so that equality would show nothing")
        run.record("settled", (logits[0] - logits[1]).abs().max(), arm=name)


@CHECK.measures("accuracy")
def three_tasks(run: Any) -> None:
    import luthier as lt
    from luthier.models.testbeds.tasks import as_text2text

    model = run.model("t5")
    width = model.base.get_input_embeddings().embedding_dim
    arms = {"dpt": method(width), "prompt_tuning": lt.methods.PromptTuning(length=LENGTH)}
    settings: dict[str, Any] = {"steps": STEPS, "batch_size": 16, "max_new_tokens": 8}
    for i, task in enumerate(TASKS):  # seeds of its own for each task: a pair is one task with one seed
        data = as_text2text(run.data(task)).limit(train=800, validation=200, test=400)
        run.compare("accuracy", model, data, arms, seeds=range(3 * i, 3 * i + 3), **settings)

"""S282, prompt tuning (Lester et al. 2021): what the prompt is, many tasks in one batch, and what its start is worth."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals, Reported

CHECK = Check(
    "S282",
    "A soft prompt is length x width numbers in front of a frozen model; one that holds the embeddings of a text is that "
    "text; many prompts share one pass; and one that starts from the words of the labels learns sooner.",
    claims=(
        Beats(
            "start",
            "steps to 90 % of the final accuracy: a random start takes more than one from the words of the labels, mean of "
            "3 seeds",
            arm="random",
            over="label_words",
        ),
        Equals("count", "length x width numbers train (difference)", 0),
        AtMost(
            "text",
            "a prompt of a text's embeddings gives the text-prompted logits (largest difference, float64)",
            1e-6,
        ),
        AtMost(
            "mixed",
            "a batch that mixes two tasks, prompts of unequal length, equals separate batches (largest difference, float64)",
            1e-5,
        ),
        AtMost("ensemble", "five prompts in one pass equal five passes (largest difference, float64)", 1e-5),
        Equals("frozen", "values of the base that training changed", 0),
        Reported(
            "gap", "accuracy of full tuning and of the prompt on the same rows, each at its own best rate"
        ),
    ),
    covers=(
        "luthier.methods.prompts.prompt_tuning",
        "luthier.starts.vocabulary",
        "testbed:llama",
        "testbed:t5",
    ),
    data="the Llama and T5 testbeds; the start on T5 and a task that it was not pretrained on",
    against="the same prompt from random vectors, at its own best of three learning rates; full tuning, not judged",
    minutes=8,
)

TASK, LENGTH, STEPS, EVERY = "verdicts", 20, 150, 10
MODELS = ("llama", "t5")
SETTINGS: dict[str, Any] = {"signal": "choices", "batch_size": 16}


def inputs(model: Any, rows: int, tokens: int, seed: int = 0, front: Any = None) -> dict[str, Any]:
    """Random tokens without padding; `front`, a row of ids, stands before each row of the encoder's input."""
    import torch

    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(20, model.base.config.vocab_size, (rows, tokens), generator=rng)
    if front is not None:
        ids = torch.cat([front.expand(rows, -1), ids], 1)
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.kind == "encoder-decoder":
        made["decoder_input_ids"] = torch.randint(20, model.base.config.vocab_size, (rows, 4), generator=rng)
    return made


@CHECK.measures("count", "text", cheap=True)
def what_it_is(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.starts.vocabulary import Vocabulary

    for name, model in {n: run.model(n, dtype="float64") for n in MODELS}.items():
        text = torch.tensor([31, 57, 44, 31, 102])
        prompt = lt.methods.PromptTuning(length=len(text), start=Vocabulary(ids=tuple(text.tolist())))
        made = Adaptation.new(prompt, model.base).to(torch.float64)
        trained = sum(p.numel() for p in made.trainable().values())
        run.record("count", trained - len(text) * model.base.get_input_embeddings().embedding_dim, arm=name)
        adapted: Any = Adapted(model.base)
        with torch.no_grad():
            want = model.base(**inputs(model, 3, 9, front=text)).logits
            want = want if model.kind == "encoder-decoder" else want[:, len(text) :]
            alone = adapted(inputs(model, 3, 9)).logits
            adapted.attach("main", made)
            got = adapted(inputs(model, 3, 9)).logits
        if torch.allclose(alone, want, atol=1e-3):
            raise RuntimeError("the text changes nothing, so that equality would show nothing")
        run.record("text", (got - want).abs().max(), arm=name)


@CHECK.measures("mixed", "ensemble", cheap=True)
def many_in_one_pass(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.host.bank import Bank

    for name, model in {n: run.model(n, dtype="float64") for n in MODELS}.items():
        batch = inputs(model, 5, 9)
        adapted: Any = Adapted(model.base)
        adapted.attach("a", Adaptation.new(lt.methods.PromptTuning(length=3), model.base, seed=1))
        adapted.attach("b", Adaptation.new(lt.methods.PromptTuning(length=7), model.base, seed=2))
        prompts = {
            f"p{i}": Adaptation.new(lt.methods.PromptTuning(length=4), model.base, seed=i) for i in range(5)
        }
        with torch.no_grad():
            separate = {}
            for task in ("a", "b"):
                with adapted.using(task):
                    separate[task] = adapted(batch).logits
            if (
                model.kind != "encoder-decoder"
            ):  # T5's relative positions cannot skip: lengths must agree there
                route = ["a", "b", "b", "a", "b"]
                with adapted.using("a", "b"):
                    together = adapted({**batch, "adaptation": route}).logits
                want = torch.stack([separate[task][i] for i, task in enumerate(route)])
                run.record("mixed", (together - want).abs().max(), arm=name)
            row = {k: v[:1].expand(5, -1) for k, v in batch.items()}
            passes = []
            for made in prompts.values():
                one: Any = Adapted(model.base)
                with one.attached(made):
                    passes.append(one({k: v[:1] for k, v in batch.items()}).logits)
            bank = Bank(model.base, prompts)
            banked: Any = Adapted(model.base)
            with banked.attached(bank.adaptation):
                once = bank(banked, row, list(prompts)).logits
            run.record("ensemble", (once - torch.cat(passes)).abs().max(), arm=name)


@CHECK.measures("start", "frozen", "gap")
def what_the_start_is_worth(run: Any) -> None:
    import luthier as lt
    from luthier.starts.uniform import Uniform
    from luthier.starts.vocabulary import Vocabulary

    model, data = run.model("t5"), run.data(TASK)
    before = {n: t.clone() for n, t in model.base.state_dict().items()}
    words = [
        model.preprocess.tokenizer(label, add_special_tokens=False)["input_ids"] for label in data.task.labels
    ]
    ids = [i for word in words for i in word]
    starts = {
        "label_words": Vocabulary(ids=tuple(ids[i % len(ids)] for i in range(LENGTH))),
        "random": Uniform(),
    }
    for name, start in starts.items():
        prompt = lt.methods.PromptTuning(length=LENGTH, start=start)
        rate = run.best_rate("start", name, model, data, prompt, steps=STEPS, **SETTINGS)
        for seed in range(3):
            curve = run.curve(
                "start", name, model, data, prompt, every=EVERY, seed=seed, rate=rate, steps=STEPS, **SETTINGS
            )
            final = curve[-1][1]["accuracy"]
            steps = next(step for step, scores in curve if scores["accuracy"] >= 0.9 * final)
            run.record("start", steps, arm=name, seed=seed, rate=rate, final=final)
    arms = {"full": lt.methods.Full(), "prompt_tuning": lt.methods.PromptTuning(length=LENGTH)}
    run.compare("gap", model, data, arms, steps=STEPS, **SETTINGS)
    run.record("frozen", sum(int((before[n] != t).sum()) for n, t in model.base.state_dict().items()))

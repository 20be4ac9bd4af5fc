"""S091, prompt waywardness (Khashabi et al. 2022): a good prompt near any text, and what that text is worth as a prompt."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from statistics import fmean
from typing import Any

from luthier.papers.check import Check
from luthier.papers.checks.s351 import task
from luthier.papers.claims import AtLeast, AtMost, Equals, Reported

TASK, TEXTS, TOKENS, STEPS, ROWS = "verdicts", 5, 8, 200, 150
GAMMAS = (0.0, 0.1, 0.3, 1.0, 3.0)
SETTINGS: dict[str, Any] = {"batch_size": 16, "max_new_tokens": 8}

CHECK = Check(
    "S091",
    "A soft prompt can be trained near any text at next to no cost, and the text then says nothing of what the prompt does.",
    claims=(
        AtMost("free", "word F1 of the projection and the text at gamma = 0, mean of 5 random texts", 0.1),
        AtLeast("reads", "the same at the chosen gamma: the least costly of those above 0.9", 0.9),
        AtMost("cost", "accuracy at gamma = 0 less that at the chosen gamma, mean of 5 texts", 0.05),
        AtMost(
            "worth",
            "share of the gain over the start that the projected text keeps as the prompt, at the chosen gamma, mean of 5 texts",
            0.5,
        ),
        Equals("text", "word F1 of a start at the text, without a step", 1),
        Equals(
            "as_text",
            "rows that a prompt at the text and the text itself answer differently, without a step",
            0,
        ),
        Reported("curve", "word F1 by gamma, mean of 5 texts"),
        Reported("accuracy", "accuracy by gamma, mean of 5 texts"),
    ),
    covers=(
        "luthier.instruments.waywardness",
        "luthier.methods.prompts.near_text",
        "luthier.papers.checks.s351",
        "testbed:llama",
        "testbed:gpt2",
    ),
    data="the Llama testbed and a task that it was not pretrained on, answers written; the start at the text also on GPT-2",
    against="the same prompt without the penalty, from the same start, at its best of three learning rates, which all gammas use",
    minutes=11,
    notes="Texts are random words of one token. Accuracy is exact match of the written answer. Figures are of test rows; the gamma "
    "is chosen on validation rows.",
)


@CHECK.measures("text", "as_text", cheap=True)
def a_start_at_the_text(run: Any) -> None:
    import torch

    from luthier.host import Adaptation, Adapted
    from luthier.instruments.waywardness import at_the_input, near, projection, random_texts, word_f1
    from luthier.starts.vocabulary import Vocabulary

    for name in ("llama", "gpt2"):
        model = run.model(name)
        tokenizer = model.preprocess.tokenizer
        rng = torch.Generator().manual_seed(0)
        rows = torch.randint(40, model.base.config.vocab_size, (32, 12), generator=rng)
        for number, text in enumerate(random_texts(model, TEXTS, TOKENS)):
            ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
            made = Adaptation.new(near(ids, 0.1, start=Vocabulary(ids=ids)), model.base)
            found, _ = projection(*at_the_input(model, made))
            run.record("text", word_f1(tokenizer.decode(found), text), arm=name, seed=number)
            adapted: Any = Adapted(model.base)
            with torch.no_grad():
                alone = adapted({"input_ids": rows}).logits[:, -1].argmax(-1)
                front = torch.tensor(ids).expand(len(rows), -1)
                want = adapted({"input_ids": torch.cat([front, rows], 1)}).logits[:, -1].argmax(-1)
                with adapted.attached(made):
                    got = adapted({"input_ids": rows}).logits[:, -1].argmax(-1)
            if torch.equal(alone, want):
                raise RuntimeError("the text changes no answer, so that equality would show nothing")
            run.record("as_text", (got != want).sum(), arm=name, seed=number)


@CHECK.measures("free", "reads", "cost", "worth", "curve", "accuracy")
def over_gammas(run: Any) -> None:
    from luthier.instruments.waywardness import TRUST, near, point, random_texts

    model, data = run.model("llama"), task(TASK).limit(validation=ROWS, test=ROWS)
    tokenizer, table = model.preprocess.tokenizer, model.base.get_input_embeddings().weight.detach()
    texts = random_texts(model, TEXTS, TOKENS)
    tokens = {text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts}
    rate = run.best_rate("cost", "free", model, data, near(tokens[texts[0]], 0.0), steps=STEPS, **SETTINGS)
    free: list[Any] = []

    def walked(text: str, gamma: float) -> list[Any]:
        if gamma or not free:  # without the penalty the prompt is the same for every text
            fitted = run.fit(model, data, near(tokens[text], gamma), rate=rate, steps=STEPS, **SETTINGS)
            free.extend([] if gamma else [fitted])
        fitted = fitted if gamma else free[0]
        return [asdict(point(fitted, split, table, text, gamma)) for split in (data.validation, data.test)]

    found = {(t, g): run.once(["point", t, g], partial(walked, t, g)) for g in GAMMAS for t in texts}

    def mean(key: str, gamma: float, part: int) -> float:
        return fmean(found[t, gamma][part][key] for t in texts)

    for gamma in GAMMAS:
        run.record("curve", mean("f1", gamma, 1), arm=f"gamma {gamma:g}")
        run.record("accuracy", mean("score", gamma, 1), arm=f"gamma {gamma:g}", rate=rate)
    reading = [g for g in GAMMAS if mean("f1", g, 0) > TRUST]
    best = max(reading or GAMMAS, key=lambda g: mean("score", g, 0))
    gain = mean("score", best, 1) - mean("start_score", best, 1)
    kept = mean("projected_score", best, 1) - mean("start_score", best, 1)
    if gain <= 0:
        raise RuntimeError("the prompt learned nothing, so that no share of its gain can be kept")
    run.record("free", mean("f1", 0.0, 1))
    run.record("reads", mean("f1", best, 1), gamma=best)
    run.record("cost", mean("score", 0.0, 1) - mean("score", best, 1), gamma=best)
    run.record("worth", kept / gain, gamma=best)

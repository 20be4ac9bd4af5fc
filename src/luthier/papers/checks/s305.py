"""S305, Control Prefixes (Clive et al. 2022): a prefix for each label, looked up by row, and what a label decides."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Beats

LABELS = "polite, urgent"
ENDINGS = ("please", "now")
SETTINGS: dict[str, Any] = {"batch_size": 16, "max_new_tokens": 12}
STEPS, LENGTH = 600, 10

CHECK = Check(
    "S305",
    "A label that the input does not show decides how the answer is put: control prefixes learn that and plain ones cannot; rows "
    "of a batch have their own labels; without control tokens it is prefix tuning; and the networks fold away.",
    claims=(
        AtLeast("switch", "answers whose ending changes when only the label does, share of test rows", 0.9),
        Beats(
            "loss",
            "validation loss of a plain prefix of equal total length above that of control prefixes, mean of 3 seeds",
            arm="plain",
            over="control",
        ),
        AtMost("empty", "with control_length=0 it is prefix tuning (largest difference)", 0.0),
        AtMost("mixed", "a batch of mixed labels equals row by row (largest difference, float64)", 1e-5),
        AtMost("folded", "folding the networks away changes outputs (largest difference, float32)", 1e-5),
        AtMost("order", "the order of the key/value blocks (largest difference, float64)", 1e-6),
    ),
    covers=(
        "luthier.methods.prefixes.control_prefixes",
        "luthier.methods.prefixes.p_tuning_v2",
        "luthier.sources.control_mlp",
        "testbed:t5",
    ),
    data="the T5 testbed; departments, where each answer ends as its row's label says: 'please' or 'now', drawn for every row",
    against="a plain prefix of as many tokens at its own best of three learning rates, on the same rows",
    minutes=12,
)


def inputs(model: Any, rows: int) -> dict[str, Any]:
    import torch

    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(20, model.base.config.vocab_size, (rows, 9 + 4), generator=rng)
    return {
        "input_ids": ids[:, :9],
        "attention_mask": torch.ones(rows, 9, dtype=torch.long),
        "decoder_input_ids": ids[:, 9:],
    }


def method(**options: Any) -> Any:
    import luthier as lt

    options = {"length": LENGTH, "control_length": LENGTH, "labels": LABELS, **options}
    return lt.methods.ControlPrefixes(targets="attention | cross_attention", **options)


@CHECK.measures("empty", "mixed", "folded", "order", cheap=True)
def what_it_is(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.methods.prefixes.control_prefixes import ControlPrefixes
    from luthier.sources.settle import settled

    model = run.model("t5")
    batch = inputs(model, 4)
    told = {**batch, "attributes": torch.tensor([[0], [1], [1], [0]])}
    adapted: Any = Adapted(model.base)

    def logits(made: Any, given: Any) -> Any:
        with torch.no_grad(), adapted.attached(made):
            return adapted(given).logits

    plain = lt.methods.PTuningV2(length=LENGTH, targets="attention | cross_attention")
    none = Adaptation.new(method(control_length=0), model.base)
    run.record("empty", (logits(none, batch) - logits(Adaptation.new(plain, model.base), batch)).abs().max())

    made = Adaptation.new(method(reparameterise=True), model.base)
    with torch.no_grad():
        for p in made.trainable().values():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    want = logits(made, told)
    run.record("folded", (logits(settled(made, model.base), told) - want).abs().max())

    model = run.model("t5", dtype="float64")
    adapted = Adapted(model.base)
    made = Adaptation.new(method(), model.base).to(torch.float64)
    want = logits(made, told)
    rows = [logits(made, {k: v[i : i + 1] for k, v in told.items()}) for i in range(4)]
    run.record("mixed", (torch.cat(rows) - want).abs().max())
    if torch.allclose(logits(made, {**told, "attributes": 1 - told["attributes"]}), want, atol=1e-3):
        raise RuntimeError("the labels change nothing, so that equality would show nothing")
    usual = ControlPrefixes.keys_values
    try:
        rolled: Any = lambda self, t, ctx: [x.roll(LENGTH, -2) for x in usual(self, t, ctx)]
        ControlPrefixes.keys_values = rolled  # type: ignore[method-assign]
        run.record("order", (logits(made, told) - want).abs().max())
    finally:
        ControlPrefixes.keys_values = usual  # type: ignore[method-assign]


@CHECK.measures("switch", "loss")
def what_a_label_decides(run: Any) -> None:
    from dataclasses import replace
    from functools import partial

    import luthier as lt

    model, data = run.model("t5"), styled(run.data("departments"))
    arms = {
        "control": method(),
        "plain": lt.methods.PTuningV2(length=2 * LENGTH, targets="attention | cross_attention"),
    }
    for name, arm in arms.items():
        rate = run.best_rate("loss", name, model, data, arm, steps=STEPS, **SETTINGS)
        for seed in range(3):
            curve = run.curve(
                "loss", name, model, data, arm, every=STEPS, seed=seed, rate=rate, steps=STEPS, **SETTINGS
            )
            run.record("loss", curve[-1][1]["loss"], arm=name, seed=seed, rate=rate)
            if name == "plain":
                continue

            def share(seed: int = seed, rate: float = rate) -> float:
                fitted = run.fit(model, data, arms["control"], seed=seed, rate=rate, steps=STEPS, **SETTINGS)
                test = data.test
                said = [
                    fitted.predict(replace(test, targets=None, attributes=a))
                    for a in (test.attributes, 1 - test.attributes)
                ]
                right = [
                    one.split()[-1:] == [ENDINGS[i]] and other.split()[-1:] == [ENDINGS[1 - i]]
                    for one, other, i in zip(*said, test.attributes.tolist(), strict=True)
                ]
                return sum(right) / len(right)

            run.record("switch", run.once(["switch", seed], partial(share)), seed=seed)


def styled(data: Any) -> Any:
    """Text to text: the name of the class, and an ending that only the row's attribute says."""
    from dataclasses import replace

    import numpy as np

    from luthier.data.split import Split
    from luthier.models.testbeds.tasks import as_text2text

    made = as_text2text(data)
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {}
    for name, part in made.parts.items():
        answers: Any = part.targets
        labels = rng.integers(0, 2, len(part))
        targets = [f"{t} {ENDINGS[i]}" for t, i in zip(answers, labels, strict=True)]
        parts[name] = Split(part.inputs, targets, labels)
    return replace(made, **parts)

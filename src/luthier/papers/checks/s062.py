"""S062, when prefixes work (Petrov et al. 2024): what a prefix can do to attention, and what it cannot make a sorter do."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Equals

DIGITS, SYMBOLS, WIDTH, RANK = 6, 8, 64, 4
PRETRAIN: dict[str, Any] = {"steps": 4000, "batch": 128, "rate": 3e-3}
SETTINGS: dict[str, Any] = {"steps": 2000, "batch_size": 64, "max_new_tokens": DIGITS + 1}
ROWS = {"train": 8000, "validation": 300, "test": 600}
RATES = (1 / 3, 1.0, 3.0, 10.0)
SEEDS = range(3)

CHECK = Check(
    "S062",
    "A prefix adds a bias along its values and keeps the ratios of attention, so it selects what a sorter can do and cannot turn it "
    "round, which LoRA with as many numbers does.",
    claims=(
        AtMost(
            "prefix_turns",
            "exact match of a prefix on descending order, over an ascending sorter (largest of 3 seeds)",
            0.3,
        ),
        AtLeast(
            "lora_turns",
            "exact match of LoRA on descending order, over the same sorter (smallest of 3 seeds)",
            0.9,
        ),
        AtLeast(
            "selects",
            "exact match of a prefix on either order, over a sorter of both without a mark (smallest of 2 orders x 3 seeds)",
            0.8,
        ),
        Equals("equal", "numbers that the prefix and LoRA train, each less 2,048", 0),
        AtMost("competent", "share of ascending lists that the ascending sorter gets wrong", 0.1),
        AtMost(
            "parallel",
            "one prefix position: what of t' - (1 - alpha) t is not parallel to its value (largest difference)",
            1e-5,
        ),
        AtMost(
            "span",
            "three prefix positions: what of t' - (1 - alpha) t is outside the span of their values (largest difference)",
            1e-5,
        ),
        AtMost(
            "ratios",
            "the content's weights against (1 - alpha) times those without (largest difference)",
            1e-5,
        ),
    ),
    covers=(
        "luthier.instruments.prefix",
        "luthier.methods.prefixes.p_tuning_v2",
        "luthier.methods.low_rank.lora",
        "luthier.methods.low_rank.pair",
        "luthier.host.bridge",
        "luthier.models.testbeds.small",
        "testbed:llama",
        "testbed:gpt2",
        "testbed:t5",
    ),
    data="the first attention of the testbeds; one-layer decoders of width 64 that are pretrained here to sort 6 digits of 8 symbols",
    against="LoRA of rank 4 on query, key, value and output, each arm at its own best of four learning rates",
    minutes=25,
    notes="The identity of weights is measured as A' - (1 - alpha) A, which does not divide by a small number.",
)


@CHECK.measures("parallel", "span", "ratios", cheap=True)
def attention_of_a_prefix(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation
    from luthier.instruments.prefix import prefix_bias

    for name in ("llama", "gpt2", "t5"):
        base = run.model(name).base
        rng = torch.Generator().manual_seed(0)
        ids = torch.randint(20, base.config.vocab_size, (3, 12), generator=rng)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if name == "t5":
            batch["decoder_input_ids"] = ids[:, :4]
        for length, claim in ((1, "parallel"), (3, "span")):
            for reparameterise in (False, True):
                method = lt.methods.PTuningV2(length=length, reparameterise=reparameterise)
                made = Adaptation.new(method, base)
                for p in made.trainable().values():
                    p.data.add_(torch.randn(p.shape, generator=rng) * 0.3)
                found = prefix_bias(base, made, batch)
                if found.alpha.mean() < 1e-3:
                    raise RuntimeError(
                        "the prefix gets no attention, so that the identity would show nothing"
                    )
                arm = f"{name}, {'reparameterised' if reparameterise else 'free'}"
                run.record(claim, found.outside, arm=arm)
                run.record("ratios", found.ratios, arm=f"{arm}, {length}")


def task(order: str) -> Any:
    """Lists of digits and the same sorted; no list is in two parts."""
    import random

    from luthier.data.split import Data, Split
    from luthier.data.task import Task

    rng = random.Random(0)
    rows: dict[str, str] = {}
    while len(rows) < sum(ROWS.values()):
        digits = rng.choices(range(SYMBOLS), k=DIGITS)
        rows[" ".join(map(str, digits))] = " ".join(map(str, sorted(digits, reverse=order == "descending")))
    inputs, targets, parts, begin = list(rows), list(rows.values()), {}, 0
    for part, n in ROWS.items():
        parts[part] = Split(inputs[begin : begin + n], targets[begin : begin + n])
        begin += n
    kind = Task(kind="text2text", modality="text", input="list", label="sorted", metric="exact_match")
    return Data(parts["train"], parts["validation"], parts["test"], kind, f"sorted, {order}")


def pretrained(orders: tuple[str, ...], seed: int) -> Any:
    """A sorter: each list is asked for in one of the orders, without a mark of which."""
    import random
    from collections.abc import Iterator

    from luthier.models.testbeds.small import collated, decoder, train

    model = decoder([str(i) for i in range(SYMBOLS)], seed, width=WIDTH, layers=1, positions=64)
    held_out = {x for split in (task(orders[0]).validation, task(orders[0]).test) for x in split.inputs}
    rng = random.Random(seed)

    def batches() -> Iterator[dict[str, Any]]:
        while True:
            inputs: list[str] = []
            targets: list[str] = []
            while len(inputs) < PRETRAIN["batch"]:
                digits = rng.choices(range(SYMBOLS), k=DIGITS)
                text = " ".join(map(str, digits))
                if text not in held_out:
                    inputs.append(text)
                    ordered = sorted(digits, reverse=rng.choice(orders) == "descending")
                    targets.append(" ".join(map(str, ordered)))
            yield collated(model.preprocess, inputs, targets)

    return train(model, batches(), steps=PRETRAIN["steps"], rate=PRETRAIN["rate"])


def exact(model: Any, split: Any) -> float:
    """Share of a split's lists that the base itself sorts as asked."""
    import torch

    pre, right = model.preprocess, 0
    for i in range(0, len(split), 100):
        encoded = pre.encode_text2text(list(split.inputs[i : i + 100]))
        batch = pre.collate(encoded, side="left")
        batch.pop("instruction", None)
        width = batch["input_ids"].shape[1]
        with torch.no_grad():
            written = model.base.generate(**batch, max_new_tokens=DIGITS + 1, do_sample=False)[:, width:]
        texts = pre.tokenizer.batch_decode(written, skip_special_tokens=True)
        right += sum(a.split() == b.split() for a, b in zip(texts, split.targets[i : i + 100], strict=True))
    return right / len(split)


@CHECK.measures("prefix_turns", "lora_turns", "selects", "equal", "competent")
def sorters(run: Any) -> None:
    from luthier.host import Adaptation
    from luthier.instruments.prefix import equal_methods

    model = pretrained(("ascending",), 0)
    run.record("competent", 1 - exact(model, task("ascending").test))
    methods = equal_methods(model.base, RANK)
    for name, method in methods.items():
        run.record("equal", Adaptation.new(method, model.base).counts()["method"] - 2048, arm=name)
        claim = f"{name}_turns"
        run.compare(claim, model, task("descending"), {name: method}, seeds=SEEDS, rates=RATES, **SETTINGS)
    both = pretrained(("ascending", "descending"), 1)
    for order in ("ascending", "descending"):
        arm = {order: methods["prefix"]}
        run.compare("selects", both, task(order), arm, seeds=SEEDS, rates=RATES, **SETTINGS)

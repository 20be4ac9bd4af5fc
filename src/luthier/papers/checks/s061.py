"""S061, LoFiT (Yin et al. 2024): what an offset of a head is, and whether it matters which heads get one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Beats, Equals

DIGITS, SYMBOLS, KEEP = 4, 8, 0.25
PRETRAIN: dict[str, Any] = {"steps": 3000, "batch": 128, "rate": 3e-3}
SETTINGS: dict[str, Any] = {"batch_size": 32, "max_new_tokens": DIGITS + 1}
STEPS, DRAWS, SEEDS, RATES = 120, 5, range(3), (1.0, 3.0, 9.0)
ROWS = {"train": 2000, "validation": 150, "test": 400}
WAYS: dict[str, Callable[[list[str]], list[str]]] = {
    "copied": lambda x: x,
    "reversed": lambda x: x[::-1],
    "sorted": sorted,
    "rotated": lambda x: [*x[1:], x[0]],
}
TASKS = ("reversed", "sorted")

CHECK = Check(
    "S061",
    "Offsets of a few attention heads, found by an L1 penalty on scales of all of them, fold into a bias; on a model that can do "
    "several things they choose one, at the heads that were found better than at others.",
    claims=(
        Beats(
            "random",
            "exact match, mean of two tasks: the heads that were found above the mean of five draws of as many, 3 seeds",
            arm="found",
            over="random",
        ),
        Beats(
            "other",
            "exact match, mean of two tasks: the heads that were found above those found for the other task, 3 seeds",
            arm="found",
            over="other",
        ),
        AtLeast(
            "gain",
            "gain over the frozen model as a share of LoRA's, mean of two tasks (smallest of 3 seeds)",
            0.5,
        ),
        AtLeast("fewer", "LoRA's numbers over LoFiT's", 20),
        Equals("zero", "values of the logits that differ from the base at A = 0 and at v = 0", 0),
        AtMost("folded", "folded into weight and bias against attached, of the largest logit", 1e-5),
        Equals("count", "numbers that train in the second phase, less heads that stay times their width", 0),
    ),
    covers=(
        "luthier.methods.representation.lofit",
        "luthier.methods.low_rank.lora",
        "luthier.models.testbeds.small",
        "testbed:llama",
        "testbed:gpt2",
        "testbed:t5",
    ),
    data="the testbeds; a decoder of 4 layers of 4 heads, pretrained here to copy, reverse, sort or rotate 4 digits without a mark of which",
    against="random heads and another task's heads, tuned as long; LoRA of rank 4 on query and value; each at its own best of three learning rates",
    minutes=10,
    notes="A quarter of 16 heads stays, where 3 % would be less than one.",
)


def offsets(base: Any, heads: int) -> Any:
    """LoFiT in its second phase, at the first heads of the first and last layer, offsets still zero."""
    from types import SimpleNamespace

    import luthier as lt
    from luthier.host import Adaptation

    method = lt.methods.LoFiT()
    made = Adaptation.new(method, base)
    ends = [made.at()[0].site.name, made.at()[-1].site.name]
    kept = {a.site.name: list(range(heads)) if a.site.name in ends else [] for a in made.at()}
    method.offsets_at(SimpleNamespace(main=made), kept)
    return made


@CHECK.measures("zero", "folded", "count", cheap=True)
def what_an_offset_is(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.papers.checks.s282 import inputs

    for name in ("llama", "gpt2", "t5"):
        model = run.model(name)
        adapted: Any = Adapted(model.base)
        batch, rng = inputs(model, 3, 9), torch.Generator().manual_seed(0)
        with torch.no_grad():
            alone = adapted(batch).logits
            for phase, made in (
                ("localise", Adaptation.new(lt.methods.LoFiT(), model.base)),
                ("tune", offsets(model.base, 2)),
            ):
                with adapted.attached(made):
                    run.record("zero", (adapted(batch).logits != alone).sum(), arm=f"{name}, {phase}")
                for p in made.trainable().values():
                    p.add_(0.3 * torch.randn(p.shape, generator=rng))
                with adapted.attached(made):
                    got = adapted(batch).logits
                    adapted.merge("attached")
                    gap = (adapted(batch).logits - got).abs().max() / got.abs().max()
                if torch.allclose(got, alone, atol=1e-2):
                    raise RuntimeError("the edit changes nothing, so that equality would show nothing")
                run.record("folded", gap, arm=f"{name}, {phase}")
        run.record("count", made.counts()["method"] - 4 * made.at()[0].site.head_dim, arm=name)


def task(way: str) -> Any:
    """Lists of digits and what one of the ways makes of them; no list is in two parts."""
    from luthier.data.split import Data, Split
    from luthier.data.task import Task

    rng = random.Random(0)
    lists = list(
        dict.fromkeys(" ".join(map(str, rng.choices(range(SYMBOLS), k=DIGITS))) for _ in range(20_000))
    )
    parts, begin = {}, 0
    for part, n in ROWS.items():
        own = lists[begin : begin + n]
        parts[part] = Split(own, [" ".join(WAYS[way](x.split())) for x in own])
        begin += n
    kind = Task(kind="text2text", modality="text", input="list", label=way, metric="exact_match")
    return Data(parts["train"], parts["validation"], parts["test"], kind, f"digits, {way}")


def pretrained() -> Any:
    """A decoder that answers a list in one of the four ways, as it likes."""
    from luthier.models.testbeds.small import collated, decoder, train

    model = decoder([str(i) for i in range(SYMBOLS)], 0, width=64, layers=4, positions=32)
    rng, ways = random.Random(1), list(WAYS.values())

    def batches() -> Iterator[dict[str, Any]]:
        while True:
            lists = [list(map(str, rng.choices(range(SYMBOLS), k=DIGITS))) for _ in range(PRETRAIN["batch"])]
            answers = [" ".join(rng.choice(ways)(x)) for x in lists]
            yield collated(model.preprocess, [" ".join(x) for x in lists], answers)

    return train(model, batches(), steps=PRETRAIN["steps"], rate=PRETRAIN["rate"])


def at_heads(kept: dict[str, list[int]]) -> Any:
    """LoFiT's second phase alone, at heads that are given."""
    import luthier as lt
    from luthier.host.part import Phase

    class Given(lt.methods.LoFiT):  # type: ignore[misc,name-defined]
        def phases(self) -> Any:
            return (Phase("tune", enter=lambda run: self.offsets_at(run, kept)),)

    return Given(keep=KEEP)


def drawn(kept: dict[str, list[int]], seed: int) -> dict[str, list[int]]:
    """As many heads of the same layers' projections, at random."""
    heads = [(name, i) for name in kept for i in range(4)]
    own = random.Random(seed).sample(heads, sum(map(len, kept.values())))
    return {name: sorted(i for n, i in own if n == name) for name in kept}


def frozen(run: Any, model: Any, data: Any) -> float:
    """Exact match of the model as it is: with an adaptation that has not begun."""
    import luthier as lt
    from luthier.host import Adaptation

    made = run.fit(model, data, lt.methods.LoFiT(), steps=2, **SETTINGS)
    unbegun = replace(made, adaptation=Adaptation.new(lt.methods.LoFiT(), model.base))
    return float(unbegun.score(data.test)["exact_match"])


@CHECK.measures("random", "other", "gain", "fewer")
def which_heads(run: Any) -> None:
    import luthier as lt
    from luthier.host import Adaptation

    model = pretrained()
    data = {way: task(way) for way in TASKS}
    lofit, lora = lt.methods.LoFiT(keep=KEEP), lt.methods.LoRA(rank=4)
    found: dict[tuple[str, str, int], float] = {}
    kept: dict[tuple[str, int], dict[str, list[int]]] = {}

    def fitted(way: str, arm: str, method: Any, rate: float, seed: int, steps: int, *more: Any) -> Any:
        def go() -> Any:
            made = run.fit(model, data[way], method, seed=seed, steps=steps, rate=rate, **SETTINGS)
            layouts = {a.site.name: a.layout.get("kept", []) for a in made.adaptation.at()}
            return {"score": float(made.score(data[way].test)["exact_match"]), "kept": layouts}

        got = run.once([way, arm, "test", seed, *more], go)
        run.say(f"S061: {way}, {arm}, seed {seed}: {got['score']:.3f}")
        return got

    def rate_of(way: str, arm: str, method: Any, steps: int) -> float:
        return float(
            run.best_rate(
                "random", f"{way}, {arm}", model, data[way], method, rates=RATES, steps=steps, **SETTINGS
            )
        )

    for way in TASKS:
        found[way, "frozen", 0] = run.once([way, "frozen"], partial(frozen, run, model, data[way]))
        for arm, method in (("found", lofit), ("lora", lora)):
            rate = rate_of(way, arm, method, STEPS)
            for seed in SEEDS:
                got = fitted(way, arm, method, rate, seed, STEPS)
                found[way, arm, seed] = got["score"]
                if arm == "found":
                    kept[way, seed] = got["kept"]
    for way, another in zip(TASKS, reversed(TASKS), strict=True):
        half = STEPS // 2  # as long as the second phase
        rates = {
            arm: rate_of(way, arm, at_heads(heads), half)
            for arm, heads in (("random", drawn(kept[way, 0], 0)), ("other", kept[another, 0]))
        }
        for seed in SEEDS:
            draws = [
                fitted(way, "random", at_heads(drawn(kept[way, 0], d)), rates["random"], seed, half, d)[
                    "score"
                ]
                for d in range(DRAWS)
            ]
            found[way, "random", seed] = fmean(draws)
            heads = kept[another, seed]
            found[way, "other", seed] = fitted(way, "other", at_heads(heads), rates["other"], seed, half)[
                "score"
            ]
    frozen_score = fmean(found[way, "frozen", 0] for way in TASKS)
    for seed in SEEDS:
        mean = {
            arm: fmean(found[way, arm, seed] for way in TASKS) for arm in ("found", "random", "other", "lora")
        }
        for claim in ("random", "other"):
            for arm in ("found", claim):
                run.record(claim, mean[arm], arm=arm, seed=seed)
        if mean["lora"] - frozen_score < 0.1:
            raise RuntimeError("LoRA gains next to nothing, so that a share of it would show nothing")
        run.record(
            "gain",
            (mean["found"] - frozen_score) / (mean["lora"] - frozen_score),
            seed=seed,
            frozen=frozen_score,
        )
    numbers = sum(map(len, kept[TASKS[0], 0].values())) * 16
    run.record("fewer", Adaptation.new(lora, model.base).counts()["method"] / numbers)

"""S009, knowledge adapters and KPRS (Emelin et al. 2022): what a side stack memorises, and what it is worth in a new wording."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, Beats, Equals

PRETRAIN: dict[str, Any] = {"steps": 400, "batch": 48, "rate": 5e-3, "width": 64}
ENTITIES, SLOTS = 40, 5
FACTS: dict[str, Any] = {"steps": 500, "batch_size": 32, "rate": 3e-3, "max_new_tokens": 5}
DIALOGUE: dict[str, Any] = {"steps": 200, "batch_size": 32, "max_new_tokens": 5}
FUSED_RATE, ALONE_RATE = 1e-2, 5e-4
"""The model is tuned at the same rate in every arm: the first stands for the gate's, beside which it is a twentieth."""
SEEDS, DRAWINGS = range(3), 5
"""Knowledge bases, each of its own values; drawings of false values, of which each tells other values apart."""
SENTENCE = "{entity} {slot} {value}"
QUESTION, ANSWER = "saturday {entity} {slot}", "sunday {entity} {value}"


def near(arm: str, what: str) -> tuple[Beats, Beats]:
    """An arm's mean is within 5 points of 1/2."""
    said = f"KPRS accuracy on the other half of the entities, {what}, mean of 3 seeds"
    return (
        Beats(f"{arm}_above", f"{said}: at least 0.45", arm=arm, over="half", by=-0.05, ties=True),
        Beats(f"{arm}_below", f"{said}: at most 0.55", arm="half", over=arm, by=-0.05, ties=True),
    )


CHECK = Check(
    "S009",
    "An adapter alone memorises a knowledge base of 200 facts in a model that keeps its bits; kept while the model is tuned on "
    "questions about half of the entities, it makes the model prefer true answers about the other half in a wording of their own, "
    "which another base's adapter does not.",
    claims=(
        Beats(
            "injected",
            "KPRS accuracy on the other half of the entities, new wording, with the base's own adapter, mean of 3 seeds: at least 0.8",
            arm="own",
            over="half",
            by=0.3,
            ties=True,
        ),
        *near("before", "the model alone before"),
        *near("other", "with another base's adapter"),
        AtLeast(
            "recall",
            "share of facts with the value masked that the adapter writes whole (smallest of 2 bases x 3 seeds)",
            0.9,
        ),
        Equals("identical", "numbers of the model that differ after stage 1", 0),
        Equals("off", "logits with the adapter off against the model's (largest difference)", 0),
        Equals("start", "logits at step 0 against the model's (largest difference)", 0),
    ),
    covers=(
        "luthier.methods.side.knowledge_adapter",
        "luthier.methods.side.knowledge_fusion",
        "luthier.data.facts",
        "luthier.instruments.knowledge",
        "luthier.starts.narrow",
        "luthier.host.places.stack",
        "luthier.models.testbeds.ciphers",
        "luthier.models.testbeds.small",
        "testbed:t5",
    ),
    data="bases of 40 entities and 5 slots with drawn values; a T5 that is pretrained here to read and write both wordings about facts "
    "that change with every row, so that it knows none",
    against="the model before; an adapter of another base over the same entities, slots and values; the model tuned alone on the same "
    "rows (shown, not judged). One learning rate for all arms of a stage",
    minutes=8,
    notes="False values are drawn in couples, so that knowing which values are frequent is worth nothing. The data set of the paper "
    "(dialogues of MultiWOZ) is not at hand.",
)


@CHECK.measures("identical", "off", "start", cheap=True)
def the_model_is_left_alone(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted

    model = run.model("t5")
    before = {k: v.clone() for k, v in model.base.state_dict().items()}
    batch = model.preprocess.collate(
        model.preprocess.encode_text2text(["the tiger is", "a red"], ["in oslo", "hat"])
    )
    adapted: Any = Adapted(model.base)
    with torch.no_grad():
        alone = adapted(batch).logits
    for reads in ("-1", "0, -1"):
        method = lt.methods.KnowledgeAdapter(reads=reads)
        with torch.no_grad(), adapted.attached(Adaptation.new(method, model.base)):
            run.record("start", (adapted(batch).logits - alone).abs().max(), arm=reads)
        told = as_data(to_memorise(base(0)[:SLOTS]))
        fitted = run.fit(model, told, method, steps=3, batch_size=4, rate=3e-3)
        changed = sum(int((v != before[k]).sum()) for k, v in model.base.state_dict().items())
        run.record("identical", changed, arm=reads)
        with torch.no_grad(), adapted.attached(fitted.adaptation):
            if torch.equal(adapted(batch).logits, alone):
                raise RuntimeError("the adapter changes nothing, so that equality would show nothing")
            with adapted.using():
                run.record("off", (adapted(batch).logits - alone).abs().max(), arm=reads)


def base(seed: int) -> list[Any]:
    """A knowledge base: every entity has a value of every slot, drawn from the slot's."""
    from luthier.data.facts import Fact

    rng, (entities, kinds) = random.Random(seed), world()
    return [Fact(entity, slot, rng.choice(kinds[slot])) for entity in entities for slot in kinds]


def world() -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The entities, and the slots with their values."""
    from luthier.models.testbeds.ciphers import OTHERS
    from luthier.models.testbeds.words import KINDS

    return OTHERS[:ENTITIES], dict(list(KINDS.items())[:SLOTS])


def to_memorise(
    facts: Sequence[Any], forms: Sequence[str] = ("atomic", "composite")
) -> list[tuple[str, str]]:
    from luthier.data.facts import Wording, masked_facts

    return [(m.input, m.target) for m in masked_facts(facts, Wording(SENTENCE), forms=forms)]


def asked(facts: Sequence[Any]) -> list[tuple[str, str]]:
    """Questions and answers, in the other wording."""
    from luthier.data.facts import filled

    return [(filled(QUESTION, f), filled(ANSWER, f)) for f in facts]


def as_data(rows: Sequence[tuple[str, str]]) -> Any:
    """Rows to train on; there is nothing to choose on others."""
    from luthier.data.split import Data, Split
    from luthier.data.task import Task

    kind = Task(kind="text2text", modality="text", input="input", label="target", metric="exact_match")
    return Data(Split([x for x, _ in rows], [y for _, y in rows]), None, None, kind, "facts")


def pair(rng: random.Random) -> tuple[str, str]:
    """A row to pretrain on: facts drawn anew each time, told with one value masked or asked for."""
    from luthier.data.facts import Fact

    entities, kinds = world()
    entity = rng.choice(entities)
    facts = [
        Fact(entity, slot, rng.choice(kinds[slot])) for slot in rng.sample(list(kinds), rng.choice((1, 2)))
    ]
    if rng.random() < 0.5:
        return asked(facts)[0]
    return rng.choice(to_memorise(facts, ("composite" if len(facts) > 1 else "atomic",)))


@cache
def pretrained_model() -> Any:
    from luthier.models.testbeds.ciphers import ENGLISH, pretrained

    return pretrained((ENGLISH,), "encoder-decoder", pair, **PRETRAIN)


def figures(run: Any, seed: int) -> dict[str, Any]:
    """What is measured with one knowledge base and another over the same entities."""
    import luthier as lt
    from luthier.data.facts import contrasted
    from luthier.instruments.knowledge import knowledge

    model, facts = pretrained_model(), base(seed)
    held = {k: v.clone() for k, v in model.base.state_dict().items()}
    half = set(world()[0][::2])
    told = as_data(asked([f for f in facts if f.entity in half]))
    left = [f for f in facts if f.entity not in half]
    pairs = [p for i in range(DRAWINGS) for p in contrasted(left, QUESTION, ANSWER, seed=i)]
    found: dict[str, Any] = {"before": knowledge(model, pairs).accuracy}
    for arm, mine in (("own", facts), ("other", base(seed + len(SEEDS)))):
        adapter = run.fit(
            model, as_data(to_memorise(mine)), lt.methods.KnowledgeAdapter(), seed=seed, **FACTS
        )
        masked = as_data(to_memorise(mine, ("atomic",))).train
        found[f"recall {arm}"] = adapter.score(masked)["exact_match"]
        fused = run.fit(
            model, told, lt.methods.KnowledgeFusion(), members={"base": adapter}, seed=seed, rate=FUSED_RATE, **DIALOGUE
        )  # fmt: skip
        found[arm] = knowledge(fused, pairs).accuracy
    tuned = run.fit(model, told, lt.methods.Full(), seed=seed, rate=ALONE_RATE, **DIALOGUE)
    found["alone"] = knowledge(tuned, pairs).accuracy
    if changed := sum(int((v != held[k]).sum()) for k, v in model.base.state_dict().items()):
        raise RuntimeError(f"{changed} numbers of the model changed")
    return found


@CHECK.measures("injected", "before_above", "before_below", "other_above", "other_below", "recall")
def what_an_adapter_knows(run: Any) -> None:
    for seed in SEEDS:
        found = run.once(["figures", seed], lambda seed=seed: figures(run, seed))
        run.say(f"S009: base {seed}: {', '.join(f'{k} {v:.3f}' for k, v in found.items())}")
        for arm in ("own", "other"):
            run.record("recall", found[f"recall {arm}"], arm=arm, seed=seed)
        for claim, arms in (
            ("injected", ("own", "alone")),
            *((f"{arm}_{side}", (arm,)) for arm in ("before", "other") for side in ("above", "below")),
        ):
            run.record(claim, 0.5, arm="half", seed=seed)
            for arm in arms:
                run.record(claim, found[arm], arm=arm, seed=seed)

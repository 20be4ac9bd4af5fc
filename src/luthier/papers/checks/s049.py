"""S049, one adapter for all programming languages (Wang et al. 2023): code search in three dialects, and what tuning forgets."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals, Reported

PAIRS = (200, 60, 200)
"""Of each dialect: to train on, to choose rates by, to test on."""
FEW, FILES = (16, 8, 12), ("argparse.py", "shutil.py", "tarfile.py", "textwrap.py", "zipfile.py")
"""Pairs of each dialect, and the files that they are from, where only identities are measured."""
RAREST, SHARES = "ends", {"python": 0.7, "braces": 0.25, "ends": 0.05}
"""Shares of the dialects among what the encoder is pretrained on."""
PRETRAIN: dict[str, Any] = {"steps": 220, "batch": 20, "rate": 5e-4, "masked": 0.15, "temperature": 0.1}
LENGTH, WIDTH = 48, 27
"""Tokens that are read of a text; the adapter's width, S049's 128 / 768 of the encoder's."""
SETTINGS: dict[str, Any] = {"steps": 57, "batch_size": 32}
RATES, SEEDS = (1.0, 3.0, 10.0), range(3)

CHECK = Check(
    "S049",
    "One adapter for three dialects finds code of the rarest at least as well as full tuning on all of them, trains below 5 % of the model "
    "and leaves it as it was, and linear probes of its features lose less.",
    claims=(
        Beats(
            "rarest",
            "MRR on the rarest dialect: one shared adapter at least as good as full multilingual tuning, 3 seeds",
            arm="adapter",
            over="full",
            ties=True,
        ),
        Beats(
            "keeps",
            "accuracy of linear probes on the tuned features, the mean of token type and language: above full tuning's, 3 seeds",
            arm="adapter",
            over="full",
        ),
        AtMost("share", "trained numbers of the adapter, per cent of the model's", 5.0),
        Equals("unchanged", "the backbone's hash after an adapter's training is the one before (1: yes)"),
        AtMost("mrr", "MRR against ranks counted pair by pair from single texts (largest difference)", 1e-6),
        AtMost(
            "loss",
            "contrastive loss against its formula, pair by pair in double precision (largest difference)",
            1e-5,
        ),
        Reported("all", "MRR over all three dialects, the mean of theirs"),
        Reported("token", "accuracy of the probe of token types"),
        Reported("language", "accuracy of the probe of the dialect"),
    ),
    covers=(
        "luthier.recipes.multilingual_adapter",
        "luthier.methods.adapters.bottleneck",
        "luthier.methods.embedding",
        "luthier.signals.contrastive",
        "luthier.data.ranks",
        "luthier.train.pairs",
        "luthier.instruments.probing",
        "luthier.data.lexemes",
        "luthier.models.testbeds.dialects",
        "testbed:bert",
    ),
    data="comments of the standard library's functions with their code, 200 training pairs of each of three dialects; the BERT testbed "
    "after further pretraining on other pairs, of which the rarest dialect is a twentieth",
    against="full tuning on the same pooled pairs, each arm at its own best of three learning rates; the frozen encoder is shown",
    minutes=10,
    notes="Two of the dialects are Python rewritten by rules (luthier.models.testbeds.dialects), not languages in use: no corpus of several "
    "programming languages is at hand. Functions are those of the Python that runs; the testbed has read "
    "their comments, in no pair. The adapter is 27 wide for a width of 160, as 128 "
    "for 768. Token types are kinds of lexemes that a scan finds.",
)


@lru_cache(maxsize=1)
def divided(
    pairs: tuple[int, int, int] = PAIRS, only: tuple[str, ...] = ()
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """({dialect: its pairs as data}, (comment, function) of all that is left to pretrain on)."""
    from luthier.data.split import Data, Split
    from luthier.data.task import Task
    from luthier.models.testbeds.dialects import DIALECTS, functions

    task = Task(kind="retrieval", modality="text", input="comment", label="code")
    known, begin, found = functions(only), 0, {}
    for dialect in DIALECTS:
        parts = {}
        for part, number in zip(("train", "validation", "test"), pairs, strict=True):
            chosen = known[begin : begin + number]
            parts[part] = Split([c for c, _ in chosen], [dialect.says(body) for _, body in chosen])
            begin += number
        found[dialect.name] = Data(parts["train"], parts["validation"], parts["test"], task, dialect.name)
    return found, list(known[begin:])


def pretrained(run: Any) -> Any:
    """The BERT testbed, taught code of the dialects at their shares: masked tokens, and comments beside their functions. Kept in
    the check's work folder."""
    import random

    import torch
    from safetensors.torch import load_model, save_model
    from torch.nn import functional as F

    from luthier.methods.heads import pool
    from luthier.models.testbeds.dialects import DIALECTS
    from luthier.models.testbeds.masked import masked
    from luthier.papers.results import fingerprint
    from luthier.signals.contrastive import Contrastive

    model = run.model("bert")
    model.preprocess = model.preprocess.with_settings(max_length=LENGTH)
    base, pre, rng = model.base, model.preprocess, random.Random(49)
    place = run.work / f"S049-{fingerprint(run.check)[:12]}.safetensors" if run.work is not None else None
    if place is not None and place.is_file():
        load_model(base, str(place))
        return replace(model, name="bert, taught code", _fingerprint=None)
    own = {dialect.name: dialect for dialect in DIALECTS}
    rows = [
        (comment, own[rng.choices(list(SHARES), list(SHARES.values()))[0]].says(body))
        for comment, body in divided()[1]
    ]
    contrast = Contrastive(temperature=PRETRAIN["temperature"])
    base.requires_grad_(True).train()
    optimiser = torch.optim.AdamW(base.parameters(), lr=PRETRAIN["rate"], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PRETRAIN["rate"], total_steps=PRETRAIN["steps"], pct_start=0.1
    )
    for step in range(PRETRAIN["steps"]):
        encoded = pre.encode([text for pair in rng.sample(rows, PRETRAIN["batch"]) for text in pair])
        for row in encoded:
            row["input_ids"], row["labels"] = masked(row["input_ids"], PRETRAIN["masked"], rng)
        batch = pre.collate(encoded)
        out = base(**batch, output_hidden_states=True)
        vectors = F.normalize(pool(out.hidden_states[-1], batch["attention_mask"], "mean"), dim=-1)
        loss = out.loss + contrast.row_losses(vectors, torch.arange(PRETRAIN["batch"])).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 20 == 0:
            run.say(f"S049: pretraining, step {step} of {PRETRAIN['steps']}: loss {loss.item():.3f}")
    base.requires_grad_(False).eval()
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        save_model(base, str(place))
    return replace(model, name="bert, taught code", _fingerprint=None)


@CHECK.measures("share", "unchanged", "mrr", "loss", cheap=True)
def identities(run: Any) -> None:
    import math

    import torch

    from luthier.models.model import fingerprint
    from luthier.recipes.multilingual_adapter import adapter, one_adapter
    from luthier.signals.contrastive import Contrastive

    rng = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(12, 2, 16, generator=rng), dim=-1)
    labels = torch.tensor([0, 1, 2, 3, 1, 5, 6, 0, 8, 9, 10, 11])
    for reverse in (0.0, 0.5):
        made = Contrastive(0.05, reverse).row_losses(vectors.flatten(0, 1), labels)
        similar = (vectors[:, 0].double() @ vectors[:, 1].double().T / 0.05).tolist()
        for i in range(12):
            there = [j for j in range(12) if j == i or labels[j] != labels[i]]
            ways = [
                math.log(sum(math.exp(x - similar[i][i]) for x in of))
                for of in ([similar[i][j] for j in there], [similar[j][i] for j in there])
            ]
            run.record(
                "loss",
                abs(float(made[i]) - (1 - reverse) * ways[0] - reverse * ways[1]),
                arm=f"{reverse:g}, row {i}",
            )
    model = run.model("bert")
    model.preprocess = model.preprocess.with_settings(max_length=LENGTH)
    languages, _ = divided(FEW, FILES)
    before = fingerprint(model.base)
    found = one_adapter(
        model, languages, method=adapter(model, "retrieval", WIDTH), steps=4, batch_size=16, progress=False
    )
    run.record("unchanged", fingerprint(model.base) == before)
    run.record("share", 100 * found.share)
    for name, data in languages.items():
        documents = list(dict.fromkeys(data.test.targets))
        known = [found.fitted.embed([text])[0].astype("float64") for text in documents]
        total = 0.0
        for query, target in zip(data.test.inputs, data.test.targets, strict=True):
            asked = found.fitted.embed([query])[0].astype("float64")
            own = float(asked @ known[documents.index(target)])
            total += 1 / (1 + sum(float(asked @ v) >= own for v, d in zip(known, documents) if d != target))
        run.record("mrr", abs(found.scores[name]["mrr"] - total / len(data.test)), arm=name)


@CHECK.measures("rarest", "keeps", "all", "token", "language")
def one_adapter_and_full_tuning(run: Any) -> None:
    import luthier as lt
    from luthier.host import Adaptation
    from luthier.recipes.multilingual_adapter import adapter, one_adapter, pooled, probed
    from luthier.train.beginning import head_for
    from luthier.train.fitted import Fitted

    model, (languages, _) = pretrained(run), divided()
    arms = {"adapter": adapter(model, "retrieval", WIDTH), "full": lt.methods.get("full")()}
    validation = pooled(languages).validation

    def told(name: str, tuned: Any) -> dict[str, float]:
        """Accuracies of the probes by property; of the frozen encoder for the name base."""
        return {p.property: p.accuracy[name] for p in probed(model, tuned, languages)}

    def untuned() -> dict[str, Any]:
        start = Adaptation.new(arms["adapter"], model.base, head=head_for(model, languages[RAREST]))
        as_it_is = Fitted(start, model, languages[RAREST].task)  # an untrained adapter is the identity
        return {"mrr": {n: as_it_is.score(d.test)["mrr"] for n, d in languages.items()}, **told("base", {})}

    def record(found: dict[str, Any], **about: Any) -> None:
        run.record("rarest", found["mrr"][RAREST], **about)
        run.record("all", sum(found["mrr"].values()) / len(found["mrr"]), **about)
        run.record("keeps", (found["token"] + found["language"]) / 2, **about)
        run.record("token", found["token"], **about)
        run.record("language", found["language"], **about)

    frozen = run.once(["frozen"], untuned)
    run.say(f"S049: frozen: {frozen}")
    record(frozen, arm="frozen")

    def measure(name: str, method: Any) -> None:
        held: dict[tuple[float, int], Any] = {}

        def fitted(factor: float, seed: int) -> Any:
            if (factor, seed) not in held:
                held[factor, seed] = one_adapter(
                    model, languages, method=method, seed=seed, rate=factor * method.rate, evaluate_every=1_000_000,
                    progress=False, **SETTINGS,
                )  # fmt: skip
            return held[factor, seed]

        def chosen(factor: float) -> float:
            return float(fitted(factor, SEEDS[0]).fitted.score(validation)["mrr"])

        def figures(factor: float, seed: int) -> dict[str, Any]:
            made = fitted(factor, seed)
            return {"mrr": {n: s["mrr"] for n, s in made.scores.items()}, **told(name, {name: made.fitted})}

        tried = {f: run.once([name, "validation", f], partial(chosen, f)) for f in RATES}
        for f, score in tried.items():
            about = {"claim": "rarest", "arm": name, "rate": f * method.rate, "seed": SEEDS[0]}
            run.trials.append({**about, "validation": score})
            run.say(f"S049: {name} at rate {f * method.rate:.2g}: validation MRR {score:.4f}")
        best = max(RATES, key=tried.__getitem__)
        for seed in SEEDS:
            found = run.once([name, "figures", best, seed], partial(figures, best, seed))
            run.say(f"S049: {name}, seed {seed}: {found}")
            record(found, arm=name, seed=seed, rate=best * method.rate)

    for name, method in arms.items():
        measure(name, method)

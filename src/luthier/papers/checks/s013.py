"""S013, CorDA (Yang et al. 2024): components in the order of a context, what is lost without them, and what tuning the others keeps."""

from __future__ import annotations

import csv
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals

RANK, STEPS, EVERY, RATES = 4, 120, 10, (1 / 3, 1.0, 3.0)
TASK, KNOWN = "order-a", 96

CHECK = Check(
    "S013",
    "CorDA's components add up to the weight, lose least where the inputs of their context are, and tuning the least used ones keeps more "
    "of what a model knows than LoRA does where both first reach the same loss of the task.",
    claims=(
        Beats(
            "kept",
            "loss on texts of the calibration's kind: LoRA's above CorDA's where both first reach the same task loss, 3 seeds",
            arm="lora",
            over="corda",
        ),
        AtMost("whole", "residual + B A less W, over W's largest entry (largest difference)", 1e-5),
        AtMost("start", "logits at the start less the base's (largest difference)", 1e-5),
        AtMost("pissa", "with C = I: B A less PiSSA's, over W's largest entry (largest difference)", 1e-5),
        Equals("least", "layers and ranks at which plain SVD loses less of (W - W_r) C than CorDA", 0),
        AtMost(
            "dropped",
            "what the loss on the calibration's texts rises by without the last 10 % of components, over plain SVD's rise",
            1.0,
        ),
    ),
    covers=(
        "luthier.methods.low_rank.corda",
        "luthier.starts.corda",
        "luthier.starts.singular",
        "luthier.host.calibrate",
        "testbed:llama",
    ),
    data="the Llama testbed; summaries of Python's library as what it knows (train rows calibrate, test rows are measured), digits in "
    "another order as the task",
    against="plain SVD of the same size; LoRA of the same rank at the same sites, each arm at its own best of three rates",
    minutes=9,
    notes="The same task loss is the larger of the two arms' lowest; both are taken at the first evaluation that is as low.",
)


def texts(run: Any, part: str, count: int) -> list[str]:
    return list(getattr(run.data("pydocs"), part).inputs[:count])


def language_loss(base: Any, model: Any, lines: list[str], adapted: Any = None) -> float:
    """Mean cross-entropy a token of texts as the language model reads them."""
    import torch
    from torch.nn.functional import cross_entropy

    batch = model.preprocess.collate(model.preprocess.encode(lines))
    mask = batch["attention_mask"].bool()
    with torch.no_grad():
        logits = (adapted(batch) if adapted is not None else base(**batch)).logits
    both = mask[:, 1:] & mask[:, :-1]
    return float(cross_entropy(logits[:, :-1][both], batch["input_ids"][:, 1:][both]))


def moments(run: Any, model: Any, method: Any) -> dict[str, Any]:
    """The second moments that the method's start asks for, on the summaries."""
    import torch

    from luthier.host import Adapted
    from luthier.host.calibrate import calibrate

    adapted: Any = Adapted(model.base)
    pre, lines = model.preprocess, texts(run, "train", 256)
    batches = [pre.collate(pre.encode(lines[i : i + 32])) for i in range(0, len(lines), 32)]
    batches = [{k: v for k, v in b.items() if torch.is_tensor(v)} for b in batches]
    return calibrate(adapted, method.sites(adapted.structure), method.start.needs, batches)


@CHECK.measures("whole", "start", "pissa", "least", "dropped", cheap=True)
def context(run: Any) -> None:
    import copy

    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.host.adaptation import site_weight
    from luthier.starts.corda import CorDAStart, damped
    from luthier.starts.singular import factors_of

    model = run.model("llama")
    found = None
    batch = model.preprocess.collate(model.preprocess.encode(texts(run, "test", 8)))
    for mode in ("previewed", "preserved"):
        method = lt.methods.CorDA(rank=RANK, start=CorDAStart(mode=mode))
        found = found or moments(run, model, method)
        made = Adaptation.new(method, model.base, statistics=found)
        for at in made.at():
            w = site_weight(model.base, at.site)
            assert w is not None
            taken = at.part.delta(None, at.t(None)).detach()
            rest, other = factors_of(
                w, min(w.shape) - RANK, mode != "previewed", damped(found[at.site.name]["input_moment"])
            )
            off = (taken + rest @ other - w).abs().max() / w.abs().max()
            run.record("whole", off, arm=f"{mode}, {at.site.name}")
        adapted: Any = Adapted(model.base)
        with torch.no_grad():
            want = adapted(batch).logits
            with adapted.attached(made):
                run.record("start", (adapted(batch).logits - want).abs().max(), arm=mode)
    assert found is not None
    worse, cases = 0, 0
    pruned = {name: copy.deepcopy(model.base) for name in ("corda", "svd")}
    for site in method.sites(Adapted(model.base).structure):
        w = site_weight(model.base, site)
        assert w is not None
        c = damped(found[site.name]["input_moment"])
        one = torch.eye(len(c), dtype=torch.float64)
        full = min(w.shape)
        every = {
            n: factors_of(w, full, True, m) for n, m in (("corda", c), ("svd", None), ("one", damped(one)))
        }
        top = {n: b[:, :RANK] @ a[:RANK] for n, (b, a) in every.items()}
        run.record("pissa", (top["one"] - top["svd"]).abs().max() / w.abs().max(), arm=site.name)
        few = full - max(1, full // 10)
        for rank in (1, RANK, full // 4, full // 2, few):
            low = {n: every[n][0][:, :rank] @ every[n][1][:rank] for n in pruned}
            cases += 1
            worse += ((w - low["corda"]) @ c).norm() > ((w - low["svd"]) @ c).norm()
        for name, base in pruned.items():
            base.get_submodule(site.path).weight.data.copy_(low[name])
    run.record("least", worse, of=cases)
    known = texts(run, "train", 256)
    whole = language_loss(model.base, model, known)
    rise = {name: language_loss(each, model, known) - whole for name, each in pruned.items()}
    if rise["svd"] <= 0:
        raise RuntimeError(
            f"plain SVD loses nothing ({rise['svd']:.2e}), so that the ratio would show nothing"
        )
    run.record("dropped", rise["corda"] / rise["svd"], **rise)


def walk(run: Any, name: str, rate: float, seed: int) -> list[list[float]]:
    """[(step, task loss on validation rows, loss on texts that it knew)] of a tuning."""
    import luthier as lt
    from luthier.host import Adapted
    from luthier.starts.corda import CorDAStart
    from luthier.train.batches import Batches, encode
    from luthier.train.beginning import new_adaptation
    from luthier.train.run import Recipe, Watcher
    from luthier.train.run import Run as Training
    from luthier.train.settings import Settings

    model, data = run.model("llama"), run.data(TASK)
    objective = objective_of(data.task)
    held = encode(model.preprocess, data.validation.select(range(96)), data.task).batch(range(96))
    lines, found = texts(run, "test", KNOWN), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "known.csv")
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [["text", "label"], *([t, i % 2] for i, t in enumerate(texts(run, "train", 400)))]
            )
        start = CorDAStart(mode="preserved", data=str(path))
        methods = {
            "corda": lt.methods.CorDA(rank=RANK, start=start),
            "lora": lt.methods.LoRA(rank=RANK, alpha=float(RANK), targets="projections"),
        }
        method = methods[name]
        made = new_adaptation(method, model, data, Settings(seed=seed), None, {})
    adapted: Any = Adapted(model.base)
    adapted.attach("main", made)

    class Look(Watcher):
        def after_step(self, training: Any) -> None:
            import torch

            if training.total % EVERY == EVERY - 1:
                with torch.no_grad():
                    task = float(objective.mean(adapted(held), held))
                found.append([training.total + 1, task, language_loss(model.base, model, lines, adapted)])

    batches = Batches({"train": encode(model.preprocess, data.train, data.task)}, batch_size=16, seed=seed)
    recipe = Recipe(STEPS, seed=seed, rate=float(method.rate) * rate)
    Training(adapted, method.phases(), batches, objective, recipe).go(Look())
    return found


def objective_of(task: Any) -> Any:
    from luthier.signals.objectives import Aims, objective_for

    return objective_for(task, Aims(shift=True))


@CHECK.measures("kept")
def what_stays(run: Any) -> None:
    rates = {}
    for name in ("corda", "lora"):

        def least(factor: float, name: str = name) -> float:
            """The lowest loss on the task."""
            return min(
                float(task) for _, task, _ in run.once([name, factor, 0], partial(walk, run, name, factor, 0))
            )

        rates[name] = run.best_of("kept", name, least, 1.0, rates=RATES, lowest=True, called="loss")
    for seed in range(3):
        curves = {n: run.once([n, r, seed], partial(walk, run, n, r, seed)) for n, r in rates.items()}
        both = max(min(task for _, task, _ in curve) for curve in curves.values())
        for name, curve in curves.items():
            step, _, known = next(line for line in curve if line[1] <= both)
            run.say(f"S013: {name}, seed {seed}: step {step:.0f}, loss on what it knew {known:.4f}")
            run.record("kept", known, arm=name, seed=seed, step=step, task=both, rate=rates[name])

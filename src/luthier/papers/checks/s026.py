"""S026, SCT (Zhao et al. 2023): what a map of salient channels changes, and whether the salient ones are the right ones."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals

SEEDS, RATES = range(3), (1 / 3, 1.0, 3.0)
ROWS = {"train": 600, "validation": 150, "test": 350}
SETTINGS: dict[str, Any] = {"steps": 80, "batch_size": 32}
ARMS: tuple[Any, ...] = ("largest", "random", "smallest")

CHECK = Check(
    "S026",
    "A map of the channels with the largest class-wise norms leaves all others bitwise as they are, folds into a layer where it acts "
    "on what that returns and nowhere else, and is better than a map of random channels or of the smallest ones.",
    claims=(
        Beats(
            "over_random",
            "mean accuracy of three image tasks: the salient channels above random ones of equal number, 3 seeds",
            arm="largest",
            over="random",
        ),
        Beats(
            "over_smallest",
            "mean accuracy of three image tasks: the salient channels above those with the lowest scores, 3 seeds",
            arm="largest",
            over="smallest",
        ),
        Equals("zero", "values that differ from the backbone's at W = 0, b = 0", 0),
        Equals("count", "numbers that train, less L (K^2 + K) and the head", 0),
        Equals("others", "values of other channels that the map changes, right behind the attention", 0),
        AtMost("folded", "the variant of outputs: folded against attached, of the largest value", 1e-5),
        Equals("refused", "whether merging the default place is refused (1: it is)", 1),
    ),
    covers=(
        "luthier.methods.representation.sct",
        "luthier.starts.salient",
        "luthier.host.channels",
        "testbed:vit",
    ),
    data="the vision testbed; digits, and generated figures: whether figure and ground share their texture, and whether their hues are near",
    against="as many random channels, drawn anew for every seed, and as many of the lowest score; each at its own best of three learning rates",
    minutes=10,
)


@CHECK.measures("zero", "count", "others", "folded", "refused", cheap=True)
def what_the_map_changes(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.errors import LuthierError
    from luthier.host import Adaptation, Adapted
    from luthier.starts.salient import Salient
    from luthier.train.beginning import head_for, new_adaptation
    from luthier.train.settings import Settings

    model, data = run.model("vit"), run.data("digits")
    rng = torch.Generator().manual_seed(0)
    config = model.base.config
    x = {"pixel_values": torch.randn(4, 3, config.image_size, config.image_size, generator=rng)}
    adapted: Any = Adapted(model.base)
    head = head_for(model, data)
    for name, kind in (("sct", lt.methods.SCT), ("sct_outputs", lt.methods.SCTOutputs)):
        zero = Adaptation.new(kind(start=Salient(std=0.0)), model.base)
        made = new_adaptation(kind(start=Salient(rows=100)), model, data, Settings(), head, {})
        k = config.hidden_size // 8
        classes = len(data.task.labels)
        trained = sum(made.counts().values()) - classes * (config.hidden_size + 1)
        run.record("count", trained - config.num_hidden_layers * (k * k + k), arm=name)
        made = Adaptation.new(kind(), model.base, layouts={"0": made.layouts()["0"]})
        with torch.no_grad():
            alone = adapted(x).hidden
            with adapted.attached(zero):
                run.record("zero", (adapted(x).hidden != alone).sum(), arm=name)
            for p in made.trainable().values():
                p.add_(0.2 * torch.randn(p.shape, generator=rng))
            if name == "sct":
                run.record("others", changed_elsewhere(adapted, made, x))
            with adapted.attached(made):
                got = adapted(x).hidden
                if torch.allclose(got, alone, atol=1e-2):
                    raise RuntimeError("the map changes nothing, so that equality would show nothing")
                try:
                    adapted.merge("attached")
                except LuthierError:
                    run.record("refused", 1, arm=name)
                else:
                    gap = (adapted(x).hidden - got).abs().max() / got.abs().max()
                    run.record("folded", gap, arm=name)


def changed_elsewhere(adapted: Any, made: Any, x: Any) -> int:
    """Values of the first block's stream behind its attention, in channels that are not mapped, that differ with the map."""
    import torch

    at = made.at()[0]
    block = adapted.structure.partner(at.site, "block")
    norm = next(
        s for s in adapted.structure.sites if s.role == "norm" and s.layer == 0 and "after" in s.path
    )  # it reads the stream right behind the attention
    seen: list[torch.Tensor] = []
    handle = adapted.base.get_submodule(norm.path).register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    adapted(x)
    with adapted.attached(made):
        adapted(x)
    handle.remove()
    differ = (seen[0] != seen[1]).flatten(0, -2).sum(0)
    own = torch.tensor(at.layout["channels"])
    if not differ[own].all() or block is None:
        raise RuntimeError("the map changes nothing there, so that equality would show nothing")
    return int(differ.sum() - differ[own].sum())


def figures(name: str) -> Any:
    """Generated figures under two labels that the testbed was not pretrained on, in equal numbers."""
    import numpy as np

    from luthier.data.split import Data, Split
    from luthier.data.task import Task
    from luthier.models.testbeds.images import FACTORS, HUES, batch

    rng, columns = np.random.default_rng(7), list(FACTORS)
    images, labels = batch(rng, 8 * sum(ROWS.values()), glyphs=0.0)
    of = {f: labels[:, columns.index(f)] for f in ("hue", "ground_hue", "texture", "ground_texture")}
    if name == "same texture":
        yes = of["texture"] == of["ground_texture"]
    else:
        apart = np.abs(of["hue"] - of["ground_hue"])
        yes = np.minimum(apart, HUES - apart) <= 1
    half = sum(ROWS.values()) // 2
    order = np.stack([np.flatnonzero(yes)[:half], np.flatnonzero(~yes)[:half]], 1).ravel()
    parts, begin = {}, 0
    for part, n in ROWS.items():
        own = order[begin : begin + n]
        parts[part] = Split(images[own], yes[own].astype(np.int64))
        begin += n
    task = Task(
        kind="classification",
        modality="image",
        input="image",
        label=name,
        labels=("no", "yes"),
        metric="accuracy",
    )
    return Data(parts["train"], parts["validation"], parts["test"], task, name)


@CHECK.measures("over_random", "over_smallest")
def which_channels(run: Any) -> None:
    import luthier as lt
    from luthier.starts.salient import Salient

    model = run.model("vit")
    tasks = {"digits": run.data("digits").limit(**ROWS)} | {
        n: figures(n) for n in ("same texture", "near hues")
    }
    scores: dict[tuple[str, int], list[float]] = {}
    for name, data in tasks.items():
        for arm in ARMS:
            method = lt.methods.SCT(start=Salient(which=arm))
            rate = run.best_rate(
                "over_random",
                f"{name}, {arm}",
                model,
                data,
                method,
                rates=RATES,
                metric="accuracy",
                **SETTINGS,
            )
            for seed in SEEDS:
                own = lt.methods.SCT(start=Salient(which=arm, draw=seed))

                def score(data: Any = data, own: Any = own, rate: float = rate, seed: int = seed) -> float:
                    fitted = run.fit(model, data, own, seed=seed, rate=rate, **SETTINGS)
                    return float(fitted.score(data.test)["accuracy"])

                scores.setdefault((arm, seed), []).append(run.once([name, arm, "test", seed], score))
                run.say(f"S026: {name}, {arm}, seed {seed}: {scores[arm, seed][-1]:.3f}")
    for (arm, seed), found in scores.items():
        for claim, other in (("over_random", "random"), ("over_smallest", "smallest")):
            if arm in ("largest", other):
                run.record(claim, fmean(found), arm=arm, seed=seed)

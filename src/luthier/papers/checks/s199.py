"""S199, PETALface (Narayan et al. 2025): two low-rank updates blended by an image's quality, and what that keeps of the sharp images."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats

IDENTITIES, DRAWINGS, GRID = (96, 48, 48), 24, 8
"""Identities that are trained on, that decide the rate, that are tested; drawings of each, half of them blurred; the grid of a blurred one."""
PAIRS = 4000
RANK, SEEDS = 4, range(3)
SETTINGS: dict[str, Any] = {"steps": 200, "batch_size": 32}

CHECK = Check(
    "S199",
    "Two pairs of factors blended by the sharpness of an image are single pairs at the ends and serve every row its own blend; on identities "
    "with blurred probes they are better than one pair of double rank, and full tuning loses more on sharp images.",
    claims=(
        AtMost("ends", "q = 1 and q = 0 against the single pair merged, of the largest value", 1e-5),
        AtMost("mixed", "a batch of mixed q against each row alone, of the largest value", 1e-5),
        Beats(
            "double",
            "mean of the verification accuracy on sharp and on blurred probes: above one LoRA of double rank, 3 seeds",
            arm="petalface",
            over="lora",
        ),
        Beats(
            "keeps",
            "verification accuracy on sharp images: full tuning loses more of the frozen model's, 3 seeds",
            arm="petalface",
            over="full",
        ),
    ),
    covers=(
        "luthier.methods.low_rank.petalface",
        "luthier.sources.by_covariate",
        "luthier.data.covariates",
        "testbed:vit",
        "testbed:gpt2",
    ),
    data="the vision testbed; identities are its glyphs turned by a quarter, which it has not seen, half of the drawings on a grid of 8 x 8",
    against="one LoRA of double rank at the same layers, and full tuning, each at its own best of three learning rates",
    minutes=10,
    notes="The catalogue asks for a margin softmax; the head is a plain one. Pairs are compared by the cosine of mean features, at the threshold that "
    "is best for pairs of the identities that decide the rate.",
)


@CHECK.measures("ends", "mixed", cheap=True)
def what_a_row_gets(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.papers.checks.s282 import inputs

    rng = torch.Generator().manual_seed(0)
    for name in ("vit", "gpt2"):
        model = run.model(name)
        adapted: Any = Adapted(model.base)
        if name == "vit":
            side = model.base.config.image_size
            x = {"pixel_values": torch.randn(4, 3, side, side, generator=rng)}
        else:
            x = {k: v for k, v in inputs(model, 4, 9).items() if torch.is_tensor(v)}

        def values(told: dict[str, Any], adapted: Any = adapted) -> Any:
            out = adapted(told)
            return out.hidden if out.logits is None else out.logits

        method = lt.methods.PETALface(rank=RANK, alpha=RANK, covariate=0, threshold=0.5)
        both = Adaptation.new(method, model.base)
        with torch.no_grad():
            for p in both.trainable().values():
                p.add_(0.05 * torch.randn(p.shape, generator=rng))
            q = torch.tensor([[1.0], [0.0], [0.3], [0.8]])
            with adapted.attached(both):
                mixed = values({**x, "covariates": q})
                for i in range(4):
                    alone = values({**{k: v[i : i + 1] for k, v in x.items()}, "covariates": q[i : i + 1]})
                    gap = (mixed[i] - alone[0]).abs().max() / alone.abs().max()
                    run.record("mixed", gap, arm=f"{name}, row {i}")
                ends = [values({**x, "covariates": torch.full((4, 1), end)}) for end in (1.0, 0.0)]
            if torch.allclose(ends[0], ends[1], atol=1e-2):
                raise RuntimeError("both ends are the same, so that equality would show nothing")
            for which, want in enumerate(ends):
                own = Adaptation.new(
                    lt.methods.LoRA(rank=RANK, alpha=RANK, targets=method.targets), model.base
                )
                at = slice(which * RANK, (which + 1) * RANK)
                for mine, theirs in zip(own.at(), both.at(), strict=True):
                    mine.values["A"].copy_(theirs.values["A"][at])
                    mine.values["B"].copy_(theirs.values["B"][:, at])
                with adapted.attached(own):
                    adapted.merge("attached")
                    gap = (values(x) - want).abs().max() / want.abs().max()
                run.record("ends", gap, arm=f"{name}, {('high', 'low')[which]}")


@lru_cache(maxsize=1)
def drawings() -> tuple[Any, Any, Any]:
    """(images, identity of each, whether it is blurred), the DRAWINGS sharpest of every identity; identities are in random order."""
    import numpy as np

    from luthier.data.covariates import sharpness
    from luthier.data.images import resized
    from luthier.models.testbeds.images import FACTORS, GLYPHS, batch

    rng, column = np.random.default_rng(199), list(FACTORS).index("glyph")
    wanted = rng.permutation(GLYPHS)[: sum(IDENTITIES)]
    drawn = [batch(rng, GLYPHS, glyphs=1.0) for _ in range(3 * DRAWINGS)]  # of which half are coarse
    images, labels = (np.concatenate(part) for part in zip(*drawn, strict=True))
    found, identity = [], []
    for number, glyph in enumerate(wanted.tolist()):
        own = images[labels[:, column] == glyph]
        own = own[np.argsort(-sharpness(own), kind="stable")[:DRAWINGS]]
        found.append(np.rot90(rng.permutation(own), axes=(1, 2)))
        identity += [number] * len(own)
    made = np.concatenate(found)
    blurred = np.arange(len(made)) % 2 == 1
    small = resized(made[blurred], (GRID, GRID, made.shape[-1]))
    made[blurred] = resized(small, made.shape[1:])
    return made, np.asarray(identity), blurred


def trained_on() -> Any:
    """The rows of the first identities, with their sharpness; every fifth row is one of validation."""
    import numpy as np

    from luthier.data.covariates import with_measures
    from luthier.data.split import Data, Split
    from luthier.data.task import Task

    images, identity, _ = drawings()
    rows = np.flatnonzero(identity < IDENTITIES[0])
    parts = [Split(images[at], identity[at]) for at in (rows[rows % 5 != 0], rows[rows % 5 == 0])]
    names = tuple(f"identity {i}" for i in range(IDENTITIES[0]))
    task = Task(
        kind="classification",
        modality="image",
        labels=names,
        input="image",
        label="identity",
        metric="accuracy",
    )
    return with_measures(Data(parts[0], parts[1], None, task, "identities"), ("sharpness",))


def verified(model: Any, fitted: Any) -> list[float]:
    """[mean on the identities that decide, sharp accuracy, blurred accuracy on those that are tested]; fitted None: the frozen model."""
    import numpy as np
    import torch

    from luthier.data.covariates import measured
    from luthier.host import Adapted

    images, identity, blurred = drawings()
    kept = identity >= IDENTITIES[0]
    images, identity, blurred = images[kept], identity[kept], blurred[kept]
    told = torch.from_numpy(measured(images, ("sharpness",)))
    adapted: Any = Adapted(model.base)
    if fitted is not None:
        adapted.attach("main", fitted.adaptation)
    adapted.eval()
    found = []
    with torch.no_grad():
        encoded = model.preprocess.encode(images)
        for at in range(0, len(images), 64):
            batch = {**model.preprocess.collate(encoded[at : at + 64]), "covariates": told[at : at + 64]}
            found.append(adapted(batch).hidden.mean(1))
    if fitted is not None:
        adapted.detach("main")
    features = torch.nn.functional.normalize(torch.cat(found), dim=-1).numpy()
    tested = identity >= IDENTITIES[0] + IDENTITIES[1]
    scores: dict[tuple[bool, bool], tuple[Any, Any]] = {}
    for part in (False, True):
        for probe in (False, True):
            rng = np.random.default_rng(int(probe))
            gallery = np.flatnonzero((tested == part) & ~blurred)
            probes = np.flatnonzero((tested == part) & (blurred == probe))
            a, b = pairs(rng, identity, probes, gallery)
            scores[part, probe] = ((features[a] * features[b]).sum(1), identity[a] == identity[b])
    cuts = {probe: best_cut(*scores[False, probe]) for probe in (False, True)}
    accuracy = {
        (part, probe): float(((cosine > cuts[probe]) == same).mean())
        for (part, probe), (cosine, same) in scores.items()
    }
    decides = (accuracy[False, False] + accuracy[False, True]) / 2
    return [decides, accuracy[True, False], accuracy[True, True]]


def pairs(rng: Any, identity: Any, probes: Any, gallery: Any) -> tuple[Any, Any]:
    """PAIRS rows of probes and of the gallery, never an image with itself, half of them of one identity."""
    import numpy as np

    a = rng.choice(probes, 40 * PAIRS)
    b = rng.choice(gallery, len(a))
    same = identity[a] == identity[b]
    yes, no = np.flatnonzero(same & (a != b))[: PAIRS // 2], np.flatnonzero(~same)[: PAIRS // 2]
    if len(yes) < PAIRS // 2:
        raise RuntimeError("too few pairs of one identity were drawn")
    at = np.concatenate([yes, no])
    return a[at], b[at]


def best_cut(cosine: Any, same: Any) -> float:
    """The threshold of the cosine with the highest accuracy."""
    import numpy as np

    order = np.argsort(cosine)
    right = same.sum() - np.cumsum(same[order]) + np.cumsum(~same[order])
    return float(cosine[order][int(right.argmax())])


@CHECK.measures("double", "keeps")
def sharp_and_blurred(run: Any) -> None:
    import luthier as lt

    model, data = run.model("vit"), trained_on()
    blend = lt.methods.PETALface(rank=RANK, alpha=RANK, covariate=0, projection="mlp.down[-1:]")
    plain = lt.methods.LoRA(rank=2 * RANK, alpha=2 * RANK, targets=f"{blend.targets} | {blend.projection}")
    arms = {"petalface": blend, "lora": plain, "full": lt.methods.get("full")()}
    frozen = run.once(["frozen"], lambda: verified(model, None))
    run.say(f"S199: frozen, sharp {frozen[1]:.4f}, blurred {frozen[2]:.4f}")
    for name, method in arms.items():

        def figures(rate: float, seed: int, name: str = name, method: Any = method) -> list[float]:
            def go() -> list[float]:
                fitted = run.fit(model, data, method, seed=seed, rate=rate * method.rate, **SETTINGS)
                return verified(model, fitted)

            return run.once([name, rate, seed], go)  # type: ignore[no-any-return]

        def validated(rate: float, figures: Any = figures) -> float:
            return float(figures(rate, SEEDS[0])[0])

        rate = run.best_of("double", name, validated, 1.0)
        for seed in SEEDS:
            _, sharp, blurred = figures(rate, seed)
            run.say(f"S199: {name}, rate x {rate:.3g}, seed {seed}: sharp {sharp:.4f}, blurred {blurred:.4f}")
            if name != "full":
                run.record("double", (sharp + blurred) / 2, arm=name, seed=seed, rate=rate * method.rate)
            if name != "lora":
                run.record("keeps", sharp - frozen[1], arm=name, seed=seed, rate=rate * method.rate)

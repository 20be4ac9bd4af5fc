"""S210, LoRA forms for convolutions: what they are as kernels, and adapting a small U-Net from round lesions to thin ones."""

from __future__ import annotations

from functools import partial
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Beats, Equals

FORMS = ("lora_c", "dora_c", "conv_lora", "conv_dora", "cp_lora", "cp_dora")
ROW = ("cp_lora", "dora_c", "conv_dora", "cp_dora")
"""The four that the row is about."""
SIDE, WIDTH, SOURCE, TARGET, FOLDS, SEEN = 32, 8, 400, 20, 3, 3
"""SEEN: of the images that are not a fold's, so many choose the rate; the others train."""
PRETRAIN, STEPS, BATCH = 600, 150, 10
RANKS = (2, 16)
RATES = (1 / 3, 1.0, 3.0)
FULL_RATES = (6.0, 20.0, 60.0)
"""Multiples of the default rate of full tuning: a small network takes larger steps."""

CHECK = Check(
    "S210",
    "CP-LoRA, DoRA-C, convDoRA and CP-DoRA adapt a segmentation U-Net to thin lesions on 20 images better than tuning all of it or its "
    "decoder, and rank 16 is better than rank 2.",
    claims=(
        Beats(
            "full", "Dice of the four forms at rank 16 above full tuning's, mean of 3 folds", "four", "full"
        ),
        Beats(
            "decoder",
            "Dice of the four forms at rank 16 above that of tuning the decoder, mean of 3 folds",
            "four",
            "decoder",
        ),
        Beats(
            "rank",
            "Dice of the four forms at rank 16 above that at rank 2, mean of 3 folds",
            "rank 16",
            "rank 2",
        ),
        AtLeast("competent", "Dice of the pretrained network on new round lesions", 0.8),
        AtMost("outer", "a CP change less the explicit sum of outer products (largest, float64)", 1e-6),
        AtMost("merged", "merged equals attached, of the largest output (fp32)", 1e-5),
        Equals("count", "trained numbers of cp_lora less rank * (out + in + 2 side) per site", 0),
        AtMost("start", "step 0 less the base (largest)", 1e-6),
        Equals("moved", "trained tensors that have not moved after 2 steps", 0),
    ),
    covers=(
        "luthier.host.places.convolution",
        "luthier.methods.convolution.lora_c",
        "luthier.methods.convolution.conv_lora",
        "luthier.methods.convolution.cp_lora",
        "luthier.methods.convolution.magnitude",
        "luthier.sources.kernels",
        "luthier.methods.sparse.parameters",
    ),
    data="images drawn here: round bright lesions in noise to pretrain on, 20 images of thin bright curves to adapt to, in 3 folds",
    against="full tuning, tuning of the decoder, and the same forms at rank 2, each at its own best of three learning rates on 3 images "
    "that neither train nor test; every form is shown beside the mean of the four",
    minutes=8,
    notes="The network is of 2-D images without several views. The rate is chosen in the first fold.",
)


def network(seed: int = 0) -> Any:
    """A U-Net of two levels: (rows, 1, side, side) -> logits of the same shape."""
    import torch
    from torch import nn

    def stage(inputs: int, outputs: int) -> Any:
        pair = (nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1))
        return nn.Sequential(pair[0], nn.GroupNorm(4, outputs), nn.ReLU(), pair[1], nn.ReLU())

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            w = WIDTH
            self.encoder = nn.ModuleList([stage(1, w), stage(w, 2 * w)])
            self.bottleneck = stage(2 * w, 4 * w)
            self.decoder = nn.ModuleList([stage(6 * w, 2 * w), stage(3 * w, w), nn.Conv2d(w, 1, 1)])

        def forward(self, x: Any) -> Any:
            one = self.encoder[0](x)
            two = self.encoder[1](nn.functional.max_pool2d(one, 2))
            h = self.bottleneck(nn.functional.max_pool2d(two, 2))
            h = self.decoder[0](torch.cat([nn.functional.interpolate(h, scale_factor=2.0), two], 1))
            h = self.decoder[1](torch.cat([nn.functional.interpolate(h, scale_factor=2.0), one], 1))
            return self.decoder[2](h)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet()


def images(number: int, thin: bool, seed: int) -> tuple[Any, Any]:
    """(images (number, 1, side, side), masks of the same shape): bright lesions in smooth noise, round ones or thin curves."""
    import torch
    from torch.nn import functional as F

    rng = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1).float()
    masks = torch.zeros(number, 1, SIDE, SIDE)
    for mask in masks:
        for _ in range(2):
            if thin:  # a walk of short steps in a direction that turns slowly
                place, angle = torch.rand(2, generator=rng) * SIDE, torch.rand((), generator=rng) * 6.28
                for _ in range(2 * SIDE):
                    angle = angle + 0.15 * torch.randn((), generator=rng)
                    place = place + 0.5 * torch.stack([angle.sin(), angle.cos()])
                    mask[0][(grid - place).norm(dim=-1) < 0.8] = 1
            else:
                place, axes = torch.rand(2, generator=rng) * SIDE, 3 + 4 * torch.rand(2, generator=rng)
                mask[0][((grid - place) / axes).norm(dim=-1) < 1] = 1
    smooth = F.avg_pool2d(torch.randn(number, 1, SIDE, SIDE, generator=rng), 5, 1, 2) * 2.5
    noise = 0.3 * torch.randn(number, 1, SIDE, SIDE, generator=rng)
    contrast = 1.2 if not thin else 1.0
    return contrast * masks + smooth * 0.6 + noise, masks


def loss(logits: Any, masks: Any) -> Any:
    """Cross-entropy and one less the soft Dice of the batch."""
    from torch.nn import functional as F

    p = logits.sigmoid()
    overlap = 2 * (p * masks).sum() / (p.sum() + masks.sum() + 1)
    return F.binary_cross_entropy_with_logits(logits, masks) + 1 - overlap


def dice(logits: Any, masks: Any) -> float:
    """Mean over images of twice the overlap over the sum of sizes."""
    found = (logits > 0).float()
    overlap = 2 * (found * masks).flatten(1).sum(1)
    return float((overlap / (found + masks).flatten(1).sum(1).clamp_min(1)).mean())


def optimised(parameters: Any, forward: Any, x: Any, masks: Any, steps: int, rate: float, seed: int) -> None:
    """AdamW with a rate that falls to zero, on random batches."""
    import torch

    rng = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    for _ in range(steps):
        rows = torch.randperm(len(x), generator=rng)[:BATCH]
        loss(forward(x[rows]), masks[rows]).backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()


def pretrained() -> Any:
    base = network()
    optimised(base.parameters(), base, *images(SOURCE, False, 1), PRETRAIN, 3e-3, 0)
    return base.eval().requires_grad_(False)


def adapted_to(base: Any, method: Any, x: Any, masks: Any, rate: float, seed: int) -> Any:
    """The network with `method` trained on these images."""
    from luthier.host import Adaptation, Adapted

    model: Any = Adapted(base)
    model.attach("main", Adaptation.new(method, base, seed=seed))
    trained = list(model.adaptations["main"].trainable().values())
    for p in trained:
        p.requires_grad_(True)
    optimised(trained, lambda rows: model({"x": rows}).hidden, x, masks, STEPS, rate, seed)
    return model


@CHECK.measures("outer", "merged", "count", "start", "moved", cheap=True)
def kernels(run: Any) -> None:
    import torch

    from luthier import methods
    from luthier.host import Adaptation, Adapted
    from luthier.sources.kernels import outer

    rng = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randn(5, n, generator=rng, dtype=torch.float64) for n in (7, 6, 3, 3))
    explicit = sum(
        a[r][:, None, None, None] * b[r][:, None, None] * c[r][:, None] * d[r] for r in range(len(a))
    )
    run.record("outer", (outer(a, b, [c, d]) - explicit).abs().max())
    x, masks = images(4, True, 0)
    for name in FORMS:
        base = network().eval().requires_grad_(False)
        model: Any = Adapted(base)
        made = Adaptation.new(methods.get(name)(rank=4), base)
        alone = base(x)
        if name == "cp_lora":
            sites = [at.site for at in made.at()]
            want = sum(4 * (sum(dict(s.parameters)["weight"])) for s in sites)
            run.record("count", made.counts()["method"] - want)
        model.attach("main", made)
        trained = made.trainable()
        before = {n: p.detach().clone() for n, p in trained.items()}
        with torch.no_grad():
            run.record("start", (model({"x": x}).hidden - alone).abs().max(), arm=name)
        for p in trained.values():
            p.requires_grad_(True)
        optimised(trained.values(), lambda rows, m=model: m({"x": rows}).hidden, x, masks, 2, 1e-2, 0)
        run.record("moved", sum(torch.equal(p, before[n]) for n, p in trained.items()), arm=name)
        with torch.no_grad():
            for p in trained.values():
                p.add_(0.2 * torch.randn(p.shape, generator=rng))
            attached = model({"x": x}).hidden
            if torch.allclose(attached, alone, atol=1e-2):
                raise RuntimeError("the update changes nothing, so that equality would show nothing")
            model.merge("main")
            merged = base(x)
        run.record("merged", (merged - attached).abs().max() / attached.abs().max(), arm=name)


@CHECK.measures("full", "decoder", "rank", "competent")
def thin_lesions(run: Any) -> None:
    import torch

    from luthier import methods

    base = pretrained()
    with torch.no_grad():
        x, masks = images(200, False, 2)
        run.record("competent", dice(base(x), masks))
    x, masks = images(TARGET, True, 3)
    order = torch.randperm(TARGET, generator=torch.Generator().manual_seed(0))
    arms: dict[str, Any] = {
        f"{name}, rank {rank}": (methods.get(name)(rank=rank, alpha=2.0 * rank), RATES)
        for name in FORMS
        for rank in RANKS
    }
    arms["full"] = (methods.get("full")(), FULL_RATES)
    arms["decoder"] = (methods.get("full")(targets="decoder.*"), FULL_RATES)

    def score(method: Any, rate: float, fold: int, seen: bool) -> float:
        """Dice on the fold's images, or on those that choose the rate."""
        test = order[fold::FOLDS]
        rest = torch.tensor([i for i in order.tolist() if i not in test.tolist()])
        train, choose = rest[SEEN:], rest[:SEEN]
        model = adapted_to(base, method, x[train], masks[train], rate, fold)
        rows = choose if seen else test
        with torch.no_grad():
            found = dice(model({"x": x[rows]}).hidden, masks[rows])
        model.detach("main")
        return found

    found: dict[str, list[float]] = {}
    for name, (method, rates) in arms.items():

        def chosen(rate: float, method: Any = method) -> float:
            return score(method, rate, 0, True)

        rate = run.best_of("full", name, chosen, float(method.rate), rates=rates)
        found[name] = [
            run.once([name, rate, fold], partial(score, method, rate, fold, False)) for fold in range(FOLDS)
        ]
        run.say(f"S210: {name}: Dice {sum(found[name]) / FOLDS:.3f} at rate {rate:.2g}")
    for fold in range(FOLDS):
        four = {rank: sum(found[f"{name}, rank {rank}"][fold] for name in ROW) / len(ROW) for rank in RANKS}
        for rank, value in four.items():
            run.record("rank", value, arm=f"rank {rank}", seed=fold)
        for claim in ("full", "decoder"):
            run.record(claim, four[max(RANKS)], arm="four", seed=fold)
            run.record(claim, found[claim][fold], arm=claim, seed=fold)
        for name in FORMS:
            for rank in RANKS:
                arm = f"{name}, rank {rank}"
                run.record("full", found[arm][fold], arm=arm, seed=fold)

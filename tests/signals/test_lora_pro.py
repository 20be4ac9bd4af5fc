"""LoRA-Pro (S173): the step of the factors is the low-rank image that is nearest to the whole gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import OptionError
from luthier.methods import make
from luthier.signals.lora_pro import LoRAPro, adjusted, equivalent, sylvester


def problem(seed: int, out: int = 9, inner: int = 7, rank: int = 3, scale: float = 1.7):
    """Factors, and the whole gradient of a quadratic loss ||X (W + s B A)^T - Y||^2 / 2 with what autograd gives the factors."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=rng, dtype=torch.float64)
    a, b, w, x, y = draw(rank, inner), draw(out, rank), draw(out, inner), draw(20, inner), draw(20, out)
    a.requires_grad_(), b.requires_grad_()
    loss = (x @ (w + scale * b @ a).T - y).square().sum() / 2
    g_a, g_b = torch.autograd.grad(loss, (a, b))
    a, b = a.detach(), b.detach()
    g = (x @ (w + scale * b @ a).T - y).T @ x
    return a, b, g_a, g_b, g, scale


def projections(a, b):
    one = lambda n: torch.eye(n, dtype=torch.float64)
    p_a, p_b = a.T @ torch.linalg.solve(a @ a.T, a), b @ torch.linalg.solve(b.T @ b, b.T)
    return one(len(p_a)) - p_a, one(len(p_b)) - p_b


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.booleans())
def test_it_is_the_nearest_image_of_the_whole_gradient(seed: int, nearest: bool) -> None:
    a, b, g_a, g_b, g, s = problem(seed)
    image = equivalent(a, b, *adjusted(a, b, g_a, g_b, s, nearest=nearest), s)
    size = float(g.norm())
    assert float((b.T @ (image - g)).norm()) <= 1e-8 * size * float(b.norm())
    assert float(((image - g) @ a.T).norm()) <= 1e-8 * size * float(a.norm())
    off_a, off_b = projections(a, b)
    left = float((image - g).norm())
    assert left == pytest.approx(float((off_b @ g @ off_a).norm()), rel=1e-6)
    for lr in (0.01, 0.1, 1.0):
        plain = equivalent(a, b, lr * g_a, lr * g_b, s)
        assert left <= float((plain - g).norm())


def test_x_decides_the_factors_and_not_the_image() -> None:
    a, b, g_a, g_b, _, s = problem(1)
    near, zero = (adjusted(a, b, g_a, g_b, s, nearest=n) for n in (True, False))
    assert not torch.allclose(near[0], zero[0], atol=1e-3)
    assert torch.allclose(equivalent(a, b, *near, s), equivalent(a, b, *zero, s), rtol=1e-9, atol=1e-9)
    # no other X comes nearer to the raw gradients
    distance = lambda d: float((d[0] - g_a).square().sum() + (d[1] - g_b).square().sum())
    rng = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-1, 1.0):
        x = size * torch.randn(3, 3, generator=rng, dtype=torch.float64)
        assert distance(near) < distance((near[0] + x @ a, near[1] - b @ x))


def test_at_b_0_it_is_the_gradient_on_the_rows_of_a() -> None:
    a, b, _, _, g, s = problem(2)
    b = torch.zeros_like(b)
    d_a, d_b = adjusted(a, b, s * b.T @ g, s * g @ a.T, s)
    off_a, _ = projections(a, torch.eye(9, 3, dtype=torch.float64))
    assert not d_a.any()
    assert torch.allclose(d_b, g @ a.T @ torch.linalg.inv(a @ a.T) / s, rtol=1e-6)
    assert torch.allclose(
        equivalent(a, b, d_a, d_b, s), g - g @ off_a, rtol=1e-6, atol=1e-6 * float(g.norm())
    )


def test_sylvester() -> None:
    rng = torch.Generator().manual_seed(0)
    p, q, c = (torch.randn(4, 4, generator=rng, dtype=torch.float64) for _ in range(3))
    p, q = p @ p.T + torch.eye(4), q @ q.T
    x = sylvester(p, q, c)
    assert torch.allclose(p @ x + x @ q, c, atol=1e-10)


def test_the_optimiser_is_adamw_on_the_whole_weight_where_the_factors_reach_it_all() -> None:
    """With square invertible factors every step of the weight is AdamW's on the whole weight, to first order."""
    torch.manual_seed(0)
    n, s, lr = 5, 0.5, 1e-6
    a, b = (torch.nn.Parameter(torch.randn(n, n, dtype=torch.float64)) for _ in range(2))
    w = torch.nn.Parameter((s * b @ a).detach().clone())
    target = torch.randn(n, n, dtype=torch.float64)
    mine = LoRAPro([{"params": [a, b], "lr": lr, "scale": s}])
    whole = torch.optim.AdamW([w], lr=lr, weight_decay=0.0)
    for _ in range(5):
        before, was = (s * b @ a).detach(), w.detach().clone()
        for optimiser, weight in ((mine, s * b @ a), (whole, w)):
            optimiser.zero_grad()
            (weight - target).square().sum().backward()
            optimiser.step()
        moved, should = (s * b @ a).detach() - before, w.detach() - was
        assert torch.allclose(moved, should, rtol=1e-3, atol=1e-3 * lr)
    assert set(mine.state[b]) == {"step", "exp_avg", "exp_avg_sq"} and mine.state[b]["exp_avg"].shape == (
        n,
        n,
    )
    assert a not in mine.state


def test_what_is_no_pair_is_plain_adamw() -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(4, 3))
    q = torch.nn.Parameter(p.detach().clone())
    mine, theirs = (
        LoRAPro([{"params": [p], "lr": 1e-2, "weight_decay": 0.1}]),
        torch.optim.AdamW([q], lr=1e-2, weight_decay=0.1),
    )
    for _ in range(4):
        for x, optimiser in ((p, mine), (q, theirs)):
            optimiser.zero_grad()
            (x.sin() * torch.arange(12.0).view(4, 3)).sum().backward()
            optimiser.step()
    assert torch.allclose(p, q, atol=1e-6)


def test_the_phase_pairs_factors_and_takes_the_scale_of_their_part() -> None:
    from luthier.host import Adaptation, Adapted
    from luthier.methods.low_rank.dora import DoRA
    from luthier.signals.lora_pro import lora_pro
    from tests.host import bed

    base = bed.base("bert")
    model = Adapted(base)
    model.attach("main", Adaptation.new(DoRA(rank=2, alpha=6.0), base))

    class Run:
        adapted = model

        def rates(self, name):
            return 1e-3, 0.0

    named = {f"main.{k}": v for k, v in model.adaptations["main"].trainable().items()}
    groups = lora_pro(named, Run()).param_groups
    pairs = [g for g in groups if g["scale"] is not None]
    assert len(pairs) == 6 and {g["scale"] for g in pairs} == {3.0}
    assert all([tuple(p.shape) for p in g["params"]] == [(2, 32), (32, 2)] for g in pairs)
    assert [tuple(g["params"][0].shape) for g in groups if g["scale"] is None] == [(32,)] * 6
    with pytest.raises(OptionError, match="none trains here"):
        lora_pro({k: v for k, v in named.items() if k.endswith("m")}, Run())


def test_rates_that_lora_pro_has_no_use_for_are_refused() -> None:
    from luthier.host import Adaptation
    from tests.host import bed

    for name in ("lora_plus", "soma"):
        with pytest.raises(OptionError, match="lora"):
            Adaptation.new(make(name, {"rank": 2, "optimiser": "lora_pro"}), bed.base("bert"))

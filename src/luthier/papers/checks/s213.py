"""S213, PELA (Guo et al. 2024): a model of half its linear parameters, and what the stage between compressing and tuning is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals

RATIO, STAGE, STAGE_BATCH, STAGE_RATE = 2.0, 400, 32, 1e-3
BOUND, EPS = 1.0, 1e-3
SETTINGS: dict[str, Any] = {"steps": 150, "batch_size": 32}
ROWS = {"train": 600, "validation": 200, "test": 400}
RATES = (1.0, 4.0, 16.0)
"""Multiples of the default rate of full tuning: a small model takes larger steps."""
SEEDS = (0, 1, 2)

CHECK = Check(
    "S213",
    "A vision transformer cut to half its linear parameters by truncated SVD tunes better after a stage of distillation than at once or "
    "after as many steps without the distillation term, and within 2 points of the dense model.",
    claims=(
        Beats("svd", "accuracy after the stage above that of SVD alone, mean of 3 seeds", "distilled", "svd"),
        Beats(
            "term",
            "accuracy after the stage above that after as many steps without the distillation term, mean of 3 seeds",
            "distilled",
            "undistilled",
        ),
        Beats(
            "dense",
            "accuracy after the stage within 2 points of the dense model's, mean of 3 seeds",
            "distilled",
            "dense",
            by=-0.02,
            ties=True,
        ),
        AtMost("whole", "outputs at the full rank less the model's, of the largest output", 1e-4),
        AtMost("share", "share of the linear parameters that is left at ratio 2", 0.5),
        AtMost(
            "counted",
            "parameters and multiplications reported, over r (m + n) / (m n), less 1 (largest; multiplications as counted by torch)",
            1e-12,
        ),
        AtMost("bound", "perturbation term where the largest changed entry of every layer is eps", 1e-10),
        AtMost(
            "elsewhere",
            "perturbation term less the mean of (largest change - eps)^2, where it is not (of the larger)",
            1e-6,
        ),
        Equals("teacher", "values of the teacher that the stage changed", 0),
    ),
    covers=(
        "luthier.host.slim",
        "luthier.models.slim",
        "luthier.train.distil",
        "luthier.methods.sparse.parameters",
        "testbed:vit",
    ),
    data="the ViT testbed; the stage on generated images with their factors, as it was pretrained; tuned on scikit-learn's digits",
    against="the truncated SVD tuned at once, the same stage steps without the distillation term, and the dense model; full tuning of the same "
    "rows and steps, each arm at its own best of three learning rates",
    minutes=9,
    notes="The testbed's pretraining head is not kept, so that the loss of pretraining trains a new one on the slim model along with it.",
)


@CHECK.measures("whole", "share", "counted", "bound", "elsewhere", "teacher", cheap=True)
def numbers(run: Any) -> None:
    import copy

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from luthier.models.slim import svd_slim
    from luthier.train.distil import distil, perturbation

    model = run.model("vit")
    batch = next(pictures(4))
    x = {"pixel_values": batch["pixel_values"]}
    with torch.no_grad():
        want = model.base(**x).last_hidden_state
        got = svd_slim(model, rank=10**6).model.base(**x).last_hidden_state
    run.record("whole", (got - want).abs().max() / want.abs().max())
    slim = svd_slim(model, RATIO)
    run.record("share", slim.ratio)

    def multiplications(base: Any, path: str, inputs: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            base.get_submodule(path)(torch.zeros(1, inputs))
        return int(counter.get_total_flops())

    for layer in slim.layers:
        m, n, r = layer.outputs, layer.inputs, layer.rank
        ratio = r * (m + n) / (m * n)
        for reported in (
            layer.slim / layer.dense,
            multiplications(slim.model.base, layer.path, n) / multiplications(model.base, layer.path, n),
        ):
            run.record("counted", abs(reported / ratio - 1), arm=layer.path)
    run.record("elsewhere", _apart(slim, model.base, perturbation(slim, model.base, EPS)))
    near = copy.deepcopy(model.base)
    with torch.no_grad():
        for i, layer in enumerate(slim.layers):
            weight = near.get_submodule(layer.path).weight
            weight.copy_(slim.model.base.get_submodule(layer.path).product)
            weight[i % 3, i % 5] += EPS * (-1) ** i
    run.record("bound", perturbation(slim, near, EPS))
    before = {k: v.clone() for k, v in model.base.state_dict().items()}
    distil(slim, model, pictures(4), steps=3, rate=1e-2)
    run.record("teacher", sum(int((v != before[k]).sum()) for k, v in model.base.state_dict().items()))


def _apart(slim: Any, base: Any, term: Any) -> float:
    """How far the term is from its definition, layer by layer in double precision."""
    want = 0.0
    for layer in slim.layers:
        made = slim.model.base.get_submodule(layer.path)
        product = made.up.weight.double() @ made.down.weight.double()
        change = float((product - base.get_submodule(layer.path).weight.double()).abs().max())
        want += (change - EPS) ** 2 / len(slim.layers)
    return abs(float(term) - want) / max(want, float(term))


def pictures(rows: int) -> Iterator[dict[str, Any]]:
    """Batches of generated images with their factors."""
    from luthier.models.testbeds import vit

    for each in vit.batches(replace(vit.RECIPES["vit"], batch=rows, seed=7)):
        yield each[0]


def staged(model: Any, hidden: float) -> Any:
    """The slim model after the stage, with or without the distillation term."""
    import torch
    from torch import nn

    from luthier.models.slim import svd_slim
    from luthier.models.testbeds import vit
    from luthier.train.distil import distil

    slim = svd_slim(model, RATIO)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = nn.Linear(model.base.config.hidden_size, vit.RECIPES["vit"].config["num_labels"])

    def factors(out: Any, batch: Any) -> Any:
        return vit.factors_loss(batch["labels"], head(out.last_hidden_state[:, 0]))

    distil(
        slim,
        model,
        pictures(STAGE_BATCH),
        steps=STAGE,
        rate=STAGE_RATE,
        hidden=hidden,
        bound=BOUND,
        eps=EPS,
        objective=factors,
        also=head.parameters(),
    )
    return slim.model


@CHECK.measures("svd", "term", "dense")
def tuned_after_the_stage(run: Any) -> None:
    import luthier as lt
    from luthier.models.slim import svd_slim

    model, data = run.model("vit"), run.data("digits").limit(**ROWS)
    bases = {
        "distilled": lambda: staged(model, 1.0),
        "undistilled": lambda: staged(model, 0.0),
        "svd": lambda: svd_slim(model, RATIO).model,
        "dense": lambda: model,
    }
    # what a claim compares is recorded for it alone: the stage runs once for all three
    claims = {
        "distilled": ("svd", "term", "dense"),
        "undistilled": ("term",),
        "svd": ("svd",),
        "dense": ("dense",),
    }
    for name, make in bases.items():
        run.compare(
            claims[name], make(), data, {name: lt.methods.Full()}, seeds=SEEDS, rates=RATES, **SETTINGS
        )

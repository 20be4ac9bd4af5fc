"""S301, SKIP (Yang et al. 2024): the units that carry a task, what is lost without the others, and how much faster it runs."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.checks.s282 import inputs
from luthier.papers.claims import AtLeast, AtMost, Beats, Equals

SEEDS = (0, 1, 2)
CUT, LENGTH = 0.5, 20
SETTINGS: dict[str, Any] = {"steps": 100, "batch_size": 16}
TURNS = 30

CHECK = Check(
    "S301",
    "Half of a sentence encoder's feed-forward units can be cut for a task: those that attribution ranks lowest cost less than any "
    "others, the prompt trained again makes up for them, and the model that is left is faster.",
    claims=(
        Beats(
            "before",
            "before the prompt is trained again, accuracy after attribution is 5 points above that after a random cut, mean of 3 seeds",
            arm="attribution",
            over="random",
            by=0.05,
        ),
        Beats(
            "after",
            "after that it is within 3 points of the uncut soft prompt, mean of 3 seeds",
            arm="skip",
            over="prompt",
            by=-0.03,
            ties=True,
        ),
        AtLeast("speed", "median time of 8 x 64 tokens, the uncut model's over the smaller one's", 1.3),
        AtMost(
            "zeros",
            "smaller weights, attached or in a copy, give what the dense model gives with these activations at 0 (largest "
            "difference, float64)",
            1e-5,
        ),
        Equals("base", "values of the base that cutting changed", 0),
    ),
    covers=(
        "luthier.methods.prompts.skip",
        "luthier.selection.attribution",
        "luthier.host.places.units",
        "luthier.host.narrow",
        "luthier.papers.checks.s282",
        "testbed:bert",
        "testbed:llama",
        "testbed:gpt2",
        "testbed:t5",
    ),
    data="one-line summaries of Python's documentation by topic, on the sentence encoder; the testbeds for what is exact",
    against="units cut at random after the same training; a soft prompt of the same length and steps on the whole model, each at "
    "its own best of three learning rates",
    minutes=9,
    notes="Half of the units of every layer, no heads, as the statement says. Time is of the forward pass with the prompt, on one thread.",
)


def left_out(base: Any, share: float, **options: Any) -> Any:
    """SKIP's adaptation with units cut at random."""
    import torch

    import luthier as lt
    from luthier.host import Adaptation
    from luthier.host.places.units import keep, units

    made = Adaptation.new(lt.methods.Skip(length=LENGTH, **options), base)
    rng = torch.Generator().manual_seed(0)
    kept = {}
    for at in made.at(1):
        n = units(at.site)
        kept[at.site.name] = torch.randperm(n, generator=rng)[: max(1, round((1 - share) * n))].sort().values
    keep(made, 1, kept)
    return made


@CHECK.measures("zeros", "base", cheap=True)
def what_a_cut_is(run: Any) -> None:
    import torch

    from luthier.host import Adapted
    from luthier.host.narrow import smaller
    from luthier.host.places.units import exit_of, units
    from luthier.host.structure import structure_of

    for name in ("bert", "llama", "gpt2", "t5"):
        model = run.model(name, dtype="float64")
        base, batch = model.base, inputs(model, 3, 9)
        before = {k: v.clone() for k, v in base.state_dict().items()}
        # the layers of a T5 share a table of positions by head: its heads stay
        made = left_out(base, CUT, cut_heads=0.0 if name == "t5" else CUT).double()

        def logits(base: Any, made: Any, batch: Any = batch) -> Any:
            adapted: Any = Adapted(base)
            with torch.no_grad(), adapted.attached(made):
                out = adapted(batch)
                return out.hidden if out.logits is None else out.logits

        attached = logits(base, made)
        handles = []
        structure = structure_of(base)
        for at in made.at(1):
            down, n = exit_of(structure, at.site), units(at.site)
            stays = torch.zeros(n, dtype=torch.float64)
            stays[at.values["kept"]] = 1
            stays = stays.repeat_interleave(down.in_features // n)
            handles.append(
                base.get_submodule(down.path).register_forward_pre_hook(
                    lambda module, args, stays=stays: (args[0] * stays,)
                )
            )
        whole = left_out(base, 0.0).double()
        want = logits(base, whole)
        for handle in handles:
            handle.remove()
        if torch.allclose(want, logits(base, whole), atol=1e-3):
            raise RuntimeError("the cut changes nothing, so that equality would show nothing")
        run.record("zeros", (attached - want).abs().max(), arm=f"{name}, attached")
        run.record("zeros", (logits(*smaller(base, made)) - want).abs().max(), arm=f"{name}, copied")
        run.record("base", sum(int((before[k] != v).sum()) for k, v in base.state_dict().items()), arm=name)


@CHECK.measures("speed")
def time_of_what_is_left(run: Any) -> None:
    import statistics
    import time

    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.host.narrow import smaller

    model = run.model("minilm")
    batch = inputs(model, 8, 64)
    small, rest = smaller(model.base, left_out(model.base, CUT))
    sides = {
        "whole": (model.base, Adaptation.new(lt.methods.PromptTuning(length=LENGTH), model.base)),
        "smaller": (small, rest),
    }
    took: dict[str, list[float]] = {name: [] for name in sides}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(TURNS):  # in turns, so that what else the machine does meets both
            for name, (base, made) in sides.items():
                adapted: Any = Adapted(base)
                with torch.no_grad(), adapted.attached(made):
                    began = time.perf_counter()
                    adapted(batch)
                    took[name].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    median = {name: statistics.median(times[2:]) for name, times in took.items()}
    run.record("speed", median["whole"] / median["smaller"], **median)


@CHECK.measures("before", "after")
def what_it_costs(run: Any) -> None:
    import luthier as lt
    from luthier.methods.prompts.skip import Skip

    class NotAgain(Skip):
        """Without the last stage."""

        def phases(self):  # type: ignore[no-untyped-def]
            return super().phases()[:2]

    model, data = run.model("minilm"), run.data("pydocs")
    arms = {"prompt": lt.methods.PromptTuning(length=LENGTH), "skip": Skip(length=LENGTH, cut=CUT)}
    run.compare("after", model, data, arms, seeds=SEEDS, **SETTINGS)
    # until the cut both are the soft prompt's training: at its best rate
    rate = next(r.about["rate"] for r in run.records if (r.claim, r.arm) == ("after", "prompt"))
    for by in ("attribution", "random"):
        for seed in SEEDS:
            method = NotAgain(length=LENGTH, cut=CUT, by=by)

            def scored(method: Any = method, seed: int = seed) -> float:
                fitted = run.fit(model, data, method, seed=seed, rate=rate, **SETTINGS)
                return float(fitted.score(data.test)[data.task.metric])

            found = run.once(["before", by, seed], scored)
            run.record("before", found, arm=by, seed=seed, rate=rate)

"""Run as a script: fits that are killed for real, after writes in every phase and at random moments, then given again.

    python killed_runs.py FOLDER SEED      prints JSON: for every scenario, one object per kill

Every fit is a forked child, so that libraries are imported once. A kill is os.kill(own pid, SIGKILL) inside the n-th visit of a
point; that the child died by that signal shows that the point was reached.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)

import train_testbed as bed  # noqa: E402

from luthier.host.part import Phase, method  # noqa: E402
from luthier.methods.low_rank.lora import LoRA  # noqa: E402
from luthier.signals.optimisers import adamw  # noqa: E402
from luthier.train import checkpoint, outcome  # noqa: E402
from luthier.train.fit import fit  # noqa: E402

outcome.learning_curve = lambda *_: "<svg/>"  # the picture takes longer than the run


class Walk(torch.optim.Optimizer):
    """A forward-only search that draws from the run's generator and remembers in its state."""

    forward_only = True

    def __init__(self, named, run):
        super().__init__(list(named.items()), {})
        self.run = run

    @torch.no_grad()
    def step(self, closure):
        before = float(closure())
        moves = [
            (p, 0.02 * torch.randn(p.shape, generator=self.run.rng)) for p in self.param_groups[0]["params"]
        ]
        for p, move in moves:
            p.add_(move)
        after = float(closure())
        if after > before:
            for p, move in moves:
                p.sub_(move)
        self.run.state.setdefault("losses", []).append(min(before, after))
        return torch.tensor(min(before, after))


@method("everything_for_tests", targets="attention.query | attention.value")
class Everything(LoRA):
    """A plan with a companion, state, extra tensors, every generator, changed shapes, and a step of its own."""

    def layout(self, site):
        return {"rank": self.rank}

    def tensors(self, site, layout):
        return {"A": (layout["rank"], site.in_features), "B": (site.out_features, layout["rank"])}

    def phases(self):
        return [
            Phase("teacher", 2, uses=("teacher",), enter=self.teach),
            Phase("distil", share=1, objective=self.distil, every={2: self.disturb}, leave=self.note),
            Phase("shrink", share=1, enter=self.shrink, every={2: self.again}, optimiser=self.sgd),
            Phase("walk", 3, optimiser=Walk),
            Phase("average", 2, step=self.average),
        ]

    def teach(self, run):
        run.companion("teacher", LoRA(rank=2), seed=1)

    def distil(self, run, batch):
        out = run.adapted(batch)
        with torch.no_grad(), run.adapted.using("teacher"):
            teacher = run.adapted(batch)
        return run.objective.mean(out, batch) + (out.logits - teacher.logits).pow(2).mean()

    def disturb(self, run):
        import numpy as np

        for p in run.named.values():
            p.data += 1e-3 * torch.randn_like(p) * float(np.random.rand()) * random.random()

    def note(self, run):
        run.extra["seen"] = torch.stack([a.values["A"].detach().mean() for a in run.main.at()])

    def shrink(self, run):
        old = {a.site.name: {k: v.detach().clone() for k, v in a.values.items()} for a in run.main.at()}
        layout = {"0": {name: {"rank": 1} for name in old}}
        run.main.reform(
            layout,
            lambda placed, site, specs: (
                {"A": old[site.name]["A"][:1], "B": old[site.name]["B"][:, :1]} if specs else {}
            ),
        )

    def sgd(self, named, run):
        return adamw(named, run, rate=3e-3, factors={"head": 2.0})

    def again(self, run):
        run.reset_optimiser({n: lambda s: s for n in run.named})

    def average(self, run):
        for a in run.main.at():
            a.values["B"].data.mul_(0.9).add_(run.extra["seen"].mean())


SCENARIOS = {
    "everything": (lambda: Everything(rank=2), {"steps": 8}),
    "best": (lambda: bed.lora(), {"epochs": 4, "patience": 2, "rate": 3e-2}),
}


def run(scenario, out):
    make, options = SCENARIOS[scenario]
    data = bed.data(train=48, validation=16, test=16)
    fit(bed.model(), data, make(), out=out, batch_size=16, progress=False, checkpoint_every=1, **options)


def child(act, barrier, wait=None):
    """Fork, put `barrier` in place, act. Returns the wait status; wait: seconds after which the parent kills."""
    pid = os.fork()
    if pid == 0:
        checkpoint._barrier = barrier
        try:
            act()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if wait is not None:
        time.sleep(wait)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def result(out):
    """What must be equal bit by bit."""
    held = {n: (out / n).read_bytes() for n in ("adaptation/tensors.safetensors", "predictions.jsonl")}
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    metrics = json.loads((out / "metrics.json").read_text())
    return held, log, metrics["validation"], metrics["test"], metrics["steps"]


def choose(scenario, visits, took, rng):
    """(point, which visit of it, seconds until a kill from outside) of the kills of a scenario."""
    steps = visits.count("renamed")  # one write per step: inside every phase
    chosen = sorted(rng.sample(range(1, steps + 1), min(STEPS[scenario], steps)))
    return [*(("renamed", n, None) for n in chosen), ("any moment", 0, rng.uniform(0.05, 0.8) * took)]


STEPS = {"everything": 6, "best": 2}


def kill_and_resume(scenario, folder, rng):
    folder.mkdir()
    points = folder / "points.txt"

    def note(point):
        with open(points, "a") as f:
            f.write(point + "\n")

    run(scenario, folder / "warm")  # what is imported here, children need not import
    began = time.monotonic()
    assert child(lambda: run(scenario, folder / "whole"), note) == 0
    took = time.monotonic() - began
    expected, found = result(folder / "whole"), []
    for number, (point, visit, wait) in enumerate(
        choose(scenario, points.read_text().splitlines(), took, rng)
    ):
        out, count = folder / str(number), [0]

        def barrier(name, point=point, visit=visit, count=count):
            count[0] += name == point
            if name == point and count[0] == visit:
                os.kill(os.getpid(), signal.SIGKILL)

        status = child(lambda out=out: run(scenario, out), barrier, wait)
        reached = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        again = child(lambda out=out: run(scenario, out), lambda name: None)
        left = [p.name for p in (out / "checkpoints").iterdir() if not p.name.isdecimal()]
        same = again == 0 and result(out) == expected
        found.append(
            {"point": point, "visit": visit, "reached": reached, "resumed": again, "left": left, "same": same}
        )
    return found


def main(folder, seed):
    rng = random.Random(seed)
    print(json.dumps({s: kill_and_resume(s, Path(folder) / s, rng) for s in SCENARIOS}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

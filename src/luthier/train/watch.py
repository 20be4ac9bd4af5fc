"""What a run calls after every step: it logs, evaluates, remembers the best, stops early and saves."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from luthier.errors import RunError
from luthier.train import checkpoint, memory, snapshot
from luthier.train.folder import Log, RunFolder
from luthier.train.processes import Processes
from luthier.train.progress import Silent
from luthier.train.run import Run, Watcher

SECONDS_BETWEEN = 30.0
"""Time between checkpoints where no number of steps is asked for; longer where writing one takes long."""
COST = 20
"""A checkpoint is written at most once in this many times what the last one took."""
READ_EVERY = 20
"""Steps between readings of the loss on a GPU, which wait for it."""


class Watch(Watcher):
    """score() evaluates on validation: {metric: value}; metric: the one that decides; sign: +1 if more is better."""

    def __init__(
        self,
        run: Run,
        *,
        log: Log,
        folder: RunFolder | None,
        processes: Processes,
        progress: Silent,
        score: Callable[[], dict[str, float]] | None,
        metric: str,
        higher_is_better: bool = True,
        evaluate_every: int,
        patience: int | None = None,
        checkpoint_every: int | None = None,
    ):
        self.run, self.log, self.folder, self.processes = run, log, folder, processes
        self.progress, self.score, self.metric = progress, score, metric
        self.sign = 1 if higher_is_better else -1
        self.evaluate_every, self.patience, self.checkpoint_every = evaluate_every, patience, checkpoint_every
        self.seconds = {"train": 0.0, "evaluate": 0.0, "cache": 0.0}
        self.newest: dict[str, Any] | None = None  # {"total": step, "scores": {...}}
        self.best: dict[str, Any] | None = None  # {"value", "total", "scores", "card"}
        self.best_tensors: dict[str, Tensor] = {}
        self.worse = 0  # evaluations since the best
        self.predicted: int | None = None
        self.peak_bytes = self.resident = 0
        self.cached = 0  # bytes that a prefix cache holds
        self.uncached = "asked not to"  # why there is none
        self.heaviest = self.measured_phase = -1  # the step whose tensors are counted
        self.resident_set = memory.Resident(run.device)
        self.written_at, self.write_took, self.written = time.monotonic(), 0.0, -1
        self.mark = time.monotonic()
        self.shown_phase = -1

    def begin(self) -> None:
        """Training starts: the clock and the measurement of memory too."""
        self.resident_set.start()
        self.mark = time.monotonic()

    def end(self) -> None:
        """Training is over."""
        self.read()
        self.lap("train")
        self.resident = max(self.resident, self.resident_set.stop())

    def around_step(self, run: Run) -> AbstractContextManager[Any]:
        if self.measured_phase != run.index:
            self.measured_phase = run.index
            first = (
                run.total - run.step
            )  # of the whole phase: a resumed run measures the step that it would have measured
            self.heaviest = run.batches.heaviest(run.stream, first, run.steps[run.index])[0]
        return self.measured(run) if run.total == self.heaviest else nullcontext()

    @contextmanager
    def measured(self, run: Run) -> Iterator[None]:
        """Count tensors in the step that has the phase's largest batch."""
        if self.processes.sharded and torch.device(run.device).type == "cpu":
            yield  # weights that come and go in place are not seen by the count
            return
        before = memory.standing(run) + self.cached
        with memory.counted(run.device) as count:
            yield
        self.peak_bytes = max(self.peak_bytes, before + count.peak)

    # -- after every step

    def after_step(self, run: Run) -> None:
        if run.index != self.shown_phase:
            self.progress.phase(run.phase.name, run.steps[run.index], run.step - 1)
            self.shown_phase = run.index
        loss = self.read() if torch.device(run.device).type == "cpu" or run.total % READ_EVERY == 0 else None
        self.progress.step(run.step, len(run.batches.rows(run.stream, run.total - 1)), loss)
        self.lap("train")
        if self.score is not None and "main" in run.uses and self.time_to_evaluate():
            self.evaluate()
        if self.time_to_save():
            self.save()

    def after_phase(self, run: Run) -> None:
        if run.last:
            self.put_best_back()

    def lap(self, what: str) -> None:
        """Book the time since the last lap."""
        now = time.monotonic()
        self.seconds[what] += now - self.mark
        self.mark = now

    def read(self) -> float | None:
        """Take the losses that are known now into the log; returns the last."""
        value = None
        rate = self.run.rate
        for step, value in self.run.read_losses():
            self.log.add({"step": step + 1, "phase": self.run.phase.name, "loss": value, "rate": rate})
        return value

    # -- validation

    def time_to_evaluate(self) -> bool:
        at_end = self.run.last and self.run.step == self.run.steps[self.run.index]
        return at_end or self.run.total % self.evaluate_every == 0

    def evaluate(self) -> None:
        assert self.score is not None
        self.read()
        modes = {name: a.training for name, a in self.run.adapted.adaptations.items()}
        with self.resident_set.paused():
            scores = self.score()
        for name, training in modes.items():
            self.run.adapted.adaptations[name].train(training)
        self.newest = {"total": self.run.total, "scores": scores}
        self.log.add({"step": self.run.total, "phase": self.run.phase.name, "validation": scores})
        self.progress.score(self.metric, scores[self.metric])
        self.lap("evaluate")
        if self.patience is not None and self.run.last:
            self.keep_the_best(scores[self.metric])

    def keep_the_best(self, value: float) -> None:
        """Remember the adaptation if it is better than all before; stop the phase after `patience` evaluations without."""
        run = self.run
        if self.best is None or self.sign * value > self.sign * self.best["value"]:
            card = copy.deepcopy(run.main.card())
            self.best = {"value": value, "total": run.total, "card": card, "scores": self.newest["scores"]}  # type: ignore[index]
            self.best_tensors = {k: v.detach().clone() for k, v in run.main.state(everything=True).items()}
            self.worse = 0
        else:
            self.worse += 1
            assert self.patience is not None
            run.stopped = run.stopped or self.worse >= self.patience

    def put_best_back(self) -> None:
        """Replace the main adaptation by the best one seen in the last phase."""
        from luthier.host import Adaptation

        if self.best is None or self.best["total"] == self.run.total:
            return
        adapted = self.run.adapted
        best = Adaptation.from_card(self.best["card"], adapted.base).to(self.run.device)
        best.load_state(self.best_tensors, everything=True)
        adapted.detach("main")
        adapted.attach("main", best)
        self.newest = {"total": self.best["total"], "scores": self.best["scores"]}

    # -- checkpoints

    def time_to_save(self) -> bool:
        if self.checkpoint_every is not None:
            return self.run.total % self.checkpoint_every == 0
        if self.processes.world > 1 and self.run.total % READ_EVERY:
            return False  # the clock is asked rarely, because all must agree
        waited = time.monotonic() - self.written_at
        return bool(self.processes.from_main(waited > max(SECONDS_BETWEEN, COST * self.write_took)))

    def save(self) -> None:
        """Write a checkpoint: the run, the best so far, the log's length."""
        if self.written == self.run.total:
            return
        self.read()
        began = time.monotonic()
        random_of = self.processes.gather(snapshot.random_states(self.run))
        self.processes.main_first(lambda: self.write(random_of))
        self.written, self.written_at = self.run.total, time.monotonic()
        self.mark = time.monotonic()  # time spent on saving counts as nobody's
        self.write_took = self.mark - began

    def write(self, random_of: list[dict[str, Tensor]]) -> None:
        """Of the main process, where it has a folder. random_of: every process's random states."""
        if self.folder is None:
            return
        state, tensors = snapshot.take(self.run, random_of)
        state["watch"] = {
            "log": self.log.position(),
            "seconds": self.seconds,
            "newest": self.newest,
            "best": self.best,
            "worse": self.worse,
            "predicted": self.predicted,
            "peak": self.peak_bytes,
            "resident": max(self.resident, self.resident_set.read()),
        }
        tensors |= {f"best/{k}": v for k, v in self.best_tensors.items()}
        checkpoint.write(self.folder.checkpoints, self.run.total, state, tensors)

    def put_back(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on where a checkpoint was written."""
        snapshot.put_back(self.run, state, tensors)
        held = state["watch"]
        self.seconds, self.newest, self.best = dict(held["seconds"]), held["newest"], held["best"]
        self.worse, self.predicted = held["worse"], held["predicted"]
        self.peak_bytes, self.resident = held["peak"], held["resident"]
        self.best_tensors = snapshot.under(tensors, "best/")
        self.written = self.run.total
        self.shown_phase = self.run.index if self.run.entered else -1
        if self.run.entered and self.run.index < len(self.run.phases):
            self.progress.phase(self.run.phase.name, self.run.steps[self.run.index], self.run.step)
        if self.processes.main:
            self.log.cut(held["log"])
        self.written_at = self.mark = time.monotonic()

    def final_scores(self) -> dict[str, float]:
        """Validation of the adaptation as it is now, evaluated again only if something changed it since."""
        if self.score is None:
            return {}
        known = self.newest is not None and (
            self.newest["total"] == self.run.total
            or (self.best is not None and self.newest["total"] == self.best["total"])
        )
        if self.run.phases[-1].leave is not None or not known:
            self.newest = {"total": self.run.total, "scores": self.score()}
        if not self.newest:
            raise RunError("There is no validation figure.")
        return dict(self.newest["scores"])

"""A comparison's runs spread over worker processes of this machine, or over a Ray cluster.

The comparison itself stays one process, which alone writes its results; a worker is given an order (JSON) and answers with the
run's metrics. What was made lies in the run's folder. Model and data go to a worker once, by pickle, between processes
of one user and never through a file.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier.compare.orders import Made, Work, order_of
from luthier.errors import OptionError, RunError

DIED = (
    "The process of this run was ended from outside, often because memory ran out: give the same command again, "
    "with fewer --workers or a smaller --micro-batch."
)


class Ended(BaseException):
    """The comparison was interrupted: what a worker was doing is not a failure of its run."""


class Spread:
    """Runs at once, `at_once` at most. As a context it ends its workers."""

    def __init__(self, work: Work, at_once: int):
        import torch

        self.work, self.at_once, self.ending = work, at_once, False
        self.threads = max(1, torch.get_num_threads() // at_once)
        try:
            self.parcel = pickle.dumps(work)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise OptionError(
                f"The model or the data cannot be sent to other processes ({error}): define their classes in a module that "
                "can be imported, or leave out workers."
            ) from None

    def fit(self, model: Any, data: Any, method: Any, *, out: Path | None, **chosen: Any) -> Made:
        """What `fit` does, in another process. Called by several threads."""
        order = {**order_of(method, out, chosen), "threads": self.threads}
        try:
            answer = self.answer(order)
        except RunError:
            if self.ending:
                raise Ended from None
            raise
        return Made.of(answer, order, model)

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """`Work.carry_out` of the order, elsewhere. RunError where that process died."""
        raise NotImplementedError

    def __enter__(self) -> Spread:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        self.ending = True
        self.end()

    def end(self) -> None:
        """End every worker, whatever it does."""


class Workers(Spread):
    """Processes of this machine. One that dies fails the run that it had; another takes its place."""

    def __init__(self, work: Work, count: int):
        super().__init__(work, count)
        self.idle: queue.Queue[Worker | None] = queue.Queue()
        self.living: set[Worker] = set()
        for _ in range(count):
            self.idle.put(None)  # begun when it is wanted

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        worker = self.idle.get()
        try:
            if self.ending:
                raise Ended
            if worker is None:
                worker = Worker(self.parcel)
                self.living.add(worker)
            return worker.ask(order)
        except (OSError, ValueError):
            if worker is not None:
                worker.end()
                self.living.discard(worker)
            worker = None
            raise RunError(DIED) from None
        finally:
            self.idle.put(worker)

    def end(self) -> None:
        for worker in list(self.living):
            worker.end()


class Worker:
    """A process that runs `luthier.compare.worker`. It ends when this one does."""

    def __init__(self, parcel: bytes):
        path = os.pathsep.join(p for p in sys.path if p)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "luthier.compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.to, self.back = self.process.stdin, self.process.stdout
        self.to.write(len(parcel).to_bytes(8, "little") + parcel)

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Its answer. OSError or ValueError if it ends before."""
        self.to.write(json.dumps(order).encode() + b"\n")
        self.to.flush()
        return json.loads(self.back.readline())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.to, self.back):
            with suppress(OSError):
                pipe.close()


def spread_over(work: Work, workers: int | None, ray: str | None) -> Spread:
    """Workers of this machine, or of a Ray cluster. OptionError if Ray is not installed or not there."""
    if ray is None:
        assert workers is not None
        return Workers(work, workers)
    from luthier.compare.cluster import Cluster

    return Cluster(work, ray, workers)

"""A comparison under torchrun: the first process walks through it, and all of them join in every fit.

Orders go through the store that brought the processes together: waiting there has no limit of time, as waiting in a collective
has, while the first process fits baselines or predicts test rows.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from luthier.compare.comparison import Comparison
from luthier.compare.orders import Work, order_of
from luthier.errors import LuthierError, RunError
from luthier.train.launched import store

CALLS = itertools.count()
PATIENCE = 60.0
"""Seconds in which all processes must have failed, if one has: else it failed alone, and the others wait for it in vain."""
LOOK = 0.02


class FailedAlone(RunError):
    """One process of several could not go on; the comparison cannot either."""


class Together:
    """The processes of one comparison."""

    def __init__(self, work: Work, rank: int, world: int):
        self.work, self.rank, self.world = work, rank, world
        self.store = store()
        self.call, self.number = f"luthier/compare/{next(CALLS)}", 0

    # -- the first process

    def lead(self, walk: Callable[[], Comparison]) -> Comparison:
        """`walk`, which fits by `self.fit`; the others are told how it ends."""
        try:
            made = walk()
        except BaseException as error:
            self.tell({"failed": str(error) or type(error).__name__})
            raise
        self.tell({"results": made.results, "folder": str(made.folder)})
        return made

    def fit(self, model: Any, data: Any, method: Any, *, out: Path | None, **chosen: Any) -> Any:
        """What `fit` does, by all processes."""
        self.tell(order_of(method, out, chosen))
        try:
            return self.work.fit(model, data, method, out=out, **chosen)
        except LuthierError as error:
            self.all_failed(error)
            raise

    def tell(self, order: dict[str, Any]) -> None:
        self.number += 1
        self.store.set(f"{self.call}/{self.number}", json.dumps(order, default=str))

    # -- the others

    def follow(self) -> Comparison:
        """Join in every fit until the first process says that there are no more."""
        while True:
            self.number += 1
            order = json.loads(self.next_order())
            if "failed" in order:
                raise RunError(order["failed"])
            if "results" in order:
                return Comparison(order["results"], Path(order["folder"]))
            try:
                self.work.fitted(order)
            except LuthierError as error:
                self.all_failed(error)

    def next_order(self) -> bytes:
        key = f"{self.call}/{self.number}"
        while True:
            try:
                self.store.wait([key], timedelta(seconds=30))
                return self.store.get(key)
            except RuntimeError as error:  # also the store's own timeout
                if not is_timeout(error):
                    raise RunError("The first process has ended: give the same command again.") from None

    # -- all of them

    def all_failed(self, error: LuthierError) -> None:
        """Return if every process failed in this fit. Raises FailedAlone if not."""
        begun, key = time.monotonic(), f"{self.call}/{self.number}/failed"
        self.store.set(f"{key}/{self.rank}", "")
        while not all(self.store.check([f"{key}/{r}"]) for r in range(self.world)):
            if time.monotonic() - begun > PATIENCE:
                raise FailedAlone(str(error)) from error
            time.sleep(LOOK)


def is_timeout(error: RuntimeError) -> bool:
    return "timeout" in str(error).lower() or "timed out" in str(error).lower()

"""A comparison's runs on a Ray cluster: one task for each fit."""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import threading
from typing import Any

from luthier.compare.orders import Work
from luthier.compare.spread import DIED, Ended, Spread
from luthier.errors import OptionError, RunError

HELD: dict[str, Work] = {}
"""In a Ray worker: the work that it opened last, by digest, so that a model is opened once for many runs."""


class Cluster(Spread):
    """address: "local" for one on this machine, which is ended with the comparison; else of one that runs, "auto" finds it.

    workers: runs at once; None: one for each processor of the cluster. The machines must have luthier installed, and share
    the comparison's folder.
    """

    def __init__(self, work: Work, address: str, workers: int | None):
        self.ray = load_ray()
        local = address == "local"
        self.ours = not self.ray.is_initialized()
        if self.ours:
            begin(self.ray, None if local else address, workers)
        cores = int(self.ray.cluster_resources().get("CPU", 1))
        super().__init__(work, max(1, min(workers or cores, cores)))
        self.room = threading.Semaphore(self.at_once)
        if not local:
            self.threads = 1  # a task is given one processor, of whichever machine
        self.task = self.ray.remote(num_cpus=1, max_retries=0)(carry_out)
        self.digest = hashlib.sha256(self.parcel).hexdigest()
        self.held = self.ray.put(self.parcel)

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        with self.room:
            if self.ending:
                raise Ended
            try:
                return self.ray.get(self.task.remote(self.digest, self.held, order))
            except self.ray.exceptions.RayTaskError as error:
                said = str(error).strip().splitlines()[-1]
                raise RunError(f"The run failed on the cluster: {said}") from None
            except self.ray.exceptions.RayError:
                raise RunError(DIED) from None

    def end(self) -> None:
        if self.ours:
            self.ray.shutdown()


def carry_out(digest: str, parcel: bytes, order: dict[str, Any]) -> dict[str, Any]:
    """In a Ray worker."""
    if digest not in HELD:
        HELD.clear()
        HELD[digest] = pickle.loads(parcel)
    return HELD[digest].carry_out(order)


def load_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise OptionError(
            "Ray is not installed, which --ray needs: pip install 'luthier[ray]', or use --workers on this machine."
        ) from None


def begin(ray: Any, address: str | None, workers: int | None) -> None:
    """A cluster of our own, or a connection to one. OptionError if there is none."""
    quiet = {"include_dashboard": False} if address is None else {}
    size = {"num_cpus": workers} if address is None and workers is not None else {}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="error", **quiet, **size)
    except Exception as error:  # Ray raises plain ones too, where a node does not come up in its 30 s
        ray.shutdown()
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if address is None:
            raise OptionError(f"Ray did not start here ({said}): try again, or use --workers.") from None
        raise OptionError(
            f"No Ray cluster answers at {address!r} ({said}): begin one with `ray start --head`, or use --ray local."
        ) from None

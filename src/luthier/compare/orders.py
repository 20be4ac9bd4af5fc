"""One fit of a comparison, given to another process: the order as JSON, and how it is carried out."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError, RunError

CHOSEN = ("seed", "rate", "epochs", "batch_size", "steps")
"""What a comparison decides of a fit, run by run; everything else is the same for all of them."""


def order_of(method: Any, out: Path | None, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A fit as JSON."""
    from luthier.host.options import to_card

    where = None if out is None else str(Path(out).resolve())
    return {
        "method": to_card(method),
        "out": where,
        "chosen": {k: chosen[k] for k in CHOSEN if k in chosen},
    }


@dataclass
class Work:
    """What the fits of a comparison have in common."""

    fit: Callable[..., Any]
    model: Any
    data: Any
    settings: Mapping[str, Any]
    kinds: tuple[type, ...] = ()
    """Classes of the methods: to have this opened registers them, wherever they are defined."""

    def fitted(self, order: Mapping[str, Any]) -> Any:
        from luthier.host.options import from_card
        from luthier.host.part import Part
        from luthier.methods import load_all

        load_all()
        method = from_card(order["method"], Part)
        return self.fit(
            self.model,
            self.data,
            method,
            out=order["out"],
            progress=False,
            **{**self.settings, **order["chosen"]},
        )

    def carry_out(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """{"metrics": {...}}, or {"error": one line} for what a user can mend, or {"fault": ...} for what is ours."""
        import torch

        with suppress(TypeError, ValueError):  # a run that was begun with other threads goes on with those
            torch.set_num_threads(held_threads(order["out"]) or int(order["threads"]))
        try:
            return {"metrics": self.fitted(order).metrics}
        except LuthierError as error:
            return {"error": str(error)}
        except Exception as error:
            traceback.print_exc()
            return {"fault": f"{type(error).__name__}: {error}"}


def held_threads(out: str | None) -> int | None:
    """Threads that a run folder was begun with."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((Path(out or os.devnull) / "run.json").read_text())["surroundings"]["threads"])
    return None


@dataclass
class Made:
    """A run that another process made. Its adaptation is loaded when it is asked to predict."""

    metrics: dict[str, Any]
    folder: Path | None
    model: Any

    @classmethod
    def of(cls, answer: Mapping[str, Any], order: Mapping[str, Any], model: Any) -> Made:
        """Raises RunError where the other process could not make the run, or made it where we cannot see it."""
        if "fault" in answer:  # as it would be in this process: not a failure of an arm
            raise RuntimeError(f"in a worker: {answer['fault']}")
        if "metrics" not in answer:
            raise RunError(str(answer.get("error")))
        folder = None if order["out"] is None else Path(order["out"])
        if folder is not None and not (folder / "DONE").is_file():
            raise RunError(
                f"The run in {folder} was made on a machine that does not share this folder: choose one that all see for --out."
            )
        return cls(dict(answer["metrics"]), folder, model)

    def predict(self, inputs: Any) -> Any:
        return self._fitted().predict(inputs)

    def predict_proba(self, inputs: Any) -> Any:
        return self._fitted().predict_proba(inputs)

    def answers(self, split: Any) -> Any:
        return self._fitted().answers(split)

    def _fitted(self) -> Any:
        from luthier.methods import load_all
        from luthier.train.fitted import load_fitted

        load_all()  # a card names its method and its head, which this process may not have met
        assert self.folder is not None
        return load_fitted(self.folder, self.model)

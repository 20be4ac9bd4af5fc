"""A sequence of tasks on one base: one fit after another, each beginning with what the one before hands on (`Part.carry`).

Each task keeps an adaptation of its own, so that with the task's name at hand an earlier one answers exactly as it did. What a method
hands on is the method's: by default its tensors go on as they are (sequential tuning); Q-Tuning makes them a queue.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.errors import OptionError
from luthier.train.fit import fit

SUMMARY = "stream.json"
"""In the stream's folder: the tasks in order, their folders and figures."""


@dataclass
class Stream:
    """Tasks in order, each with what was fitted for it. `scores`: see `figures`."""

    names: list[str]
    fitted: list[Any]
    scores: list[dict[str, Any]] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        """What was fitted for a task. Raises OptionError for an unknown one."""
        if name not in self.names:
            raise OptionError(
                f"No task of this stream is called {name!r}. There are: {', '.join(self.names)}."
            )
        return self.fitted[self.names.index(name)]

    def mean(self, which: str = "own") -> float:
        """Mean test score over the tasks that have this figure: own, or last."""
        found = [s[which] for s in self.scores if s[which] is not None]
        if not found:
            raise OptionError(f"No task of this stream has a test score {which!r}: give data with test rows.")
        return float(sum(found) / len(found))


def stream(
    model: Any,
    tasks: Sequence[Any] | Mapping[str, Any],
    method: Any,
    *,
    out: str | Path | None = None,
    afresh: bool = False,
    after: Any = None,
    seed: int = 0,
    say: Any = None,
    **settings: Any,
) -> Stream:
    """Fit `method` to every task in turn. tasks: data sets, or {name: data set}.

    out: a folder with one run folder per task; the same call on it goes on where it stopped, as `fit` does. afresh: every task begins
    anew, which is what continual methods are measured against. after: what the first task begins with. say: told a line before each
    task. seed: of the first task, one more for each further one. settings: as of `luthier.fit`, the same for every task.
    """
    named = dict(tasks) if isinstance(tasks, Mapping) else {_named(d, i): d for i, d in enumerate(tasks)}
    if len(named) < 1:
        raise OptionError("A stream needs tasks: give one data set or more.")
    folders = [f"{i + 1:03d}-{re.sub(r'[^A-Za-z0-9_-]+', '-', n)[:40]}" for i, n in enumerate(named)]
    made = Stream(list(named), [])
    for i, (name, data) in enumerate(named.items()):
        if say is not None:
            say(f"task {i + 1} of {len(named)}: {name}")
        place = Path(out) / folders[i] if out is not None else None
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
        made.fitted.append(fit(model, data, method, out=place, after=after, seed=seed + i, **settings))
        after = None if afresh else made.fitted[-1]
    made.scores = figures(made, list(named.values()))
    if out is not None:
        _write(Path(out), made, folders)
    return made


def figures(made: Stream, tasks: Sequence[Any]) -> list[dict[str, Any]]:
    """For each task its test score (the task's metric) by its own adaptation, and by the last one, which shows forgetting.

    last is None where the last task's labels are others, so that its head cannot answer; both are None without test rows.
    """
    end, found = made.fitted[-1], []
    for name, fitted, data in zip(made.names, made.fitted, tasks, strict=True):
        own = fitted.metrics.get("test", {}).get(data.task.metric)
        same = (end.task.kind, end.task.labels) == (data.task.kind, data.task.labels)
        last = own if fitted is end else None
        if data.test is not None and same and fitted is not end:
            last = float(end.score(data.test)[data.task.metric])
        found.append({"task": name, "metric": data.task.metric, "own": own, "last": last})
    return found


def _named(data: Any, index: int) -> str:
    return f"{index + 1} {Path(str(data.name)).name.removeprefix('builtin:')}"


def _write(out: Path, made: Stream, folders: Sequence[str]) -> None:
    from luthier.train.checkpoint import replace_bytes

    shown = [{**s, "folder": folder} for s, folder in zip(made.scores, folders, strict=True)]
    replace_bytes(out / SUMMARY, json.dumps({"format": 1, "tasks": shown}, indent=1).encode())

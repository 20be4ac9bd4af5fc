"""One prompt from several tasks, and what a new task begins with (Wang et al. 2023, MPT, S070).

    joint = share(model, {"a": data_a, "b": data_b}, out="shared/")       # teachers, then P and every task's u_k, v_k
    start = one_task(joint, model)                                        # P and the mean of the factors, as `mpt`
    lt.fit(model, target, MPT(length=20), after=start)               # P * (u v) on the target
    lt.fit(model, target, MPT(length=20, source=RankOne(train_shared=False)), after=start)      # length + width numbers

A group of targets that shares P: share(model, targets, after=joint).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from luthier.errors import OptionError
from luthier.host.adaptation import Adaptation
from luthier.host.options import to_card
from luthier.methods.prompts.mpt import MPT
from luthier.methods.prompts.mpt_group import MPTGroup
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.sources.rank_one import RankOne
from luthier.sources.task_factors import TaskFactors


def share(
    model: Any,
    tasks: Mapping[str, Any],
    method: MPTGroup | None = None,
    *,
    teachers: Mapping[str, Any] | None = None,
    teacher_steps: int | None = None,
    after: Any = None,
    out: str | Path | None = None,
    **settings: Any,
) -> Any:
    """Train one shared prompt and every task's factors; returns the fitted `mpt_group`.

    tasks: name -> data of texts to write (classifications: `as_written`). method: its options; None: the defaults. teachers: by the
    same names; None: a plain prompt is tuned on each task first, for `teacher_steps` (None: as many as the joint training),
    where the method distils. after: the `mpt_group` of other tasks: its P, and the mean of its factors for every task.
    out: a folder for all the runs, each of which resumes. settings go to `luthier.fit`. Raises OptionError for fewer than two
    tasks, and for tasks whose answers are not written.
    """
    from luthier.train.fit import fit

    if len(tasks) < 2:
        raise OptionError("A shared prompt needs two tasks at least; for one there is the method mpt.")
    if odd := [name for name, data in tasks.items() if data.task.kind != "text2text"]:
        raise OptionError(
            f"The task {odd[0]!r} is a {tasks[odd[0]].task.kind}: tasks share a prompt where answers are written (text2text)."
        )
    joint = replace(method or MPTGroup(), tasks=tuple(tasks))
    bare = {name: replace(data, validation=None, test=None) for name, data in tasks.items()}

    def at(name: str) -> dict[str, Any]:
        return {} if out is None else {"out": Path(out) / name}

    if joint.distil and teachers is None:
        plain = PromptTuning(length=joint.length, start=joint.start)
        own = {**settings, "steps": teacher_steps or settings.get("steps")}
        teachers = {
            name: fit(model, data, plain, **own, **at(f"teacher-{name}")) for name, data in bare.items()
        }
    first = next(iter(bare.values()))
    streams = {name: data.train for name, data in bare.items()}
    given = {name: (teachers or {})[name] for name in joint.companions}
    begun = None if after is None else spread(after, model, joint.tasks)
    return fit(model, first, joint, streams=streams, companions=given, after=begun, **settings, **at("joint"))


def as_written(data: Any) -> Any:
    """A classification as texts to write: the names of its labels. Data of texts stay as they are."""
    from luthier.models.testbeds.tasks import as_text2text

    return as_text2text(data) if data.task.kind == "classification" else data


def one_task(joint: Any, model: Any, task: str | None = None) -> Adaptation:
    """The `mpt` adaptation of one task of a group; None: with the mean of the tasks' factors, for a new one.

    OptionError for an unknown task, or an adaptation that is no group.
    """
    adaptation, names = _group(joint)
    if task is not None and task not in names:
        raise OptionError(f"No task is called {task!r}; there are {', '.join(names) or 'none with names'}.")
    old: Any = adaptation.method
    source = RankOne(rank=old.source.rank, initial=old.source.initial, std=old.source.std)
    made = _blank(
        adaptation, MPT(length=old.length, targets=old.targets, start=old.start, source=source), model
    )
    _fill(made, adaptation, lambda x: x.mean(0) if task is None else x[names.index(task)])
    return made


def spread(joint: Any, model: Any, tasks: tuple[str, ...]) -> Adaptation:
    """A group of other tasks that begins with this one's prompt and, for each task, the mean of its factors."""
    adaptation, _ = _group(joint)
    old: Any = adaptation.method
    made = _blank(adaptation, replace(old, tasks=tasks), model)
    _fill(made, adaptation, lambda x: x.mean(0).expand(len(tasks), *x.shape[1:]))
    return made


def _group(joint: Any) -> tuple[Adaptation, tuple[str, ...]]:
    adaptation = getattr(joint, "adaptation", joint)
    if not isinstance(adaptation, Adaptation) or not isinstance(adaptation.method, MPTGroup):
        raise OptionError(
            "This is no shared prompt of several tasks: give what `luthier prompts share` wrote."
        )
    if not isinstance(adaptation.method.source, TaskFactors):
        raise OptionError("This group has no factors of its tasks: leave its source as it is.")
    return adaptation, adaptation.method.tasks


def _blank(like: Adaptation, method: Any, model: Any) -> Adaptation:
    return Adaptation.from_card({**like.card(), "method": to_card(method)}, model.base)


@torch.no_grad()
def _fill(made: Adaptation, old: Adaptation, factors: Any) -> None:
    """Copy the shared prompt, and each factor as `factors` makes it of (tasks, ...)."""
    for a, b in zip(old.at(), made.at(), strict=True):
        for name, value in b.values.items():
            held = a.values[name]
            value.copy_(factors(held) if name.endswith(("_u", "_v")) else held)

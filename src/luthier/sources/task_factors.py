"""A shared prompt times each task's own thin factors (Wang et al. 2023, "Multitask Prompt Tuning", S070, its joint stage).

P_k = P * (U_k V_k)    P: (length, row), shared  U: (tasks, length, rank)  V: (tasks, rank, row); * is elementwise
Which task a row is of comes with the batch (`task`: a name or number, or one for each row); a row without one has the mean of the
tasks' factors, as a new task begins with.
trained: tensors * (length * row + rank * (length + row)) per site (the last term for each task of the part)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.errors import RunError
from luthier.host.context import Context
from luthier.host.part import Spec, register
from luthier.sources.rank_one import RankOne
from luthier.sources.rows import from_rows, shapes, to_rows


@register("task_factors")
class TaskFactors(RankOne):
    by_row = True

    def specs(self, part, site, layout, wanted):
        number = max(1, len(names(part)))

        def each(one: Spec) -> Spec:
            draw = one.start
            assert draw is not None  # factors have starts of their own
            return Spec(
                (number, *one.shape),
                lambda shape, rng: torch.stack([draw(one.shape, rng) for _ in range(number)]),
            )

        made = super().specs(part, site, layout, wanted)
        return {name: s if name in wanted else each(s) for name, s in made.items()}

    def make(self, part, site, t, ctx, made=None):
        which = chosen(names(part), ctx, next(iter(t.values())).device)
        out = {}
        for name, shape in shapes(part, site, t.layout).items():
            u, v = (t[f"{name}_{k}"] for k in "uv")
            u, v = (u.mean(0), v.mean(0)) if which is None else (u[which], v[which])
            out[name] = from_rows(to_rows(t[name]) * (u @ v), shape)
        return out


def names(part: object) -> Sequence[str]:
    """The tasks of a part; a part that knows of none has one, without a name."""
    found: Sequence[str] = getattr(part, "tasks", ())
    return found


def chosen(tasks: Sequence[str], ctx: Context | None, device: torch.device) -> Tensor | None:
    """(rows,) or (1,) the tasks of this forward's rows, as numbers; None: no task is given. RunError for an unknown one."""
    told = ctx.given.get("task") if ctx is not None and tasks else None
    if told is None:
        return None
    rows = told.tolist() if torch.is_tensor(told) else told
    rows = rows if isinstance(rows, (list, tuple)) else [rows]
    numbers = [tasks.index(row) if row in tasks else row for row in rows]
    for row in numbers:
        if not isinstance(row, int) or not 0 <= row < len(tasks):
            raise RunError(f"No task is called {str(row)[:60]!r}; there are {', '.join(tasks)}.")
    return torch.tensor(numbers, device=device)

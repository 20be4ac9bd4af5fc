"""Compare ways of adapting a model under one budget, beside baselines. Every run is kept; a killed comparison
continues.

The test rows never enter `fit`: each arm trains and chooses its learning rate without them, and they are
predicted once per run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from luthier.compare import baselines
from luthier.compare.arms import baseline_arms, parse_arms
from luthier.compare.budget import Budget
from luthier.compare.comparing import Comparing
from luthier.compare.comparison import Comparison
from luthier.compare.narrate import Narrator
from luthier.compare.orders import Work
from luthier.compare.sized import sized_methods
from luthier.errors import DataError, OptionError
from luthier.train.launched import speaks, world


def compare(
    model: Any,
    data: Any,
    methods: str | Iterable[Any],
    *,
    budget: str | Budget = "",
    sized: bool = False,
    seeds: int | Iterable[int] = 1,
    grid: bool = True,
    out: str | Path | None = None,
    title: str | None = None,
    seed: int = 0,
    epochs: float = 3,
    batch_size: int = 32,
    progress: bool = True,
    workers: int | None = None,
    ray: str | None = None,
    fit: Callable[..., Any] | None = None,
    scores: Callable[..., dict[str, float]] | None = None,
    **settings: Any,
) -> Comparison:
    """Fit every method on the same data under the same budget, with baselines, and measure them on the same
    test rows.

    methods: names with options ("lora", "lora:rank=4,alpha=8") or instances. sized: give every method the largest rank, width or
    length that the budget's params allow, instead of its own. seeds: how many (seed, seed + 1, ...) or which.
    grid: try three learning rates per arm with the first seed, chosen on validation. out: a folder; the same
    call continues
    there after any interruption. settings: further arguments of `luthier.fit`, the same for every arm.
    workers: so many processes on this machine, each with a copy of the model, take one run each at a time. ray: the same on a
    Ray cluster, "local" for one that is begun here, "auto" or an address for one that runs; `out` must be a folder that all its
    machines see. Results are those of one process; seconds and latencies are those of a machine that does several things at
    once. Under torchrun, all processes share every run instead.

    An arm that fails is recorded with its reason and the others go on. Errors: OptionError, DataError before
    anything is
    written; RunError for a folder of another comparison or of a running one.
    """
    if workers is not None and workers < 1:
        raise OptionError(f"workers={workers}: at least one process must work.")
    if settings.get("shard"):
        raise OptionError(
            "compare cannot shard a base: one process predicts the test rows. Use fit for that."
        )
    wanted = Budget.parse(budget)
    arms = parse_arms(methods)
    if sized:
        arms = parse_arms(sized_methods([a.method for a in arms], model, wanted))
    chosen_seeds = _seeds(seeds, seed)
    if wanted.rows is not None:
        data = data.limit(train=wanted.rows)
    _check_data(data, grid)
    if fit is None:
        from luthier.train.fit import fit as train

        fit = train
    if scores is None:
        from luthier.data.scores import scores as score

        scores = score
    epochs = wanted.epochs or epochs
    if not 0 < epochs < math.inf:
        raise OptionError(f"epochs={epochs!r}: it must be a number above 0.")
    work = Comparing(
        model,
        data,
        wanted,
        chosen_seeds,
        grid,
        epochs,
        batch_size,
        settings,
        fit,
        scores,
        Narrator(progress and speaks()),
    )
    everyone = [*baseline_arms(baselines.names_for(data.task)), *arms]

    def walk() -> Comparison:
        if out is not None:
            return work.go(everyone, Path(out), title)
        import tempfile

        keep = tempfile.TemporaryDirectory(prefix="luthier-compare-")
        return work.go(everyone, Path(keep.name), title, keep)

    common = Work(fit, model, work.unseen, settings, tuple({type(a.method) for a in arms}))
    if world() > 1:
        if workers is not None or ray is not None:
            raise OptionError(
                "Under torchrun all processes share every run: leave out --workers and --ray, or torchrun."
            )
        from luthier.compare.together import Together
        from luthier.train.processes import Processes
        from luthier.train.shard import refuse_parts

        refuse_parts(model, "a comparison")
        processes = Processes(model.device)
        together = Together(common, processes.rank, processes.world)
        work.fit = together.fit
        return together.lead(walk) if processes.main else together.follow()
    if workers is None and ray is None:
        return walk()
    from luthier.compare.spread import spread_over

    with spread_over(common, workers, ray) as spread:
        work.fit, work.spread = spread.fit, spread
        return walk()


def _seeds(seeds: int | Iterable[int], first: int) -> list[int]:
    if isinstance(seeds, int):
        if seeds < 1:
            raise OptionError(f"seeds={seeds}: a comparison needs at least one seed.")
        return list(range(first, first + seeds))
    found = [int(s) for s in seeds]
    if not found or len(set(found)) != len(found):
        raise OptionError(f"seeds={found}: give at least one seed, each once.")
    return found


def _check_data(data: Any, grid_on: bool) -> None:
    if data.test is None or len(data.test) == 0:
        raise DataError(
            f"{data.name} has no test rows to compare on. Give --test, or a split with a test part."
        )
    if data.test.targets is None:
        raise DataError(f"The test rows of {data.name} have no labels. Name the label column with --label.")
    if len(data.train) == 0:
        raise DataError(f"{data.name} has no training rows.")
    if grid_on and (data.validation is None or len(data.validation) == 0):
        raise DataError(
            f"{data.name} has no validation rows to choose learning rates on. Give a split, or use --no-grid."
        )

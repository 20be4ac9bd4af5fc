"""One comparison in its folder: what runs in which order, what is recorded, and how it continues after a
kill.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

from luthier.compare import baselines, evidence, grid
from luthier.compare.arms import Arm, count_trained
from luthier.compare.budget import Budget
from luthier.compare.comparison import FORMAT, TASTE, Comparison
from luthier.compare.environment import machine, versions
from luthier.compare.folder import first_difference, locked, read_json, strict, write_json
from luthier.compare.narrate import Narrator
from luthier.compare.sized import base_parameters
from luthier.compare.spread import Spread
from luthier.compare.together import FailedAlone
from luthier.errors import LuthierError, RunError

PILOT_STEPS = 8
LATENCIES = 7
"""One row is predicted so often; the median counts."""


@dataclass
class Comparing:
    """A comparison and its folder. Whatever changes `results` ends with results.json replaced."""

    model: Any
    data: Any
    budget: Budget
    seeds: list[int]
    grid: tuple[float, ...]
    epochs: float
    batch_size: int
    settings: Mapping[str, Any]
    fit: Callable[..., Any]
    scores: Callable[..., dict[str, float]]
    say: Narrator
    folder: Path = field(default_factory=Path)
    results: dict[str, Any] = field(default_factory=dict)
    spread: Spread | None = None
    writing: Any = field(default_factory=Lock)
    here: Any = field(default_factory=Lock)
    """Of several runs at once, one at a time works in this process: the model is one for all."""

    def __post_init__(self) -> None:
        self.unseen = replace(self.data, test=None)  # what fit gets: it cannot touch the test rows
        self.base_parameters = base_parameters(self.model)

    def go(self, arms: list[Arm], folder: Path, title: str | None, keep: Any = None) -> Comparison:
        self.folder = folder
        wanted = strict(self.wanted(arms))
        if (folder / "results.json").exists():
            self.check_same(wanted)
        elif folder.exists() and any(
            p.name != "lock" and not p.name.startswith(".") for p in folder.iterdir()
        ):
            raise RunError(
                f"{folder} holds something else than a comparison. Choose a new or an empty folder."
            )
        created = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"Cannot make {folder}: {error.strerror}. Choose another folder.") from None
        with locked(folder) if keep is None else nullcontext():
            for left in [*folder.glob(".*.*"), *folder.glob("predictions/.*.*")]:
                left.unlink()  # written aside by a process that was killed
            if (folder / "results.json").exists():
                self.check_same(wanted)
                self.results = read_json(folder / "results.json", "the result of a comparison")
            else:
                self.results = self.begin(arms, wanted, title)
                try:
                    self.save()
                except RunError:
                    (folder / "lock").unlink(missing_ok=True)
                    if created:
                        folder.rmdir()
                    raise
            if not (folder / "test.jsonl").exists():
                evidence.save_test(folder / "test.jsonl", self.data)
            self.run_all({a.name: a for a in arms})
            evidence.add_summaries(self.results, folder, self.scores, self.data.task)
            self.save()
            made = Comparison(self.results, folder, keep)
            if keep is None:
                made.csv(folder / "leaderboard.csv")
                made.report(folder / "report.html")
        return made

    def wanted(self, arms: list[Arm]) -> dict[str, Any]:
        """All that decides the outcome."""
        return {
            "model": {"name": str(self.model.name), "fingerprint": self.model.fingerprint},
            "data": {"name": str(self.data.name), "digest": self.data.digest},
            "methods": {a.name: a.card() for a in arms if a.kind == "method"},
            "budget": self.budget.card(),
            "seeds": self.seeds,
            "grid": list(self.grid),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "further": dict(sorted(self.settings.items())),
            "versions": versions(),
        }

    def check_same(self, wanted: dict[str, Any]) -> None:
        have = Comparison.load(self.folder).results.get("settings")
        difference = first_difference(have if isinstance(have, dict) else {}, wanted)
        if difference:
            raise RunError(
                f"{self.folder} holds a comparison with other settings ({difference}). Use its settings or "
                "another folder."
            )

    def begin(self, arms: list[Arm], settings: dict[str, Any], title: str | None) -> dict[str, Any]:
        task, rows = self.data.task, {k: len(v) for k, v in self.data.parts.items()}
        return {
            "format": FORMAT,
            "title": title or f"{self.model.name} on {self.data.name}",
            "model": str(self.model.name),
            "base_parameters": self.base_parameters,
            "data": {
                "name": str(self.data.name),
                "digest": self.data.digest,
                "rows": rows,
                "notes": list(self.data.notes),
            },
            "budget": {**self.budget.card(), "text": str(self.budget), "epochs": self.epochs},
            "task": task.model_dump(mode="json"),
            "metric": task.metric,
            "labelled": TASTE if len(self.seeds) < 3 or not self.grid else "",
            "grid": list(self.grid) or None,
            "seeds": self.seeds,
            "settings": settings,
            "versions": versions(),
            "machine": {
                **machine(self.model),
                **({"runs_at_once": self.spread.at_once} if self.spread is not None else {}),
            },
            "arms": [pending(a) for a in arms],
        }

    def save(self) -> None:
        with self.writing:
            write_json(self.folder / "results.json", self.results)

    def run_all(self, arms: Mapping[str, Arm]) -> None:
        """Baselines, then every method with the first seed, then with the next: a first table comes early."""
        for entry in self.results["arms"]:
            if entry["status"] == "failed":
                entry.update(status="pending", error=None)  # perhaps what was wrong is mended
        todo = [
            (e, s)
            for s in self.seeds
            for e in self.results["arms"]
            if e["kind"] == "method" or s == self.seeds[0]
        ]
        todo.sort(key=lambda x: x[0]["kind"] != "baseline")
        before = [any(r["seed"] == seed for r in entry["runs"]) for entry, seed in todo]
        left = [i for i in range(len(todo)) if not before[i]]
        with self.say:
            self.say.open(self.in_words(), self.data.notes, len(todo), sum(before))
            methods = [i for i in left if todo[i][0]["kind"] == "method"]
            for i in left:
                if todo[i][0]["kind"] == "baseline":
                    self.run_one(i, todo, arms)
            for wave in (  # within one, nothing waits for anything
                [i for i in methods if todo[i][1] == self.seeds[0]],
                [i for i in methods if todo[i][1] != self.seeds[0]],
            ):
                self.each(lambda i: self.beside().run_one(i, todo, arms), wave)

    def each(self, act: Callable[[Any], None], items: Sequence[Any]) -> None:
        """One after another; where runs are spread over processes, methods all at once, as far as there is room."""
        if self.spread is None or self.spread.at_once == 1 or len(items) < 2:
            for item in items:
                act(item)
            return
        with ThreadPoolExecutor(len(items)) as threads:
            try:
                list(threads.map(act, items))
            except BaseException:
                self.spread.stop()  # else the threads would be waited for
                raise

    def beside(self) -> Comparing:
        """This comparison, with words of its own for one of several runs."""
        if self.spread is None or self.spread.at_once == 1:
            return self
        mine = copy.copy(self)
        mine.say = self.say.beside()
        return mine

    def run_one(
        self, index: int, todo: Sequence[tuple[dict[str, Any], int]], arms: Mapping[str, Arm]
    ) -> None:
        """One arm with one seed: made, or failed, and recorded."""
        entry, seed = todo[index]
        if entry["status"] == "failed":
            return
        several = len(self.seeds) > 1 and entry["kind"] == "method"
        self.say.start(index, len(todo), entry["label"], seed if several else None)
        try:
            if entry["kind"] == "baseline":
                self.run_baseline(entry, seed)
            else:
                self.run_method(entry, arms[entry["name"]], seed)
        except FailedAlone:
            raise
        except LuthierError as error:
            entry.update(status="failed", error=" ".join(str(error).split()))
            self.say.failed(entry["error"])
        else:
            complete = entry["kind"] == "baseline" or len(entry["runs"]) == len(self.seeds)
            if complete and entry["status"] != "failed":
                entry["status"] = "done"
            self.say.done(self.data.task.metric, next(r for r in entry["runs"] if r["seed"] == seed))
        self.save()

    def in_words(self) -> str:
        """What is compared on what, in a line."""
        rows = ", ".join(f"{len(part):,} {name}" for name, part in self.data.parts.items())
        return f"{self.results['title']}: {rows} rows, {self.epochs:g} epoch{'' if self.epochs == 1 else 's'}"

    def run_baseline(self, entry: dict[str, Any], seed: int) -> None:
        made = baselines.fit_baseline(
            entry["name"], self.model, self.data, scores=self.scores, batch_size=self.batch_size, seed=seed
        )
        row = evidence.asked(self.data.task, self.data.test.select([0]))
        made.predict(row)
        took = []
        for _ in range(LATENCIES):
            begun = time.perf_counter()
            made.predict(row)
            took.append(1000 * (time.perf_counter() - begun))
        figures = {
            "parameters": made.parameters,
            "parameters_head": made.parameters,
            "peak_bytes": None,
            "seconds_train": made.seconds,
            "latency_ms": statistics.median(took),
            "file_bytes": made.file_bytes,
        }
        entry["trials"] = made.trials
        entry["method"] = None if made.strength is None else {"is": entry["name"], "C": made.strength}
        self.keep(entry, seed, _Direct(made.predict), {}, figures)

    def run_method(self, entry: dict[str, Any], arm: Arm, seed: int) -> None:
        """One run: trials first if this is the first seed, then the test rows, once, at the chosen rate."""
        with self.here:
            self.refuse_before(arm)
        final = self.folder / "runs" / f"{arm.name}-{seed}"
        steps = self.steps_for(entry, arm, seed)
        if entry["rate"] is None or not any(t.get("chosen") for t in entry["trials"]):
            self.try_rates(entry, arm, seed, steps)
        chosen = next(t for t in entry["trials"] if t["chosen"])
        tried = self.trial_folder(arm, chosen)
        if seed == chosen["seed"] and tried.exists() and not final.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            tried.rename(final)  # the chosen trial is this seed's run
        begun = time.perf_counter()
        fitted = self.fit_once(arm, final, seed, chosen["factor"], steps)
        found = fitted.metrics
        seconds = found.get("seconds") or {}
        figures = {
            k: found.get(k)
            for k in ("parameters", "parameters_head", "peak_bytes", "latency_ms", "file_bytes", "forgetting")
        }
        figures["seconds_train"] = seconds.get("train", time.perf_counter() - begun)
        figures["steps"], figures["predicted_peak_bytes"] = (
            found.get("steps"),
            found.get("predicted_peak_bytes"),
        )
        self.refuse_after(figures)
        if found.get("rate") is not None:
            entry["rate"] = found["rate"]
        with self.here:
            self.keep(entry, seed, fitted, found.get("validation") or {}, figures)

    def try_rates(self, entry: dict[str, Any], arm: Arm, seed: int, steps: int | None) -> None:
        """Every rate of the grid with one seed; results.json keeps each trial as it ends."""
        left = [f for f in grid.factors(self.grid) if all(t["factor"] != f for t in entry["trials"])]
        self.each(lambda factor: self.try_rate(entry, arm, seed, steps, factor), left)
        entry["trials"].sort(key=lambda t: t["factor"])
        chosen = grid.choose(entry["trials"], self.data.task.metric) if self.grid else entry["trials"][0]
        if chosen is None:
            reason = next(
                (t["error"] for t in entry["trials"] if t["error"]), "no trial has a validation figure."
            )
            entry["trials"] = []  # the next attempt starts afresh
            raise RunError(f"every learning rate of the grid failed: {reason}")
        self.say.attempt("")
        chosen["chosen"], entry["rate"] = True, chosen["rate"]
        self.save()

    def try_rate(self, entry: dict[str, Any], arm: Arm, seed: int, steps: int | None, factor: float) -> None:
        rate = float(arm.method.rate) * factor
        trial: dict[str, Any] = {"factor": factor, "rate": rate, "seed": seed, "chosen": False}
        trial |= {"validation": None, "error": None, "seconds": None}
        if self.grid:
            self.say.attempt(f"trial at rate {rate:.2g}")
            try:
                found = self.fit_once(arm, self.trial_folder(arm, trial), seed, factor, steps).metrics
                trial["validation"] = found.get("validation")
                trial["seconds"] = (found.get("seconds") or {}).get("train")
                self.refuse_after(found)
            except FailedAlone:
                raise
            except LuthierError as error:
                trial["error"] = " ".join(str(error).split())
        entry["trials"].append(strict(trial))
        self.save()

    def trial_folder(self, arm: Arm, trial: Mapping[str, Any]) -> Path:
        return self.folder / "trials" / f"{arm.name}-{trial['seed']}-{grid.factor_name(trial['factor'])}"

    def fit_once(self, arm: Arm, out: Path | None, seed: int, factor: float, steps: int | None) -> Any:
        chosen: dict[str, Any] = dict(self.settings)
        if steps is not None:
            chosen["steps"] = steps
        return self.fit(
            self.model,
            self.unseen,
            arm.method,
            out=out,
            seed=seed,
            rate=grid.rate_for(arm.method, factor),
            epochs=self.epochs,
            batch_size=self.batch_size,
            progress=self.say if self.say.on else False,
            **chosen,
        )

    def steps_for(self, entry: dict[str, Any], arm: Arm, seed: int) -> int | None:
        """Steps of every run of an arm; None: what `epochs` gives.

        A budget of minutes or memory takes a short pilot first: minutes become steps, so that the schedule
        ends in time,
        and are kept, so that a resumed comparison takes as many; an arm too large for the memory ends here.
        """
        whole = math.ceil(self.epochs * math.ceil(len(self.data.train) / self.batch_size))
        limit = None if self.budget.steps is None else min(self.budget.steps, whole)
        if self.budget.minutes is None and self.budget.memory is None:
            return limit
        if entry["pilot"] is None:
            begun = time.perf_counter()
            self.say.attempt("pilot")
            found = self.fit_once(arm, None, seed, 1.0, min(PILOT_STEPS, limit or whole)).metrics
            self.budget.refuse_memory(found.get("predicted_peak_bytes"))
            self.refuse_after(found)
            self.say.attempt("")
            spent, seconds = time.perf_counter() - begun, found.get("seconds") or {}
            per_step = seconds.get("train", spent) / max(found.get("steps") or PILOT_STEPS, 1)
            fixed = spent + (seconds.get("cache") or 0.0)
            steps = self.budget.steps_in(fixed, per_step, len(grid.factors(self.grid)))
            entry["pilot"] = strict({"seconds": spent, "seconds_per_step": per_step, "steps": steps})
            self.save()
        steps = entry["pilot"]["steps"]
        return limit if steps is None else min(steps, limit or whole)

    def refuse_before(self, arm: Arm) -> None:
        """The parameter budget, before training, where the method can be counted without it."""
        if self.budget.parameters_allowed(self.base_parameters) is None:
            return
        trained = count_trained(arm.method, self.model)
        if trained is not None:
            self.budget.refuse_parameters(trained, self.base_parameters)

    def refuse_after(self, figures: Mapping[str, Any]) -> None:
        if figures.get("parameters") is not None:
            trained = figures["parameters"] - (figures.get("parameters_head") or 0)
            self.budget.refuse_parameters(trained, self.base_parameters)
        self.budget.refuse_memory(figures.get("peak_bytes"), "used")

    def keep(
        self, entry: dict[str, Any], seed: int, fitted: Any, validation: Any, figures: dict[str, Any]
    ) -> None:
        """Predict the test rows, score them, and record the run."""
        task, test = self.data.task, self.data.test
        outputs = evidence.predict(fitted, task, evidence.asked(task, test))
        path = f"predictions/{entry['name']}-{seed}.jsonl"
        evidence.save_predictions(self.folder / path, task, test, outputs)
        run = {
            "seed": seed,
            "test": self.scores(task, test.targets, outputs),
            "validation": validation,
            "predictions": path,
            **figures,
        }
        entry["runs"].append(strict({"forgetting": None, **run}))
        entry["runs"].sort(key=lambda r: self.seeds.index(r["seed"]))


def pending(arm: Arm) -> dict[str, Any]:
    """An arm's entry in results.json before anything has run."""
    entry = {
        "name": arm.name,
        "label": arm.label,
        "kind": arm.kind,
        "method": arm.card(),
        "status": "pending",
    }
    return {**entry, "error": None, "rate": None, "pilot": None, "trials": [], "runs": [], "summary": None}


@dataclass
class _Direct:
    """A baseline's function with the names of a fitted adaptation."""

    predict: Callable[[Any], Any]

    @property
    def predict_proba(self) -> Callable[[Any], Any]:
        return self.predict

    @property
    def answers(self) -> Callable[[Any], Any]:
        return self.predict

"""What a comparison says while it runs, on standard error: what is known of the data once, then a line per run.

On a terminal there are two bars below the lines: runs of the comparison, and steps of the run that is on.
"""

from __future__ import annotations

import copy
import time
from typing import Any

from luthier.data.write import plain
from luthier.train.progress import About, Silent

HEARTBEAT = 30.0
"""Seconds between signs of life where there is no terminal."""
NAME = 28
"""Characters of a run's name."""


class Narrator(Silent):
    """Writes to a terminal, or nothing. It is also the progress that `fit` tells of its steps."""

    def __init__(self, on: bool) -> None:
        self.on, self.alone = on, True
        self.console: Any = None
        self.bars: Any = None  # None where there is no terminal
        self.runs: Any = None
        self.steps: Any = None
        self.said: set[str] = set()
        self.name = self.number = self.trial = self.phase_name = self.figure = ""
        self.total = self.rows = self.depth = 0
        self.began = self.beat = 0.0

    def beside(self) -> Narrator:
        """One for a run among several at once: it says how the run ends, and shows no steps."""
        mine = copy.copy(self)
        mine.alone = False
        return mine

    # -- the comparison

    def __enter__(self) -> Narrator:
        self.depth += 1
        if not self.on or self.depth > 1:  # fit enters what it is given, too
            return self
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        if self.console.is_terminal:
            self.bars = bars(self.console)
            self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.depth -= 1
        if self.depth == 0:
            if self.bars is not None:
                self.bars.stop()
            self.console = self.bars = self.runs = self.steps = None

    def open(self, title: str, notes: Any, count: int, done: int) -> None:
        """What is compared; `done` of `count` runs are there already."""
        self.line(plain(title, 200), "bold")
        for note in notes:
            self.say(plain(note, 400), "data")
        if done:
            self.line(f"{done} of {count} runs were made before")
        if self.bars is not None:
            self.runs = self.bars.add_task("all runs", total=count, completed=done, figures="")

    def start(self, index: int, count: int, label: str, seed: int | None) -> None:
        """A run begins; seed: None where it is not worth a word."""
        self.number = f"[{index + 1:>{len(str(count))}}/{count}]"
        self.name = plain(label, NAME) + ("" if seed is None else f", seed {seed}")
        self.trial = ""
        self.began = self.beat = time.monotonic()
        if self.bars is not None and self.alone:
            self.steps = self.bars.add_task(self.name, total=None, figures="")

    def attempt(self, what: str) -> None:
        """What the run is doing now, if it fits more than once."""
        self.trial = what and f", {what}"

    def done(self, metric: str, run: dict[str, Any]) -> None:
        """The run has ended well."""
        seconds = run.get("seconds_train")
        took = "" if seconds is None else f"{seconds:6.0f} s" if seconds >= 10 else f"{seconds:6.1f} s"
        figure = run["test"].get(metric)
        shown = "not finite" if figure is None else format(figure, ".3f")
        self.end(f"{metric.replace('_', ' ')} {shown} {took}", "")

    def failed(self, error: str) -> None:
        """The run has ended badly; the comparison goes on."""
        self.end(f"failed: {plain(error, 300)}", "bold red")

    def end(self, text: str, style: str) -> None:
        self.line(f"{self.number} {self.name:<{NAME}} {text}", style)
        if self.bars is not None:
            if self.steps is not None:
                self.bars.remove_task(self.steps)
            self.bars.advance(self.runs)
            self.steps = None

    def line(self, text: str, style: str = "") -> None:
        if self.console is not None:
            from rich.text import Text

            self.console.print(Text(text, style=style), soft_wrap=True)

    # -- a run of fit

    def phase(self, name: str, steps: int, done: int = 0) -> None:
        self.phase_name, self.total, self.rows, self.figure = name, steps, 0, ""
        self.began = time.monotonic()
        if self.steps is not None:
            self.bars.update(self.steps, total=steps, completed=done, description=self.what())

    def step(self, done: int, rows: int, loss: float | None) -> None:
        self.rows += rows
        now = time.monotonic()
        speed = self.rows / max(1e-9, now - self.began)
        shown = f"{speed:.0f} rows/s" + ("" if loss is None else f"  loss {loss:.3f}") + self.figure
        if self.steps is not None:
            self.bars.update(self.steps, completed=done, figures=shown)
        elif now - self.beat >= HEARTBEAT:
            self.beat = now
            self.line(f"{self.number} {self.what()}: step {done}/{self.total}  {shown}")

    def score(self, name: str, value: float) -> None:
        self.figure = f"  {name.replace('_', ' ')} {value:.3f}"

    def say(self, text: str, about: About = "run") -> None:
        """What holds for every run is said once, what a run says of its size is in the table."""
        if about == "run":
            self.line(f"{' ' * len(self.number)} {text}")
        elif about == "data" and text not in self.said:
            self.said.add(text)
            self.line(text)

    def what(self) -> str:
        """What is on: the run, its trial, its phase if there are several."""
        phase = "" if self.phase_name in ("", "train") else f": {self.phase_name}"
        return f"{self.name}{self.trial}{phase}"


def bars(console: Any) -> Any:
    """Two bars with what they are of, figures and the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    return Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(min_width=NAME)),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        console=console,
        refresh_per_second=5,
    )

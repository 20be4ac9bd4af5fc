"""A comparison that was made: its figures, its table, its report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.compare.folder import read_json
from luthier.compare.grid import at_end
from luthier.errors import FileFormatError

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "luthier comparison 1"
TASTE = "first taste, not a benchmark"


class Comparison:
    """What `compare` returns: `results`, the JSON of results.json, and `folder`, with the evidence."""

    def __init__(self, results: dict[str, Any], folder: Path, keep: Any = None) -> None:
        self.results = results
        self.folder = folder
        self._keep = keep  # a temporary folder lives as long as the comparison

    @classmethod
    def load(cls, folder: str | Path) -> Comparison:
        """The comparison in a folder, finished or not."""
        path = Path(folder)
        results = read_json(path / "results.json", "the result of a comparison")
        if results.get("format") != FORMAT:
            found = str(results.get("format"))[:60]
            raise FileFormatError(
                f"{path / 'results.json'} has format {found!r}; this version reads {FORMAT!r}."
            )
        return cls(results, path)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Arms that are done, best first."""
        return iter(ranked(self.results))

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [a for a in self.results["arms"] if a["status"] == "failed"]

    @property
    def succeeded(self) -> bool:
        """At least one method and every baseline are done."""
        done = [a for a in self.results["arms"] if a["status"] == "done"]
        return any(a["kind"] == "method" for a in done) and all(
            a["status"] == "done" for a in self.results["arms"] if a["kind"] == "baseline"
        )

    @property
    def best(self) -> dict[str, Any] | None:
        """The arm with the best test figure, baselines included."""
        return next(iter(self), None)

    def table(self) -> Table:
        """The leaderboard for a terminal."""
        from luthier.compare.table import leaderboard

        return leaderboard(self.results)

    def csv(self, path: str | Path) -> Path:
        """The leaderboard as a file for spreadsheets, formulas disarmed."""
        from luthier.compare.table import write_csv

        return write_csv(self.results, Path(path))

    def report(self, path: str | Path) -> Path:
        """One HTML file that works offline."""
        from luthier.compare.report import write_report

        return write_report(self.results, self.folder, Path(path))

    def __repr__(self) -> str:
        return f"Comparison({len(self.results['arms'])} arms, {verdict(self.results)!r})"


def ranked(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Arms that are done, best headline figure first; equal ones in the order given."""
    from luthier.data.task import LOWER_IS_BETTER

    sign = 1 if results["metric"] in LOWER_IS_BETTER else -1
    return sorted(
        (a for a in results["arms"] if a.get("summary")), key=lambda a: sign * a["summary"]["metric"]
    )


def verdict(results: dict[str, Any]) -> str:
    """Who won, with which uncertainty, in words, and whose rate may not be its best. Holds labels as they are: escape before showing."""
    order = ranked(results)
    if not order:
        return "No arm has finished yet."
    ends = [f"{a['label']} ({at_end(a)})" for a in order if at_end(a)]
    wider = " A wider grid (--factors) may better what took the end of its rates: " if ends else ""
    return _winner(results, order) + wider + ", ".join(ends) + ("." if ends else "")


def _winner(results: dict[str, Any], order: list[dict[str, Any]]) -> str:
    first, metric = order[0], results["metric"].replace("_", " ")
    s = first["summary"]
    interval = f"(95% interval {s['low']:.3f} to {s['high']:.3f})"
    said = f"{first['label']} has the best {metric}, {s['metric']:.3f} {interval}"
    if len(order) == 1:
        return said + "."
    near = [a["label"] for a in order[1:] if not a["summary"]["delta_vs_best"]["clear"]]
    if not near:
        return f"{said}. It is ahead of every other arm beyond chance: each paired interval leaves out zero."
    names = near[0] if len(near) == 1 else ", ".join(near[:-1]) + " and " + near[-1]
    if len(near) == len(order) - 1:
        return f"{said}, but this test cannot tell it from any other arm."
    others = len(order) - 1 - len(near)
    return f"{said}. This test cannot tell it from {names}; it is ahead of the other {others}."

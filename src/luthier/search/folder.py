"""What a search leaves: its settings and its winner, every candidate, and the folders of its fits.

search.json       what was searched, and when it is done the winner: layouts, parameters, validation score
candidates.jsonl  one line a candidate, written as it is scored: an interrupted search scores none again
supernet/  retrained/  adaptation/  the fits' own folders, and the winner ready to use
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.errors import FileFormatError, OptionError
from luthier.search.evolution import Candidate
from luthier.selection.space import Genome, Space
from luthier.train.checkpoint import replace_bytes

SUMMARY, JOURNAL, FORMAT = "search.json", "candidates.jsonl", 1


class Folder:
    """A search's folder; without a path it keeps nothing. OptionError where it holds a search of other settings."""

    def __init__(self, out: str | Path | None, settings: Mapping[str, Any]):
        self.path = None if out is None else Path(out)
        self.settings = json.loads(json.dumps(settings))
        self.scores: dict[Genome, float] = {}
        if self.path is None:
            return
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / SUMMARY).is_file():
            raise OptionError(
                f"{self.path.name!r} exists and is not a search. Choose another folder, or remove it."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        if (self.path / "supernet").exists():  # else nothing is done yet: the settings may have been mended
            self._compare()
            self._recall()
        else:
            self._write({"format": FORMAT, "settings": self.settings})

    def _compare(self) -> None:
        assert self.path is not None
        try:
            before = json.loads((self.path / SUMMARY).read_text("utf-8"))["settings"]
            odd = sorted(k for k in {*before, *self.settings} if before.get(k) != self.settings.get(k))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FileFormatError(
                f"{SUMMARY} in {self.path.name!r} is damaged: search in another folder."
            ) from None
        if odd:
            raise OptionError(
                f"{self.path.name!r} holds a search with another {odd[0]}. Repeat that one's settings, or choose another folder."
            )

    def _recall(self) -> None:
        """The candidates scored so far; a last line that was cut off is scored again."""
        assert self.path is not None
        journal = self.path / JOURNAL
        for line in journal.read_text("utf-8").splitlines() if journal.is_file() else ():
            try:
                entry = json.loads(line)
                self.scores[tuple(int(i) for i in entry["genome"])] = float(entry["score"])
            except (ValueError, KeyError, TypeError):
                continue

    def at(self, name: str) -> Path | None:
        return None if self.path is None else self.path / name

    def add(self, candidate: Candidate) -> None:
        """Note a candidate that was not known."""
        if self.path is None or candidate.genome in self.scores:
            return
        self.scores[candidate.genome] = candidate.score
        entry = {
            "round": candidate.round, "genome": candidate.genome, "parameters": candidate.parameters,
            "score": candidate.score,
        }  # fmt: skip
        with open(self.path / JOURNAL, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def finish(self, winner: Mapping[str, Any], space: Space) -> None:
        """Write the winner beside what was searched."""
        genes = [{"name": g.name, "group": g.group, "options": g.options} for g in space.genes]
        self._write({"format": FORMAT, "settings": self.settings, "winner": dict(winner), "genes": genes})

    def _write(self, content: Mapping[str, Any]) -> None:
        if self.path is not None:
            replace_bytes(self.path / SUMMARY, json.dumps(content, indent=1).encode())

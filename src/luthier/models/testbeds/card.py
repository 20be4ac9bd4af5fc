"""card.json: what a testbed is, where it comes from and what it can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luthier.errors import FileFormatError

FILE = "card.json"
WEIGHTS = "model.safetensors"
FOLDER = Path(__file__).with_name("weights")
"""Where the installed testbeds lie, a folder each."""


class Card(BaseModel):
    """recipe is the digest of what made the weights, sha256 that of the weights; held_out and skills are what
    `luthier testbed measure` finds, under the versions that are named."""

    model_config = ConfigDict(extra="forbid")

    name: str
    about: str
    recipe: str = Field(pattern="^[0-9a-f]{64}$")
    seed: int
    corpus: str
    steps: int = Field(ge=1)
    seconds: float = Field(ge=0)
    parameters: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    files: dict[str, str] = Field(default_factory=dict)
    """sha256 of every other file that a load reads."""
    held_out: dict[str, float]
    skills: dict[str, float]
    versions: dict[str, str]

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(self.model_dump_json(indent=1) + "\n", "utf-8")


def read(folder: Path) -> Card:
    """The card of a testbed's folder. Raises FileFormatError where there is none or it is damaged."""
    try:
        return Card.model_validate(json.loads((folder / FILE).read_text("utf-8")))
    except FileNotFoundError:
        raise FileFormatError(
            f"{folder.name!r} has no {FILE}. Build it: luthier testbed build {folder.name}"
        ) from None
    except (OSError, ValueError, ValidationError) as error:
        raise FileFormatError(
            f"{folder.name!r} has a {FILE} that can't be read ({type(error).__name__}). Build it again: luthier "
            f"testbed build {folder.name}"
        ) from None


def installed() -> dict[str, Card]:
    """The testbeds whose weights lie in this installation, by name."""
    if not FOLDER.is_dir():
        return {}
    return {p.name: read(p) for p in sorted(FOLDER.iterdir()) if (p / FILE).is_file()}


def versions() -> dict[str, Any]:
    """The versions that figures depend on: Python's documentation is the corpus."""
    import platform

    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }

"""Writing a model as a folder that `load` and Transformers read; what exists is never written over."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError, ModelError, RunError
from luthier.models.images import ImagePreprocess
from luthier.models.load import load, quiet
from luthier.models.model import Model


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A path beside `folder` to write to, which takes its name at the end; nothing stays if the block raises.

    RunError where `folder` exists.
    """
    folder = Path(folder)
    refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
        made = Path(aside, "out")
        yield made
        refuse_existing(folder)
        made.rename(folder)


def refuse_existing(folder: str | Path) -> None:
    """RunError where a folder or file of that name exists: for commands that would otherwise work first."""
    if Path(folder).exists():
        raise RunError(f"{folder} exists. Choose another folder, or remove it.")


def write_files(model: Model, folder: Path) -> None:
    """Weights, configuration and what prepares the inputs, as Transformers saves them. ModelError for a plain module."""
    base: Any = model.base
    if not hasattr(base, "save_pretrained"):
        raise ModelError(
            f"{model.name} is no Transformers model, so it is not written as one. Save its state_dict in Python."
        )
    with quiet():
        base.save_pretrained(folder)
    tokenizer = getattr(model.preprocess, "tokenizer", None)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if isinstance(model.preprocess, ImagePreprocess):
        written = json.dumps(model.preprocess.settings.processor(), indent=1)
        (folder / "preprocessor_config.json").write_text(written + "\n", "utf-8")


def write_model(model: Model, folder: str | Path) -> Model:
    """Write a model to a new folder, and give it back as it loads from there.

    It is read again before anything stays: ModelError where what loads is not what was written (weights that the
    configuration ties, but that differ).
    """
    with new_folder(folder) as aside:
        write_files(model, aside)
        try:
            again = load(aside, device=model.device, dtype=model.dtype)
        except LuthierError as error:
            raise ModelError(f"{model.name} cannot be written so that it loads as itself ({error})") from None
        if again.fingerprint != model.fingerprint:
            raise ModelError(
                f"{model.name} does not load as it was written: weights that its configuration ties differ. Save its "
                "state_dict in Python."
            )
    again.name = str(folder)
    return again

"""Opening an adaptation for the commands that use one, on the base model that its card or the user names."""

from __future__ import annotations

from typing import Any

from luthier.errors import FileFormatError


def open_adaptation(directory: str, model: str | None, device: str, dtype: str) -> Any:
    """The fitted adaptation in `directory`. model: None asks its card, which may name an embedded one.

    FileFormatError where it carries no task, so that there is nothing to predict.
    """
    found, _ = open_any(directory, model, device, dtype)
    if getattr(found, "task", None) is None:
        raise FileFormatError(
            f"The adaptation in {directory} carries no task, so it predicts nothing by itself. Attach it in Python: model.attached(lt.load_adaptation(...))."
        )
    return found


def open_any(directory: str, model: str | None, device: str, dtype: str) -> tuple[Any, Any]:
    """The adaptation in `directory`, fitted if it carries a task, and its base model."""
    from luthier.adaptations import base_named_in, folder_of, load_adaptation

    source = model or base_named_in(folder_of(directory))
    from luthier.models.load import load

    base = load(source, device=device, dtype=dtype)
    return load_adaptation(directory, base), base


def open_all(directories: list[str], model: str | None, device: str, dtype: str) -> tuple[list[Any], Any]:
    """Several adaptations of one base, and the base, which the first one's card names where the user does not."""
    from luthier.adaptations import load_adaptation

    first, base = open_any(directories[0], model, device, dtype)
    return [first, *(load_adaptation(folder, base) for folder in directories[1:])], base

"""Unlabelled sentences from what a user names: a text file with one a line, or the inputs of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.errors import DataError

LARGEST = 2**30
"""Bytes of a text file that is read."""


def sentences(source: str, **options: Any) -> list[str]:
    """One string per sentence. A file called .txt is read by lines; anything else is loaded as data, and labels are not looked at."""
    path = Path(source)
    if path.suffix == ".txt":
        try:
            if path.stat().st_size > LARGEST:
                raise DataError(f"{source} has more than {LARGEST >> 30} GiB. Give a part of it.")
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"Cannot read {source} as UTF-8 text: {error}.") from None
        return [text for text in (one.strip() for one in lines) if text]
    from luthier.data.load import load_data

    found = load_data(source, **options)
    texts = list(found.train.inputs)
    if not all(isinstance(t, str) for t in texts):
        raise DataError(f"The inputs of {source} are not texts. Name a column of texts with --input.")
    return texts

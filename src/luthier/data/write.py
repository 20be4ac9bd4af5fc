"""Writing what data says without letting it act: no terminal escapes, no formulas, no half-written file."""

import csv
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_ESCAPES = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor, erase
    "|\x1b[\\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\\\)?"  # OSC (titles, links, clipboard), DCS, SOS, PM, APC
    "|\x1b[ -/]*[0-~]?"  # other two-character escapes, and a lone one
    "|\x9b[0-?]*[ -/]*[@-~]"  # CSI as one C1 character
)
_SPACES = re.compile("[\t\n\v\f\r\x85\u2028\u2029]+")
# C0, DEL, C1; marks that reorder a line (bidirectional controls); halves of surrogate pairs
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# what makes Excel, LibreOffice or Google Sheets evaluate a cell, full-width too (OWASP, "CSV injection")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def plain(text: Any, limit: int | None = None) -> str:
    """`text` on one line without terminal escapes, control or reordering characters; cut to `limit`."""
    text = text if isinstance(text, str) else str(text)
    if limit is not None:  # a long text costs no more than what is shown of it
        text = text[: 8 * limit + 64]
    text = _CONTROLS.sub("", _SPACES.sub(" ", _ESCAPES.sub("", text)))
    return text[: limit - 1] + "…" if limit is not None and len(text) > limit else text


def quote(text: Any, limit: int = 60) -> str:
    """`text` in quotation marks for an error or a note: plain, short."""
    return f"'{plain(text, limit)}'"


def cell(value: Any) -> Any:
    """A CSV cell that no spreadsheet evaluates: a string that begins like a formula gets an apostrophe.

    Numbers stay numbers (-1.5 is not a formula); None is an empty cell.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        value = value.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
        return "'" + value if value.startswith(_FORMULA) else value
    return value if isinstance(value, bool | int | float) else cell(str(value))


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes rows as UTF-8 CSV with every cell made safe by `cell`; the file appears whole or not at all."""
    with _whole(Path(path)) as file:
        # all text is quoted: the writer leaves a lone carriage return bare, and readers end the row there
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow([cell(name) for name in header])
        writer.writerows([cell(value) for value in row] for row in rows)


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line, in UTF-8; the file appears whole or not at all."""
    with _whole(Path(path)) as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@contextmanager
def _whole(path: Path) -> Iterator[IO[str]]:
    """A file beside `path` that takes its place when the block ends, and is gone where that fails."""
    handle, aside = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(aside, 0o666 & ~mask)  # mkstemp makes a private file; this one is a result like any other
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise

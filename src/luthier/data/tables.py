"""Tables: CSV, TSV, JSON, JSON lines and Parquet read into columns; each row's line is kept for errors."""

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.write import plain, quote
from luthier.errors import DataError

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".conll")
FILE_BYTES = (
    2 << 30
)  # a file is read whole (one truncated while mapped kills the process), so its size is capped
TABLE_BYTES = 4 << 30  # what a Parquet or Arrow file may hold once decompressed
TABLE_ROWS = 50_000_000  # run-length encoding makes rows out of nothing
COLUMNS = 10_000  # rows that each bring a key of their own would make a table of their square
_FIELD = 64 << 20  # characters in one CSV field; the csv module's own limit is shorter than a book chapter


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of equal length. `name` and `lines` say where a row came from."""

    name: str
    columns: dict[str, Any]  # column name -> list or numpy array, one entry a row
    lines: list[int] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def at(self, row: int) -> str:
        """Where a row (from 0) stands, for an error: 'reviews.csv line 17'."""
        return f"{self.name} " + (f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}")

    def take(self, rows: Sequence[int] | np.ndarray) -> "Table":
        """The rows at these indices, in that order."""
        at = np.asarray(rows, dtype=np.int64)
        if len(at) == len(self) and (at == np.arange(len(self))).all():
            return self
        columns = {
            name: values[at] if isinstance(values, np.ndarray) else [values[i] for i in at.tolist()]
            for name, values in self.columns.items()
        }
        lines = None if self.lines is None else [self.lines[i] for i in at.tolist()]
        return replace(self, columns=columns, lines=lines)

    def without(self, columns: Sequence[str]) -> "Table":
        """The table without these columns, where it has them."""
        left = {name: values for name, values in self.columns.items() if name not in columns}
        return replace(self, columns=left) if len(left) < len(self.columns) else self


def join(tables: Sequence[Table], name: str) -> Table:
    """The rows of several tables (the shards of one part), which must have the same columns."""
    if len(tables) == 1:
        return tables[0]
    for table in tables[1:]:
        if set(table.columns) != set(tables[0].columns):
            raise DataError(
                f"{table.name} has columns {listed(table.columns)} where {tables[0].name} has "
                f"{listed(tables[0].columns)}: they are not parts of one table"
            )
    columns: dict[str, Any] = {}
    for column in tables[0].columns:
        pieces = [table.columns[column] for table in tables]
        if all(isinstance(piece, np.ndarray) for piece in pieces):
            if len({piece.shape[1:] for piece in pieces}) > 1:
                raise DataError(f"{name}: the shards' arrays {quote(column)} have different shapes")
            columns[column] = np.concatenate(pieces)
        else:
            columns[column] = [value for piece in pieces for value in piece]
    return Table(name, columns)


def listed(names: Any, most: int = 12) -> str:
    """Column or file names for an error: plain, the first few."""
    names = [plain(name, 40) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def size(count: int) -> str:
    """A number of bytes as it is said."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """The whole of a file. Raises where it is missing, empty, unreadable or above `most` bytes."""
    most = FILE_BYTES if most is None else most
    try:
        with path.open("rb") as file:
            there = os.fstat(file.fileno()).st_size
            content = b"" if there > most else file.read(there)
    except OSError as error:
        raise DataError(f"Cannot read {quote(path)}: {plain(error.strerror or error)}") from None
    if there > most:
        raise DataError(
            f"{plain(path.name)} has {size(there)}; at most {size(most)} are read: keep a part of it"
        )
    if not content:
        raise DataError(f"{plain(path.name)} is empty: it needs rows of input and label")
    return content


def read_table(path: Path) -> Table:
    """A file read by its extension. Raises DataError naming the file, the line and the fix."""
    ending = path.suffix.lower()
    if ending not in TABLES:
        raise DataError(f"{plain(path.name)} is none of {', '.join(TABLES)}: convert it to one of these")
    if ending == ".parquet":
        return _parquet(path)
    text = _text(path)
    if ending == ".conll":
        from luthier.data.conll import conll_table

        table = conll_table(path.name, text)
    else:
        read = _csv if ending in (".csv", ".tsv") else _json
        table = read(path.name, text, ending)
    if not len(table):
        raise DataError(f"{plain(path.name)} has no rows: it needs rows of input and label")
    return table


def _text(path: Path) -> str:
    content = read_bytes(path)
    name = plain(path.name)
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{name} is UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    zero = content.find(b"\0")
    if zero >= 0:
        line = content.count(b"\n", 0, zero) + 1
        raise DataError(
            f"{name} line {line} holds a NUL byte, so it is not a text file: save it as UTF-8 text"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name} line {line} is not UTF-8 (byte 0x{content[error.start]:02x}): "
            "save it as UTF-8 (iconv -f ISO-8859-1 -t UTF-8, if it is Latin-1)"
        ) from None


@contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv(name: str, text: str, ending: str) -> Table:
    separator = "\t" if ending == ".tsv" else ","
    first = text.split("\n", 1)[0]
    if separator not in first:  # spreadsheets of half of Europe write semicolons
        separator = next((other for other in (";", "\t", ",") if other in first), separator)
    rows: list[list[str]] = []
    lines: list[int] = []
    header: list[str] = []
    shown = plain(name)
    reader = csv.reader(_lines(text), delimiter=separator, strict=True)
    with _long_fields():
        try:
            start = 1
            for row in reader:
                if not row or (len(row) == 1 and not row[0].strip() and len(header) != 1):
                    pass  # a blank line
                elif not header:
                    header = [column.strip() for column in row]
                elif len(row) != len(header):
                    raise DataError(
                        f"{shown} line {start} has {len(row)} fields where the header has {len(header)}: "
                        f"quote fields that hold {'a tab' if separator == chr(9) else repr(separator)}"
                    )
                else:
                    rows.append(row)
                    lines.append(start)
                start = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{shown} line {start} is malformed: {error}: close and double its quotes"
            ) from None
    if not header:
        raise DataError(f"{shown} is empty: it needs a header and rows of input and label")
    keep = [
        at for at, column in enumerate(header) if column or at > 0
    ]  # pandas writes its index without a name
    names = [header[at] for at in keep]
    for column in names:
        if not column or names.count(column) > 1:
            raise DataError(
                f"{shown}: column {quote(column)} stands {names.count(column)} times in the header "
                f"({listed(header)}): give every column a name of its own"
            )
    columns = list(zip(*rows)) if rows else [()] * len(header)
    return Table(name, {header[at]: list(columns[at]) for at in keep}, lines)


def _lines(text: str) -> Iterator[str]:
    """Lines with their ends, split at newlines only (str.splitlines also splits at U+2028)."""
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin) + 1 or len(text)
        yield text[begin:end]
        begin = end


_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def _json(name: str, text: str, ending: str) -> Table:
    shown = plain(name)
    whole = text.lstrip()
    if ending == ".json" and not whole:
        raise DataError(f"{shown} is empty: it needs rows of input and label")
    if whole.startswith("[") or (ending == ".json" and not _is_lines(whole)):
        value = _parse(whole, shown)
        if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), list):
            value = next(iter(value.values()))  # {"data": [...]}
        if not isinstance(value, list):
            raise DataError(f"{shown} holds no list of rows: write [{{...}}, ...] or one JSON object a line")
        return rows_table(name, value)
    rows: list[Any] = []
    lines: list[int] = []
    for number, line in enumerate(_lines(text), 1):
        if line.strip():
            value = _parse(line, f"{shown} line {number}")
            if not isinstance(value, dict):
                raise DataError(f"{shown} line {number} is no JSON object: write one {{...}} a line")
            rows.append(value)
            lines.append(number)
    return rows_table(name, rows, lines)


def _is_lines(text: str) -> bool:
    """Whether a .json file holds one object a line: its first line parses by itself and more follow."""
    first, _, rest = text.partition("\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _parse(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        said = (
            "too deeply nested"
            if isinstance(error, RecursionError)
            else plain(error.msg if isinstance(error, json.JSONDecodeError) else error, 80)
        )
        raise DataError(f"{where} is not JSON ({said}): write one JSON object a line, or one list") from None
    if _HALF.search(text):  # an escaped half of a surrogate pair parses, then breaks every encoder
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{where} holds half of a surrogate pair (\\ud800-\\udfff): mend the text"
            ) from None
    return value


def rows_table(name: str, rows: Sequence[Any], lines: list[int] | None = None) -> Table:
    """A table of rows given as dicts; a key that a row lacks is None there."""
    columns: dict[str, list[Any]] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(
                f"{plain(name)} row {number + 1} is a {type(row).__name__}: a row maps column to value"
            )
        for column, value in row.items():
            values = columns.setdefault(str(column), [])
            values.extend([None] * (number - len(values)))
            values.append(value)
        if len(columns) > COLUMNS:
            raise DataError(f"{plain(name)} has more than {COLUMNS} columns: keep those that are used")
    for values in columns.values():
        values.extend([None] * (len(rows) - len(values)))
    return Table(name, columns, lines)


def _parquet(path: Path) -> Table:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    name = plain(path.name)
    content = read_bytes(path)
    try:
        file = parquet.ParquetFile(arrow.BufferReader(content))
        _few_enough(name, file.metadata.num_rows)
        batches, total = [], 0
        for batch in file.iter_batches(batch_size=16384):
            total += batch.nbytes
            if total > TABLE_BYTES:
                raise DataError(
                    f"{name} holds more than {size(TABLE_BYTES)} once decompressed: keep a part of it"
                )
            batch.validate(full=True)
            batches.append(batch)
        table = arrow.Table.from_batches(batches, schema=file.schema_arrow)
        return arrow_table(path.name, table)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name} is no readable Parquet file ({plain(error, 120)}): write it again") from None


def _few_enough(name: str, rows: int) -> None:
    if rows > TABLE_ROWS:
        raise DataError(f"{name} holds {rows} rows; at most {TABLE_ROWS} are read: keep a part of it")
    if rows == 0:
        raise DataError(f"{name} has no rows: it needs rows of input and label")


def arrow_table(name: str, table: Any) -> Table:
    """A Table of a pyarrow.Table. Class numbers become the names in the schema, -1 None."""
    _few_enough(plain(name), table.num_rows)
    classes = _class_names(table.schema.metadata or {})
    columns: dict[str, Any] = {}
    for column in table.column_names:
        values = table.column(column).to_pylist()
        if column in classes:
            values = [_named(value, classes[column], name, column) for value in values]
        columns[str(column)] = values
    return Table(name, columns)


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Column -> class names, from the JSON that `datasets` writes into a schema; the rest is ignored."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return class_names(features)


def class_names(features: Any) -> dict[str, list[str]]:
    """Column -> class names, from a `datasets` features dict as JSON."""
    found: dict[str, list[str]] = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        if isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
            feature = feature["feature"]  # List(ClassLabel): multi-label
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            names = feature.get("names")
            if isinstance(names, list) and all(isinstance(each, str) for each in names):
                found[column] = names
    return found


def _named(value: Any, names: list[str], table: str, column: str) -> Any:
    if isinstance(value, list):
        return [_named(each, names, table, column) for each in value]
    if value is None or value == -1:  # -1: `datasets` for "no label", as in GLUE's test files
        return None
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    raise DataError(
        f"{plain(table)}: column {quote(column)} holds {quote(value)}, but names {len(names)} classes"
    )

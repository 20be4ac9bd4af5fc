"""Where data comes from: a name, path or object in, the tables of its parts out."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data import folders, hub, images
from luthier.data.arrays import read_npz
from luthier.data.images import PARTS
from luthier.data.tables import TABLES, Table, class_names, listed, read_table, rows_table
from luthier.data.words import fits_words
from luthier.data.write import plain, quote
from luthier.errors import DataError


@dataclass
class Found:
    """The tables of a source's parts (train, validation, test), its name, and what a user should know."""

    parts: dict[str, Table]
    name: str
    notes: list[str] = field(default_factory=list)


def find(source: Any, input: str | None = None, label: str | None = None, alone: bool = True) -> Found:
    """The tables of a source. `input` and `label` name arrays of an NPZ file; others keep every column.

    alone  False: other files of the set are named too, so none that lies beside it needs a note
    """
    if isinstance(source, str | Path):
        found = _path(str(source), input, label)
    else:
        found = _memory(source)
    found.name = plain(found.name, 80)
    if alone and isinstance(source, str | Path):
        found.notes += _beside(Path(source).expanduser())
    return found


def _path(source: str, input: str | None, label: str | None) -> Found:
    if not source:
        raise DataError("No data at '': give a file, a folder or builtin:pydocs")
    try:
        path = Path(source).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (
        OSError,
        RuntimeError,
    ) as error:  # too long, a home of nobody, forbidden
        raise DataError(f"No data at {quote(source)}: {plain(error, 120)}") from None
    if is_file:
        return _file(path, input, label)
    if is_folder:
        return _folder(path, input, label)
    if (
        path.suffix.lower() in folders.FILES
        or source[:1] in ("/", ".", "~")
        or not hub.NAME.fullmatch(source)
    ):
        raise DataError(f"No data at {quote(source, 120)}{_near(path)} (a file, a folder or builtin:pydocs)")
    folder, cache, config = hub.fetch(source)
    files = folders.data_files(folder, root=cache)
    return Found(folders.read_folder(folder, files, config, input, label), source)


def _near(path: Path) -> str:
    try:
        there = [each.name for each in path.parent.iterdir()]
    except OSError:
        return f": there is no folder {quote(path.parent)}"
    close = difflib.get_close_matches(path.name, there, 1)
    return f": did you mean {quote(close[0])}?" if close else ""


def _file(path: Path, input: str | None, label: str | None) -> Found:
    if path.suffix.lower() == ".npz":
        return Found(read_npz(path, input, label), path.name)
    if path.suffix.lower() not in TABLES:
        known = ", ".join(folders.FILES)
        raise DataError(
            f"{quote(path.name)} is none of {known}: convert it to one of these, or give a folder"
        )
    return Found({"train": read_table(path)}, path.name)


def _beside(path: Path) -> list[str]:
    """A note where a file called train has a test file beside it that nobody asked for."""
    if "train" not in path.stem or not path.is_file():
        return []
    other = path.with_name(path.name.replace("train", "test"))
    return (
        [f"{plain(other.name)} lies beside it and is not used: name it as --test"] if other.is_file() else []
    )


def _folder(path: Path, input: str | None, label: str | None) -> Found:
    name = path.name or path.resolve().name
    if folders.is_saved(path):
        return Found(*_named(folders.read_saved(path), name))
    files = folders.data_files(path)
    if files:
        return Found(folders.read_folder(path, files, None, input, label), name)
    if images.has_images(path):
        return Found(*_named(images.read_image_folder(path), name))
    raise DataError(
        f"{quote(path)} holds no data: no {', '.join(folders.FILES)} file, no class subfolders of images, "
        "and `datasets` did not save it"
    )


def _named(read: tuple[dict[str, Table], list[str]], name: str) -> tuple[dict[str, Table], str, list[str]]:
    return read[0], name, read[1]


def _memory(source: Any) -> Found:
    if isinstance(source, Mapping) and source and set(map(str, source)) <= set(PARTS):
        parts = {}
        for name, each in source.items():  # {"train": ..., "test": ...}, a datasets.DatasetDict among them
            parts[PARTS[str(name)]] = _table(each, str(name))
        return Found(parts, "data in memory")
    return Found({"train": _table(source, "data in memory")}, "data in memory")


def _table(source: Any, name: str) -> Table:
    if isinstance(source, Mapping):
        return _columns({str(key): values for key, values in source.items()}, name)
    if hasattr(source, "features") and hasattr(source, "column_names") and hasattr(source, "to_dict"):
        return _hugging_face(source, name)
    if hasattr(source, "columns") and hasattr(source, "to_dict"):
        return _frame(source, name)
    if isinstance(source, tuple) and len(source) == 2:
        if fits_words(*source):
            return _columns({"tokens": list(source[0]), "tags": source[1]}, name)
        return _columns({**_inputs(source[0], name), "label": source[1]}, name)
    if isinstance(source, list) and source and isinstance(source[0], Mapping):
        return _filled(
            rows_table(name, [dict(each) if isinstance(each, Mapping) else each for each in source])
        )
    if isinstance(source, list) and not source:
        raise DataError("The data is an empty list: it needs rows of input and label")
    raise DataError(
        f"Data cannot be a {type(source).__name__}: give a path, a name, a DataFrame, (inputs, labels), a "
        "list of rows as dicts, or a dict of columns"
    )


def _inputs(inputs: Any, name: str) -> dict[str, Any]:
    if hasattr(inputs, "iloc"):
        inputs = inputs.to_numpy()
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind not in "OUS":
        return {"x": inputs}
    rows = list(inputs)
    paired = bool(rows) and all(isinstance(row, list | tuple) and len(row) == 2 for row in rows)
    if paired and all(isinstance(each, str) for row in rows for each in row):
        return {"first": [row[0] for row in rows], "second": [row[1] for row in rows]}
    if rows and not isinstance(rows[0], str):
        try:
            return {"x": np.asarray(rows)}
        except ValueError as error:
            raise DataError(
                f"The inputs of {name} make no array ({plain(error, 80)}): use rows of one shape"
            ) from None
    return {"text": rows}


def _columns(columns: dict[str, Any], name: str) -> Table:
    kept = {
        key: values if isinstance(values, np.ndarray) else list(values) for key, values in columns.items()
    }
    for key, values in kept.items():
        if isinstance(values, np.ndarray) and values.dtype.kind in "OUS":
            kept[key] = values.tolist()
    lengths = {key: len(values) for key, values in kept.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{plain(key, 40)} has {count}" for key, count in lengths.items())
        raise DataError(f"Columns of {name} differ in length: {said}")
    return _filled(Table(name, kept))


def _frame(frame: Any, name: str) -> Table:
    """A pandas DataFrame: missing values become None, but stay NaN among decimals, to be refused."""
    doubled = [str(each) for each in frame.columns[frame.columns.duplicated()]]
    if doubled:
        raise DataError(f"The DataFrame has columns of one name ({listed(doubled)}): give each its own")
    columns: dict[str, Any] = {}
    for key in frame.columns:
        values = frame[key]
        if values.dtype.kind == "f":
            columns[str(key)] = values.tolist()
        else:
            gone = values.isna().tolist()
            columns[str(key)] = [None if lost else value for value, lost in zip(values.tolist(), gone)]
    return _filled(Table(name, columns))


def _hugging_face(dataset: Any, name: str) -> Table:
    """A datasets.Dataset, without decoding what its files name; class numbers become names."""
    names = class_names(dataset.features.to_dict())
    plainly = dataset.with_format("arrow")[:].to_pydict()
    for key, classes in names.items():
        plainly[key] = [_class(value, classes) for value in plainly[key]]
    return _filled(Table(name, plainly))


def _class(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_class(each, names) for each in value]
    return None if value is None or value < 0 else names[value]


def _filled(table: Table) -> Table:
    if not len(table):
        raise DataError(f"{plain(table.name)} has no rows: it needs rows of input and label")
    return table

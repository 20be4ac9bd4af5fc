"""load_data: from any source to train, validation and test rows with the task that they pose."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from luthier.data import findings
from luthier.data.columns import Chosen, asked, choose, missing
from luthier.data.covariates import read_covariates, with_measures
from luthier.data.divide import divide, fractions
from luthier.data.histories import History, read_histories
from luthier.data.images import resized
from luthier.data.inputs import modality_of, read_inputs
from luthier.data.sources import find
from luthier.data.split import Data, Split
from luthier.data.tables import Table, listed
from luthier.data.targets import (
    guess_kind,
    learn_labels,
    read_attributes,
    read_targets,
    values_of,
    without_label,
)
from luthier.data.task import KINDS, METRICS, Modality, Task, metrics_for
from luthier.data.words import check_lengths, tags_of
from luthier.data.write import plain, quote
from luthier.errors import DataError, OptionError

_SPLIT = (0.8, 0.1, 0.1)


def load_data(
    source: Any,
    *,
    input: str | Sequence[str] | None = None,
    label: str | None = None,
    attributes: str | Sequence[str] = (),
    covariates: str | Sequence[str] = (),
    history: str = "",
    kind: str | None = None,
    metric: str = "",
    test: Any = None,
    split: Sequence[float] = _SPLIT,
    seed: int = 0,
    limit: int | None = None,
    name: str | None = None,
) -> Data:
    """Reads a source into train, validation and test.

    source  builtin:NAME; a CSV, TSV, JSON, JSONL, Parquet or NPZ file; a folder of train and test files, of
            images in class subfolders, or saved by `datasets`; a hub name, OWNER/NAME[:CONFIGURATION]; or in
            memory: (inputs, labels), rows as dicts, columns as a dict, a DataFrame, a datasets.Dataset, or
            {"train": ..., "test": ...}
    input   the input's column; two, as "premise,hypothesis", make a pair, several numeric ones an array
    label   the label's column; label_name is preferred to an equivalent numeric label
    attributes  columns of labels that an adaptation is told with every row (a control, a language), "style,length" or a sequence
    covariates  columns of numbers that it is told, or measures of images (sharpness), which any data of images have
    history a column of lists of texts, oldest first (in a CSV file JSON lists), for methods that read one: persoma
    kind    classification, multilabel (lists, or names joined by |), regression, text2text, tagging (a list of
            words and a list of as many tags a row, or both as texts with blanks between), or retrieval (a query, and as
            label the text that it shall find); guessed from the labels
    metric  the headline metric; "": the kind's own
    test    a source of test rows, kept whole
    split   fractions of train, validation and test rows; a part that exists is kept, the others are taken
            from train
    seed    of the division
    limit   at most this many train rows are used, the first ones, before anything is taken from them

    Raises DataError, in one line that names the fix, for anything that cannot be read as asked.
    """
    if kind is not None and kind not in KINDS:
        raise OptionError(f"No kind of task {quote(kind)}: {', '.join(KINDS)}")
    if limit is not None and limit < 1:
        raise OptionError(f"A limit of {limit} rows leaves nothing: give at least 1")
    shares = fractions(split)
    if isinstance(source, Data) or (isinstance(source, str) and source.startswith("builtin:")):
        given = (input, label, kind, test) != (None, None, None, None) or attributes or history
        if given or shares != _SPLIT:
            raise OptionError(
                "A built-in or loaded data set has its columns, kind and parts: leave those options off"
            )
        data = source if isinstance(source, Data) else _builtin(source.removeprefix("builtin:"))
        measures = names_of(covariates)
        return (with_measures(data, measures) if measures else data).limit(train=limit)
    found = find(source, *_npz_names(input, label), alone=test is None)
    parts, notes = dict(found.parts), list(found.notes)
    if test is not None:
        tested = find(test, *_npz_names(input, label), alone=False)
        parts["test"] = tested.parts.get("test", next(iter(tested.parts.values())))
    if "train" not in parts:
        raise DataError(
            f"{found.name} has no train rows, only {listed(parts)}: name the train file as the data"
        )
    told = names_of(attributes)
    numbers = names_of(covariates)
    chosen = choose(parts["train"].without((*told, *numbers, history)), input, label, kind)
    notes += chosen.notes
    train, task, said = _pose(parts["train"], chosen, kind, metric, told, numbers, history)
    notes += said
    splits: dict[str, Split | None] = {"train": _split(train, task, "the train rows")}
    for part in ("validation", "test"):
        splits[part] = None
        if part in parts:
            rows, said = _clean(parts[part], chosen.inputs, chosen.label, task.modality, task.kind, part)
            splits[part] = None if rows is None else _split(rows, task, "the train rows")
            notes += said
    notes += _same_shape(splits, task.modality)
    whole = splits["train"]
    assert whole is not None
    if limit is not None and limit < len(whole):
        notes.append(f"The first {limit} of {len(whole)} train rows are used")
        splits["train"] = whole = whole.select(np.arange(limit))
        if task.kind == "classification" and len(np.unique(whole.targets)) < 2:  # type: ignore[arg-type]
            raise DataError(f"The first {limit} rows of {found.name} hold one class only: raise the limit")
    _carve(splits, task, shares, seed)
    data = Data(splits["train"], splits["validation"], splits["test"], task, name or found.name)  # type: ignore[arg-type]
    return replace(data, notes=tuple(plain(note) for note in [*notes, *findings.notes(data)]))


def load_split(
    source: Any,
    task: Task,
    *,
    input: str | Sequence[str] | None = None,
    label: str | None = None,
    attributes: str | Sequence[str] | None = None,
    covariates: str | Sequence[str] | None = None,
    history: str | None = None,
    part: str | None = None,
    labelled: bool = True,
) -> Split:
    """Every row of a source in its order, with an existing task's labels and columns: to score or to predict.

    part      train, validation or test; None: test where the source has it, else its only part
    labelled  False: targets are None, empty texts are kept, so that row i of the split is row i of the source
    attributes, covariates  the columns of what the adaptation is told with every row; None: the task's, (): it is said otherwise

    Raises DataError for a column that is missing and for a label that the task does not have.
    """
    if isinstance(source, str) and source.startswith("builtin:"):
        source = _builtin(source.removeprefix("builtin:"))
    if isinstance(source, Data):
        if source.task.kind != task.kind or source.task.labels != task.labels:
            raise DataError(
                f"{source.name} poses another task ({source.task.kind}, {len(source.task.labels)} labels)"
            )
        chosen = source.parts.get(part or "test")
        if chosen is None:
            raise DataError(f"{source.name} has no part {quote(part or 'test')}: {listed(source.parts)}")
        return chosen if labelled else replace(chosen, targets=None)
    found = find(source, *_npz_names(task.input if input is None else input, label), alone=False)
    which = part or ("test" if "test" in found.parts else next(iter(found.parts)))
    if which not in found.parts:
        raise DataError(f"{found.name} has no part {quote(which)}: {listed(found.parts)}")
    table = found.parts[which]
    if history is not None:
        task = task.model_copy(update={"history": history})
    inputs = asked(table, task.input if input is None else input)
    told = task.attributes if attributes is None else names_of(attributes)
    numbers = task.covariates if covariates is None else names_of(covariates)
    if not labelled:
        said, past = read_attributes(table, told), _histories(table, task.history)
        rows = read_inputs(table, inputs, task.modality)[0]
        return Split(rows, attributes=said, histories=past, covariates=read_covariates(table, numbers, rows))
    column = task.label if label is None else label
    if column not in table.columns:
        raise missing(table, column, "label")
    kept, _ = _clean(table, inputs, column, task.modality, task.kind, "train")
    assert kept is not None
    posed = task.model_copy(update={"label": column, "attributes": told, "covariates": numbers})
    return _split(kept, posed, "this adaptation")


def names_of(columns: str | Sequence[str]) -> tuple[str, ...]:
    """Columns that are named in one text, joined by commas, or one by one."""
    names = columns.split(",") if isinstance(columns, str) else columns
    return tuple(name.strip() for name in names if name.strip())


def _pose(
    table: Table,
    chosen: Chosen,
    kind: str | None,
    metric: str,
    attributes: tuple[str, ...],
    covariates: tuple[str, ...],
    history: str,
) -> "tuple[_Rows, Task, list[str]]":
    """The train rows that can be used, the task that they pose, and notes."""
    decided = kind or guess_kind(table, chosen.label, values_of(table, chosen.label), chosen.inputs)
    modality = _modality(table, chosen, decided)
    notes = []
    if kind is None and decided != "classification":
        notes.append(f"Read as {decided}, by its labels; --kind says otherwise")
    if metric and metric not in METRICS[decided]:
        raise OptionError(f"There is no metric {quote(metric)} for {decided}: {', '.join(METRICS[decided])}")
    if decided in ("text2text", "retrieval") and modality != "text":
        raise DataError(f"{decided} needs one text column as input, not {listed(chosen.inputs)} ({modality})")
    rows, said = _clean(table, chosen.inputs, chosen.label, modality, decided, "train")
    assert rows is not None
    labels = learn_labels(rows.table, chosen.label, rows.values, decided)  # type: ignore[arg-type]
    if metric and metric not in metrics_for(decided, labels):
        raise OptionError(
            f"{quote(metric)} needs tags that mark entities (B-PLACE, I-PLACE, O), not {listed(labels, 4)}: leave it out"
        )
    task = Task(
        kind=decided,  # type: ignore[arg-type]
        modality=modality,
        labels=labels,
        input=chosen.inputs if modality == "pair" else ",".join(chosen.inputs),  # type: ignore[arg-type]
        label=chosen.label,
        history=history,
        metric=metric,
        attributes=attributes,
        covariates=covariates,
    )
    return rows, task, [*notes, *said]


def _modality(table: Table, chosen: Chosen, kind: str) -> Modality:
    """What the input is; texts are words where tags are asked for."""
    found = modality_of(table, chosen.inputs)
    if kind == "tagging":
        if found not in ("words", "text") or len(chosen.inputs) > 1:
            raise DataError(
                f"tagging needs one column of lists of words as input, not {listed(chosen.inputs)} ({found})"
            )
        return "words"
    if found == "words":
        raise DataError(
            f"{plain(table.name)}: column {quote(chosen.inputs[0])} holds lists of words, which {kind} cannot read: give "
            "one tag a word and --kind tagging, or join the words to one text"
        )
    return found


@dataclass(frozen=True)
class _Rows:
    table: Table
    inputs: Any
    values: list[Any]


def _clean(
    table: Table, inputs: tuple[str, ...], label: str, modality: Modality, kind: str, part: str
) -> tuple[_Rows | None, list[str]]:
    """The rows that have a text and a label, and notes on the others; None without any."""
    for column, option in (*((name, "input") for name in inputs), (label, "label")):
        if column not in table.columns:
            raise missing(table, column, option)
    values = values_of(table, label)
    if kind == "multilabel" and not isinstance(table.columns[label], np.ndarray):
        values = ["" if raw == "" else value for raw, value in zip(table.columns[label], values)]
    bare = without_label(values, kind)
    if bare.all() and part != "train":
        return None, [f"The {part} rows have no labels and are not used"]
    read, empty = read_inputs(table, inputs, modality)
    out = empty | bare
    if out.sum() > len(table) / 2:
        where = plain(table.at(int(np.flatnonzero(out)[0])))
        raise DataError(
            f"{int(out.sum())} of {len(table)} rows have no text or no label (the first is {where}): "
            f"are {listed([*inputs, label])} the right columns?"
        )
    notes = []
    for mask, what in ((empty, "an empty text"), (bare & ~empty, "no label")):
        if mask.any():
            first = plain(table.at(int(np.flatnonzero(mask)[0])))
            notes.append(f"{int(mask.sum())} {part} rows have {what} and were left out (the first: {first})")
    if not out.any():
        return _Rows(table, read, values), notes
    kept = np.flatnonzero(~out)
    return _Rows(
        table.take(kept), Split(read).select(kept).inputs, [values[at] for at in kept.tolist()]
    ), notes


def _split(rows: _Rows, task: Task, known: str) -> Split:
    if task.kind == "tagging":
        check_lengths(rows.table, task, rows.inputs, [tags_of(value) for value in rows.values])
    targets = read_targets(rows.table, rows.values, task, known)
    attributes, histories = read_attributes(rows.table, task.attributes), _histories(rows.table, task.history)
    numbers = read_covariates(rows.table, task.covariates, rows.inputs)
    return Split(rows.inputs, targets, attributes, histories, numbers)


def _histories(table: Table, name: str) -> list[History] | None:
    if not name:
        return None
    if name not in table.columns:
        raise missing(table, name, "history")
    return read_histories(table, name)


def _same_shape(splits: dict[str, Split | None], modality: Modality) -> list[str]:
    """Brings images of every part to the train images' size; arrays of another shape raise."""
    notes = []
    shape = getattr(splits["train"] and splits["train"].inputs, "shape", ())[1:]
    for name, part in splits.items():
        if part is None or not shape or np.shape(part.inputs)[1:] == shape:
            continue
        found = np.shape(part.inputs)[1:]
        if modality != "image":
            raise DataError(f"The {name} rows have shape {found}, the train rows {shape}: use one shape")
        splits[name] = replace(part, inputs=resized(part.inputs, shape))  # type: ignore[arg-type]
        notes.append(f"The {name} images were brought from {found} to {shape}, the shape of the train images")
    return notes


def _carve(
    splits: dict[str, Split | None], task: Task, shares: tuple[float, float, float], seed: int
) -> None:
    """Takes from train the parts that do not exist, at their share of what is divided."""
    whole = splits["train"]
    assert whole is not None
    wanted = [
        0.0 if splits[part] is not None else share for part, share in zip(("validation", "test"), shares[1:])
    ]
    if not any(wanted):
        return
    total = shares[0] + sum(wanted)
    classes = np.asarray(whole.targets) if task.kind == "classification" else None
    rows = divide(
        findings.keys_of(whole), classes, (shares[0] / total, wanted[0] / total, wanted[1] / total), seed
    )
    splits["train"] = whole.select(rows[0])
    for part, at in (("validation", rows[1]), ("test", rows[2])):
        if splits[part] is None and len(at):
            splits[part] = whole.select(at)


def _builtin(name: str) -> Data:
    from luthier.data.builtin import BUILTIN, builtin

    if name not in BUILTIN:
        raise DataError(f"No built-in data {quote(name)}: {listed(f'builtin:{each}' for each in BUILTIN)}")
    return builtin(name)


def _npz_names(input: Any, label: str | None) -> tuple[str | None, str | None]:
    return (input if isinstance(input, str) else None), label

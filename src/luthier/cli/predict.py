"""`luthier predict`: what an adaptation says about rows, with probabilities."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli import options
from luthier.cli.adaptation import open_adaptation
from luthier.cli.finding import findings, texts_among
from luthier.cli.show import as_json, figure, note, plain, table
from luthier.errors import DataError, OptionError

SHOWN = 50
"""Rows that the terminal shows of a file."""


def predict(
    directory: options.Directory,
    data: Annotated[
        str | None, typer.Option("--data", help="Rows to predict, with or without labels.")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            help="A text; may be given again. A pair: two texts and a tab between. To tag: words and blanks.",
        ),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="File to write: .csv or .jsonl.")] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            help="The label that the adaptation is told with every row; again for a second attribute. Else --data's own columns.",
        ),
    ] = None,
    value: Annotated[
        list[float] | None,
        typer.Option(
            "--value",
            help="The number (covariate) that the adaptation is told with every row; again for a second one. Else --data's own columns.",
        ),
    ] = None,
    among: Annotated[
        str | None,
        typer.Option(
            "--among",
            help="Of retrieval: a file of the texts to search (lines, or a column text); else the texts that --data names.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            "--top", min=1, help="Only the most probable labels; of retrieval, the nearest texts [5]."
        ),
    ] = None,
    part: Annotated[str | None, typer.Option("--part", help="train, validation or test of --data.")] = None,
    model: options.Base = None,
    input: options.Input = None,
    history: options.History = None,
    limit: options.Limit = None,
    batch_size: options.Batch = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Predict rows, with probabilities.

    The rows are those of --data, the texts of --text, or the lines of standard input.

    luthier predict out/ --text "Not worth the money." --top 2

    luthier predict search/ --text "sort by the second field" --among functions.txt
    """
    if out is not None and Path(out).suffix.lower() not in WRITERS:
        raise OptionError(f"--out {out}: predictions are written as .csv or .jsonl.")
    if data is not None and text:
        raise OptionError("Give --data or --text, not both.")
    # Read before the model is loaded: a missing text should not cost that wait.
    texts = None if data is not None else text or lines_of(sys.stdin)
    fitted = open_adaptation(directory, model, device, dtype)
    retrieval = fitted.task.kind == "retrieval"
    if among is not None and not retrieval:
        raise OptionError(
            f"--among is for retrieval, and this adaptation is for {fitted.task.kind}: leave it out."
        )
    known = texts_among(among, data, fitted.task.label) if retrieval else []
    from luthier.data.split import Split, controlled, covaried

    if data is not None:
        from luthier.data.load import load_split

        rows = load_split(
            data,
            fitted.task,
            part=part,
            labelled=False,
            **options.given(
                input=options.columns(input),
                attributes=() if control else None,
                covariates=() if value else None,
                history=history,
            ),
        )
        rows = options.first(rows, limit)
    else:
        rows = Split(as_inputs(texts or [], fitted.task)[:limit])
    if control:
        rows = controlled(rows, control)
    if value:
        rows = covaried(rows, value)
    told = any(of is not None for of in (rows.attributes, rows.covariates, rows.histories))
    shown, sized = rows if told else rows.inputs, options.given(batch_size=batch_size)
    if retrieval:
        records = findings(fitted, shown, known, top, **sized)
    else:
        records = predictions(fitted, shown, top, **sized)
    if out is not None:
        WRITERS[Path(out).suffix.lower()](Path(out), records)
        note(f"{len(records):,} predictions written to {out}")
    if json:
        as_json(records)
    elif out is None:
        show(records)


def lines_of(stream: Any) -> list[str]:
    """The lines of standard input that are not empty. Raises OptionError for none, and for a keyboard."""
    found = [] if stream is None or stream.isatty() else [line.rstrip("\r\n") for line in stream]
    if not any(line.strip() for line in found):
        raise OptionError(
            "There is nothing to predict: give --data FILE, --text TEXT, or lines on standard input."
        )
    return [line for line in found if line.strip()]


def as_inputs(texts: list[str], task: Any) -> list[Any]:
    """Texts as the task's inputs. Raises DataError for a task without texts, or a pair without its tab."""
    if task.modality == "text":
        return list(texts)
    if task.modality == "words":
        return [tuple(text.split()) for text in texts]
    if task.modality != "pair":
        raise DataError(f"This adaptation reads {task.modality} rows, not texts: give them with --data.")
    pairs = [tuple(t.split("\t")) for t in texts]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2:
            raise DataError(
                f"Text {number} is no pair: this adaptation reads two texts with a tab between them."
            )
    return pairs


def predictions(fitted: Any, rows: Any, top: int | None, **settings: Any) -> list[dict[str, Any]]:
    """One record per row of a split, or per input: its number, its text, the prediction, and probabilities, the likeliest first."""
    task = fitted.task
    records = []
    probable = task.kind in ("classification", "multilabel", "tagging")
    found = fitted.predict_proba(rows, **settings) if probable else fitted.predict(rows, **settings)
    for number, (row, answer) in enumerate(zip(getattr(rows, "inputs", rows), found), 1):
        record: dict[str, Any] = {"row": number}
        if task.modality == "text":
            record["input"] = row
        elif task.modality == "words":
            record["input"] = list(row)
        elif task.modality == "pair":
            record["input"], record["input_2"] = row
        if task.kind == "tagging":
            record["prediction"] = [task.labels[int(word.argmax())] for word in answer]
            record["probability"] = [float(word.max()) for word in answer]
        elif not probable:
            record["prediction"] = answer if isinstance(answer, str) else float(answer)
        else:
            order = sorted(range(len(task.labels)), key=lambda i: -float(answer[i]))
            if task.kind == "classification":
                record["prediction"], record["probability"] = task.labels[order[0]], float(answer[order[0]])
            else:
                record["prediction"] = [task.labels[i] for i in order if float(answer[i]) >= 0.5]
            record["probabilities"] = {task.labels[i]: float(answer[i]) for i in order[:top]}
        records.append(record)
    return records


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    """One prediction per line."""
    from luthier.data.write import write_jsonl

    write_jsonl(path, records)


def write_csv(path: Path, records: list[dict[str, Any]]) -> None:
    """One row per prediction, or per word that was tagged, a column per probability; no cell that a spreadsheet would
    evaluate."""
    from luthier.data.write import write_csv

    if records and isinstance(records[0].get("probability"), list):
        words = [
            [record["row"], at, *word]
            for record in records
            for at, word in enumerate(zip(record["input"], record["prediction"], record["probability"]), 1)
        ]
        write_csv(path, ["row", "word", "input", "prediction", "probability"], words)
        return
    names = list(dict.fromkeys(k for r in records for k in r if k not in ("probabilities", "nearest")))
    labels = list(dict.fromkeys(k for r in records for k in sorted(r.get("probabilities", {}))))
    rows = (
        [_text(r.get(n)) for n in names] + [r.get("probabilities", {}).get(label) for label in labels]
        for r in records
    )
    write_csv(path, [*names, *(f"probability of {label}" for label in labels)], rows)


WRITERS = {".csv": write_csv, ".jsonl": write_jsonl}


def show(records: list[dict[str, Any]]) -> None:
    """The first rows on the terminal."""
    rows = []
    for r in records[:SHOWN]:
        likeliest = list(r.get("probabilities", {}).items())[:3]
        if isinstance(r.get("probability"), list):
            rows.append([r["row"], *(plain(" ".join(r[k]), 100) for k in ("input", "prediction"))])
            continue
        text = " | ".join(plain(r[k], 60) for k in ("input", "input_2") if k in r)
        prediction = plain(
            figure(r["prediction"]) if isinstance(r["prediction"], float) else _text(r["prediction"]), 60
        )
        said = (
            [f"{r['similarity']:.3f}"]
            if "similarity" in r
            else [f"{plain(k, 24)} {p:.3f}" for k, p in likeliest]
        )
        rows.append([r["row"], text, prediction, "  ".join(said)])
    last = "cosine" if records and "similarity" in records[0] else "probabilities"
    table(["row", "input", "prediction", last][: max(map(len, rows), default=4)], rows, numbers=[0])
    if len(records) > SHOWN:
        note(f"The first {SHOWN} of {len(records):,} rows; --out FILE writes all.")


def _text(value: Any) -> Any:
    return "|".join(value) if isinstance(value, list) else value

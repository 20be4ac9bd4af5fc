"""Embedded data cut short in all its parts: `--limit` keeps the whole of what is tested on."""

from pathlib import Path

from luthier.data.load import load_data
from luthier.data.write import write_jsonl


def few(name: str, folder: Path, train: int = 24, rest: int = 8) -> str:
    """A folder for `--data` with the first rows of `builtin:NAME`, a text and a label each."""
    data = load_data(f"builtin:{name}")
    folder.mkdir()
    for part, rows in (("train", train), ("validation", rest), ("test", rest)):
        split = getattr(data, part)
        records = [
            {"text": x, "label": data.task.labels[y]}
            for x, y in zip(split.inputs[:rows], split.targets[:rows], strict=True)
        ]
        write_jsonl(folder / f"{part}.jsonl", records)
    return str(folder)

"""CoNLL files: a word and its tag a line, sentences apart by a blank line."""

from luthier.data.tables import Table
from luthier.data.write import plain
from luthier.errors import DataError


def conll_table(name: str, text: str) -> Table:
    """Columns `tokens` and `tags`: the first field of a line is the word, the last its tag; fields are apart by tabs, or
    by blanks where a line has no tab. -DOCSTART- lines are skipped; a row's line is that of its first word."""
    tokens: list[list[str]] = []
    tags: list[list[str]] = []
    lines: list[int] = []
    open_ = False
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        fields = [each.strip() for each in line.split("\t")] if "\t" in line else line.split()
        if not any(fields) or fields[0] == "-DOCSTART-":
            open_ = False
            continue
        if len(fields) < 2 or not fields[0] or not fields[-1]:
            raise DataError(
                f"{plain(name)} line {number} has no word with a tag: write a word, a tab and its tag"
            )
        if not open_:
            tokens.append([])
            tags.append([])
            lines.append(number)
            open_ = True
        tokens[-1].append(fields[0])
        tags[-1].append(fields[-1])
    return Table(name, {"tokens": tokens, "tags": tags}, lines)

"""Texts as model inputs: token ids by the model's own tokenizer, with limits, padding and training
targets."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from luthier.errors import DataError, FileFormatError, ModelError, OptionError
from luthier.models.batches import padded, rounded_up, stack
from luthier.models.preprocess import Settings, parse_settings
from luthier.models.tokenizer import position_limit, start_token, tokenizer_digest

DEFAULT_LENGTH = 512  # tokens, where neither a sentence encoder's settings nor a model's limit is lower
CHUNK = 1000  # rows per tokenizer call: enough for its threads, little enough for progress and memory
IGNORED = -100  # the label that losses skip
SIDES = ("right", "left")


class TextSettings(Settings):
    """How texts are fed. The digest is of what the tokenizer does, so that another tokenizer is refused at
    load."""

    kind: Literal["text"] = "text"
    max_length: int = Field(ge=1, le=10_000_000)
    """Tokens per row, special ones included; longer rows are cut and counted."""
    tokenizer: str = Field(pattern="^[0-9a-f]{64}$")
    padding: Literal["right", "left"] = "right"
    """Of training batches; generation pads on the left."""
    truncation: Literal["right", "left"] = "right"
    """The side that is cut off."""
    separator: str = Field(default="\n", max_length=1000)
    """Stands between input and target where a decoder reads both as one text."""


class Rows(list[dict[str, Any]]):
    """Encoded rows; `truncated` says of each whether something was cut off."""

    truncated: list[bool]

    def __init__(self, rows: Sequence[dict[str, Any]] = (), truncated: Sequence[bool] = ()) -> None:
        super().__init__(rows)
        self.truncated = list(truncated)


class TextPreprocess:
    """Texts or pairs of texts become {"input_ids", "attention_mask", ...}, each (rows, tokens) int64.

    Positions are left to the model. `encode` for tasks with one output per row, `encode_text2text` for
    writing, `luthier.models.words` for one output per word.
    """

    kind: ClassVar[str] = "text"

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int,
        model_kind: str = "encoder",
        first_target: int | None = None,
        takes_types: bool = False,
        padding: str = "right",
        truncation: str = "right",
        separator: str = "\n",
        vocabulary: int | None = None,
        limit: int | None = None,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(tokenizer).__name__} is not a fast tokenizer. Save the model with its tokenizer.json."
            )
        self.tokenizer = copy.copy(tokenizer)
        self.model_kind = model_kind
        self.max_length = max_length
        self.padding, self.truncation, self.separator = padding, truncation, separator
        self.takes_types = takes_types
        self._start = first_target
        self._limit = limit
        self.tokenizer.truncation_side = truncation
        self.notes: tuple[str, ...] = ()
        self.pad_token_id = self._pad(vocabulary)

    @classmethod
    def for_model(
        cls, tokenizer: Any, base: Any, kind: str | None = None, limit: int | None = None, **choices: Any
    ) -> TextPreprocess:
        """The defaults for a model: as many tokens as model, tokenizer and `limit` (512 if None) all
        allow."""
        from luthier.models.architecture import kind_of

        kind = kind or kind_of(base)
        vocabulary = base.get_input_embeddings().weight.shape[0]
        added = set(tokenizer.get_added_vocab().values())  # some models declare tokens that they never embed
        largest = max((i for i in tokenizer.get_vocab().values() if i not in added), default=-1)
        if largest >= vocabulary:
            raise ModelError(
                f"The tokenizer has ids up to {largest} and {type(base).__name__} embeds {vocabulary}: they "
                f"don't belong together. "
                "Fetch the model again."
            )
        positions = position_limit(base)
        limits = [limit or DEFAULT_LENGTH, _length(tokenizer.model_max_length), positions]
        return cls(
            tokenizer,
            max_length=max(1, min(n for n in limits if n)),
            model_kind=kind,
            first_target=start_token(base) if kind == "encoder-decoder" else None,
            takes_types=_takes(base, "token_type_ids") and "token_type_ids" in tokenizer.model_input_names,
            vocabulary=vocabulary,
            limit=positions,
            **choices,
        )

    @classmethod
    def from_settings(cls, settings: Any, model: Any) -> TextPreprocess:
        """From a card, with the tokenizer of `model`. FileFormatError where that is another tokenizer, or
        there is none."""
        wanted = parse_settings(TextSettings, settings)
        own = getattr(model, "preprocess", None)
        if not isinstance(own, TextPreprocess):
            raise FileFormatError(
                "The card prepares texts, and this model has no tokenizer. Load the model that it was made "
                "for."
            )
        if wanted.tokenizer != own.digest:
            raise FileFormatError(
                f"The card was made with another tokenizer ({wanted.tokenizer[:12]}…; this model's is "
                f"{own.digest[:12]}…). Load the "
                "model that it was made for."
            )
        return own._like(wanted)

    def with_settings(self, **changes: Any) -> TextPreprocess:
        """The same tokenizer with other settings: max_length, padding, truncation, separator."""
        try:
            return self._like(parse_settings(TextSettings, {**self.settings.model_dump(), **changes}))
        except FileFormatError as error:
            raise OptionError(str(error).replace(" in the card", "").replace("The card has ", "")) from None

    def _like(self, wanted: TextSettings) -> TextPreprocess:
        least = self.tokenizer.num_special_tokens_to_add(pair=True) + 1
        if not least <= wanted.max_length <= (self._limit or wanted.max_length):
            raise FileFormatError(
                f"The card has max_length {wanted.max_length}, and this model reads {least} to "
                f"{self._limit or 'any number of'} tokens."
            )
        made = copy.copy(self)
        made.tokenizer = copy.copy(self.tokenizer)
        made.tokenizer.truncation_side = wanted.truncation
        made.max_length, made.padding, made.truncation = wanted.max_length, wanted.padding, wanted.truncation
        made.separator = wanted.separator
        return made

    @property
    def settings(self) -> TextSettings:
        return TextSettings(
            max_length=self.max_length,
            tokenizer=self.digest,
            padding=self.padding,  # type: ignore[arg-type]
            truncation=self.truncation,  # type: ignore[arg-type]
            separator=self.separator,
        )

    @cached_property
    def digest(self) -> str:
        """sha256 of what the tokenizer does, see `tokenizer_digest`; computed at first use."""
        return tokenizer_digest(self.tokenizer)

    def encode(self, inputs: Sequence[Any]) -> Rows:
        """One dict per row, unpadded: input_ids, and token_type_ids where the model takes them.

        inputs: texts, or pairs of texts; a pair is cut where it is longer. Raises DataError naming a row
        that is neither.
        """
        rows = Rows()
        for first, second in _chunks(inputs):
            made = self._call(first, second)
            for i, encoding in enumerate(made.encodings):
                row = {"input_ids": made["input_ids"][i] or [self._filler()]}
                if self.takes_types:
                    row["token_type_ids"] = made["token_type_ids"][i] or [0]
                rows.append(row)
                rows.truncated.append(bool(encoding.overflowing))
        return rows

    def encode_text2text(self, inputs: Sequence[str], targets: Sequence[str] | None = None) -> Rows:
        """One dict per row, unpadded.

        A decoder reads input, separator, target and end as one text: input_ids; labels, -100 on the input;
        instruction, 1 on the input. An encoder-decoder has input_ids; labels; decoder_input_ids, the labels
        shifted right. Without targets: what generation starts from. Of a row that is too long, the input
        gives way first, but keeps half of max_length; a target that was cut has no end token.
        """
        if targets is not None and len(targets) != len(inputs):
            raise DataError(
                f"There are {len(inputs)} inputs and {len(targets)} targets. Give one target per input."
            )
        if self.model_kind not in ("decoder", "encoder-decoder"):
            raise ModelError(
                f"A model of kind {self.model_kind!r} writes no text. Use a decoder or an encoder-decoder."
            )
        _check_texts(inputs, "Input")
        _check_texts(targets or (), "Target")
        rows = Rows()
        for begin in range(0, len(inputs), CHUNK):
            part = list(inputs[begin : begin + CHUNK])
            wanted = None if targets is None else list(targets[begin : begin + CHUNK])
            made = self._together(part, wanted) if self.model_kind == "decoder" else self._apart(part, wanted)
            for row, cut in made:
                rows.append(row)
                rows.truncated.append(cut)
        return rows

    def _together(
        self, inputs: list[str], targets: list[str] | None
    ) -> Iterator[tuple[dict[str, Any], bool]]:
        end = self.tokenizer.eos_token_id
        between = self._ids([self.separator], special=False, cut=False)[0] if self.separator else []
        read = self._ids(inputs, cut=False)
        written: Sequence[list[int] | None] = (
            [None] * len(read) if targets is None else self._ids(targets, special=False, cut=False)
        )
        for ids, target in zip(read, written):
            if (
                ids and ids[-1] == end and len(ids) > 1
            ):  # some tokenizers end every text, but this one goes on
                ids = ids[:-1]
            goal = [] if target is None else target + ([end] if end is not None else [])
            room = max(0, self.max_length - len(between))
            # what the input may keep at most: all that the target leaves, and half of the row in any case
            ids, cut = self._shorten(ids, max(room - len(goal), room // 2))
            front = ids + between or [self._filler()]
            cut = cut or len(goal) > self.max_length - len(front)
            goal = goal[: max(0, self.max_length - len(front))]
            row: dict[str, Any] = {
                "input_ids": front + goal,
                "instruction": [1] * len(front) + [0] * len(goal),
            }
            if target is not None:
                row["labels"] = [IGNORED] * len(front) + goal
            yield row, cut

    def _apart(self, inputs: list[str], targets: list[str] | None) -> Iterator[tuple[dict[str, Any], bool]]:
        if self._start is None:
            raise ModelError(
                "This encoder-decoder names no decoder_start_token_id. Set it in its config.json."
            )
        made = self._call(inputs)
        goals = None if targets is None else self._call(targets, as_target=True)
        end = self.tokenizer.eos_token_id
        for i, ids in enumerate(made["input_ids"]):
            row: dict[str, Any] = {"input_ids": ids or [self._filler()]}
            cut = bool(made.encodings[i].overflowing)
            if goals is not None:
                goal = list(goals["input_ids"][i])
                beyond = bool(goals.encodings[i].overflowing)
                if beyond:
                    goal = goal[:-1] if goal and goal[-1] == end else goal
                elif end is not None and (not goal or goal[-1] != end):
                    goal = [*goal[: self.max_length - 1], end]
                row["labels"] = goal
                row["decoder_input_ids"] = [self._start, *goal[:-1]] if goal else []
                cut = cut or beyond
            yield row, cut

    def collate(
        self,
        rows: Sequence[Mapping[str, Any]],
        pad_to: int | None = None,
        *,
        multiple: int | None = None,
        side: str | None = None,
    ) -> dict[str, Tensor]:
        """One batch: lists padded to (rows, tokens) int64, attention_mask added, numbers stacked to (rows,).

        pad_to: exactly so many input tokens; multiple: the width is rounded up to a multiple; side: "left"
        when generating. Labels are padded with -100; those of an encoder-decoder, and its decoder_input_ids,
        always right.
        """
        if not rows:
            raise DataError("A batch needs at least one row.")
        side = side or self.padding
        if side not in SIDES:
            raise DataError(f"side={side!r} is not a side. Use right or left.")
        widest = max(len(row["input_ids"]) for row in rows)
        if pad_to is not None and widest > pad_to:
            raise DataError(
                f"A row has {widest} tokens, and pad_to is {pad_to}. Encode with a max_length of {pad_to} "
                f"at most."
            )
        width = rounded_up(pad_to or widest, multiple)
        fills = {"input_ids": self.pad_token_id, "decoder_input_ids": self.pad_token_id, "labels": IGNORED}
        apart = "decoder_input_ids" in rows[0]
        batch: dict[str, Tensor] = {}
        for key in rows[0]:
            values = [row[key] for row in rows]
            if not isinstance(values[0], (list, tuple)):
                batch[key] = stack(values)
                continue
            own = apart and key in ("labels", "decoder_input_ids")
            wide = rounded_up(max(len(v) for v in values), multiple) if own else width
            batch[key] = padded(values, wide, fills.get(key, 0), "right" if own else side)
        batch["attention_mask"] = padded([[1] * len(row["input_ids"]) for row in rows], width, 0, side)
        return batch

    def report(self, encoded: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        """How many rows were cut, of how many, the longest, and the limit. Of a plain list, full rows count
        as cut."""
        lengths = [len(row["input_ids"]) for row in encoded]
        known = (
            encoded.truncated
            if isinstance(encoded, Rows) and len(encoded.truncated) == len(encoded)
            else None
        )
        cut = sum(known) if known is not None else sum(n >= self.max_length for n in lengths)
        return {
            "truncated": cut,
            "rows": len(lengths),
            "longest": max(lengths, default=0),
            "max_length": self.max_length,
        }

    def decode(self, ids: Any) -> str:
        """Text of token ids (a list or a (tokens,) tensor); special tokens and ignored labels are left
        out."""
        numbers = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else list(ids)
        return self.tokenizer.decode([int(i) for i in numbers if i >= 0], skip_special_tokens=True)

    def show(self, row: Mapping[str, Any]) -> list[tuple[str, bool]]:
        """Every token of an encoded row as text, and whether it is trained on; a decoder's own tokens come
        last."""
        labels = row.get("labels")
        texts = [self.tokenizer.decode([i]) for i in row["input_ids"]]
        if not isinstance(labels, (list, tuple)):
            return [(t, False) for t in texts]
        if "decoder_input_ids" not in row:
            return [(t, label != IGNORED) for t, label in zip(texts, labels)]
        return [(t, False) for t in texts] + [
            (self.tokenizer.decode([i]), True) for i in labels if i != IGNORED
        ]

    def _ids(
        self, first: list[str], second: list[str] | None = None, *, special: bool = True, cut: bool = True
    ) -> Any:
        return self._call(first, second, special=special, cut=cut)["input_ids"]

    def _call(
        self,
        first: list[str],
        second: list[str] | None = None,
        *,
        special: bool = True,
        cut: bool = True,
        as_target: bool = False,
    ) -> Any:
        texts: dict[str, Any] = {"text_target": first} if as_target else {"text": first, "text_pair": second}
        try:
            return self._tokenised(texts, special, cut)
        except (TypeError, UnicodeError):
            for text in (*first, *(second or ())):
                if any("\ud800" <= c <= "\udfff" for c in text):
                    raise DataError(
                        f"The text {text[:40]!r} holds half a character (a surrogate), which UTF-8 has no "
                        f"bytes for. Read the file "
                        "as UTF-8 or remove it."
                    ) from None
            raise

    def _tokenised(self, texts: dict[str, Any], special: bool, cut: bool) -> Any:
        return self.tokenizer(
            **texts,
            add_special_tokens=special,
            truncation="longest_first" if cut else False,
            max_length=self.max_length if cut else None,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=self.takes_types,
            verbose=False,
        )

    def _shorten(self, ids: list[int], room: int) -> tuple[list[int], bool]:
        """At most `room` ids, cut on the truncation side; a leading special token stays."""
        if len(ids) <= room:
            return ids, False
        if self.truncation == "right":
            return ids[:room], True
        lead = 1 if ids and ids[0] == self.tokenizer.bos_token_id and room > 0 else 0
        return ids[:lead] + (ids[-(room - lead) :] if room > lead else []), True

    def _filler(self) -> int:
        """Stands for an empty text: a row without tokens has nothing to pool or to start from."""
        candidates = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.unk_token_id)
        return next((i for i in candidates if i is not None), self.pad_token_id)

    def _pad(self, vocabulary: int | None) -> int:
        t = self.tokenizer
        if t.pad_token_id is not None and (vocabulary is None or t.pad_token_id < vocabulary):
            return t.pad_token_id
        for name in ("eos", "unk", "bos"):
            if (number := getattr(t, f"{name}_token_id")) is not None:
                self.notes += (
                    f"its tokenizer has no padding token: the {name} token pads, behind the attention mask",
                )
                return number
        self.notes += ("its tokenizer has no padding token: token 0 pads, behind the attention mask",)
        return 0


def _length(limit: Any) -> int | None:
    """A tokenizer's own limit, as a whole number; None where it has none (the library writes 1e30)."""
    return int(limit) if isinstance(limit, (int, float)) and 1 < limit < 10**9 else None


def _takes(base: Any, name: str) -> bool:
    import inspect

    return name in inspect.signature(base.forward).parameters


def _chunks(inputs: Sequence[Any]) -> Iterator[tuple[list[str], list[str] | None]]:
    """Texts or pairs in pieces of CHUNK rows, checked."""
    if isinstance(inputs, str):
        raise DataError("A single text is not a sequence of rows. Give a list of texts.")
    paired = len(inputs) > 0 and not isinstance(inputs[0], str)
    for begin in range(0, len(inputs), CHUNK):
        part = list(inputs[begin : begin + CHUNK])
        for i, row in enumerate(part, begin):
            good = isinstance(row, (list, tuple)) and len(row) == 2 and all(isinstance(x, str) for x in row)
            if not (good if paired else isinstance(row, str)):
                what = "a pair of texts" if paired else "a text"
                raise DataError(
                    f"Row {i} is {str(row)[:40]!r} ({type(row).__name__}), not {what}. Convert or remove it."
                )
        yield ([r[0] for r in part], [r[1] for r in part]) if paired else (part, None)


def _check_texts(texts: Sequence[str], what: str) -> None:
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"{what} {i} is {str(text)[:40]!r} ({type(text).__name__}), not a text. Convert or remove it."
            )

"""The one tokenizer of the testbeds: byte-level BPE of 2,048 tokens, every digit a token of its own.

It was trained once on the documentation and its cipher (`train`) and lies beside this file; each testbed's
folder holds a copy with that family's special tokens around a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

VOCABULARY = 2048
PAD, END, BEGIN, CLS, SEP, MASK = range(6)
SENTINELS = 32
SPECIAL = ("<pad>", "</s>", "<s>", "[CLS]", "[SEP]", "[MASK]", *(f"<extra_id_{i}>" for i in range(SENTINELS)))
FIRST_SENTINEL = SPECIAL.index("<extra_id_0>")
FIRST_TEXT = len(SPECIAL)
"""The ids from here on are bytes and pieces of text."""
FILE = "tokenizer.json"
LENGTH = 512
"""Tokens that every testbed reads at most."""

AROUND: dict[str, tuple[str, str]] = {
    "decoder": ("<s> $A", "<s> $A $B"),
    "encoder-decoder": ("$A </s>", "$A $B </s>"),
    "encoder": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
}
"""Kind of model -> the special tokens around one text, and around a pair."""


def train(texts: Iterator[str]) -> Any:
    """A `tokenizers.Tokenizer` fitted to `texts`, without special tokens around a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    # Every text begins with a blank, so that a word is the same token wherever it stands.
    made.normalizer = normalizers.Prepend(" ")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(t, lstrip=True, rstrip=True, special=True) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def plain() -> Any:
    """The stored `tokenizers.Tokenizer`, which puts nothing around a text."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(files("luthier.models.testbeds").joinpath(FILE).read_text("utf-8"))


def write(folder: Path, kind: str) -> None:
    """Write tokenizer.json and tokenizer_config.json for a decoder, an encoder-decoder or an encoder."""
    from tokenizers import processors

    made = plain()
    one, pair = AROUND[kind]
    named = [t for t in ("</s>", "<s>", "[CLS]", "[SEP]") if t in one]
    made.post_processor = processors.TemplateProcessing(
        single=one, pair=pair, special_tokens=[(t, SPECIAL.index(t)) for t in named]
    )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / FILE))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": LENGTH,
        "clean_up_tokenization_spaces": False,
        "pad_token": "<pad>",
    }
    if kind == "encoder":
        settings |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    else:
        settings |= {"eos_token": "</s>", "model_input_names": ["input_ids", "attention_mask"]}
        settings |= {"bos_token": "<s>"} if kind == "decoder" else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", "utf-8")


def main() -> None:
    """Train the tokenizer again, on this Python's documentation and the skills, and write it beside this file."""
    import random

    from luthier.models.testbeds import corpus, skills

    texts = corpus.training()
    rng = random.Random(0)
    taught = (skills.instance(skill, rng, wordings=9) for skill in skills.SKILLS for _ in range(1500))
    made = train(iter([*texts, *map(corpus.cipher, texts[::3]), *(f"{i.prompt} {i.answer}" for i in taught)]))
    made.save(str(Path(__file__).with_name(FILE)))


if __name__ == "__main__":
    main()

"""Words as tokens: a word's label stands at its first token, whatever the tokenizer, the padding and the limit."""

import numpy as np
import pytest

from luthier.errors import DataError
from luthier.models.words import encode_words, first_tokens

SENTENCES = [
    ("Unbelievably", ",", "Straße", "café's", "x"),
    ("Ann",),
    ("New York", "is", "far-off", "日本語", "!?"),  # a word may hold a blank
]


def tokenizer(kind):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [" ".join(words) for words in SENTENCES] * 3
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if kind == "wordpiece":
        inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        inner.normalizer = normalizers.BertNormalizer()
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=70, special_tokens=special, show_progress=False)
    elif kind == "bytes":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=290, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    else:
        inner = Tokenizer(models.Unigram())
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=60, special_tokens=special, unk_token="[UNK]", show_progress=False
        )
    inner.train_from_iterator(texts, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(name, inner.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def preprocess(kind="wordpiece", **options):
    from luthier.models.text import TextPreprocess

    return TextPreprocess(tokenizer(kind), **{"max_length": 128, **options})


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "unigram"])
def test_the_label_stands_at_the_first_token_of_each_word(kind):
    pre = preprocess(kind)
    targets = [np.arange(len(words)) for words in SENTENCES]
    rows = encode_words(pre, SENTENCES, targets)
    assert rows.truncated == [False] * 3
    for words, row, starts in zip(SENTENCES, rows, rows.starts):
        assert [label for label in row["labels"] if label != -100] == list(range(len(words)))
        assert [row["labels"][at] for at in starts] == list(range(len(words)))
        assert row["labels"][0] == row["labels"][-1] == -100 and len(row["labels"]) == len(row["input_ids"])
        pieces = [pre.tokenizer.convert_ids_to_tokens(row["input_ids"][at]) for at in starts]
        for word, piece in zip(words, pieces):
            if word.isascii() and "[UNK]" not in piece:
                assert word.casefold().startswith(piece.lstrip("▁Ġ")[:1].casefold())
    assert sum(len(row["input_ids"]) for row in rows) > sum(map(len, SENTENCES)) + 10, (
        "words are cut to pieces"
    )


def test_ids_are_those_of_the_text():
    pre = preprocess()
    assert [row["input_ids"] for row in encode_words(pre, SENTENCES)] == [
        row["input_ids"] for row in pre.encode([" ".join(words) for words in SENTENCES])
    ]


@pytest.mark.parametrize("side", ["right", "left"])
def test_words_beyond_the_window_have_no_token(side):
    pre = preprocess("wordpiece", max_length=8, truncation=side)
    rows = encode_words(pre, [("x",) * 10], [np.arange(10)])
    assert rows.truncated == [True] and pre.report(rows)["truncated"] == 1
    lost = rows.starts[0] < 0
    there = [label for label in rows[0]["labels"] if label != -100]
    assert lost.tolist() == ([False] * 6 + [True] * 4 if side == "right" else [True] * 4 + [False] * 6)
    assert there == np.flatnonzero(~lost).tolist()


def test_labels_are_padded_with_the_ids_on_either_side():
    for side in ("right", "left"):
        pre = preprocess(padding=side)
        rows = encode_words(pre, SENTENCES, [np.zeros(len(words), int) for words in SENTENCES])
        batch = pre.collate(rows)
        assert batch["labels"].shape == batch["input_ids"].shape
        for row, starts, labels, mask in zip(rows, rows.starts, batch["labels"], batch["attention_mask"]):
            assert labels[mask.bool()].tolist() == row["labels"] and (labels == 0).sum() == len(starts)
            assert (labels[~mask.bool()] == -100).all()


def test_a_token_over_two_words_belongs_to_the_first():
    assert first_tokens([(0, 2), (3, 4), (5, 6)], [(0, 0), (0, 1), (1, 4), (5, 6), (0, 0)]).tolist() == [
        1,
        -1,
        3,
    ]
    assert first_tokens([(0, 2), (3, 4)], [(0, 2), (2, 4)]).tolist() == [0, 1], (
        "a blank before the word is no word's"
    )


@pytest.mark.parametrize("row", ["a text", [], ["a", ""], ["a", 3], None])
def test_rows_that_are_no_words_raise(row):
    with pytest.raises(DataError, match=r"Row 1 is .* not a list of words"):
        encode_words(preprocess(), [("a",), row])
    with pytest.raises(DataError, match="2 words and 1 tags"):
        encode_words(preprocess(), [("a", "b")], [np.zeros(1, int)])

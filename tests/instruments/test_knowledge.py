"""The probe of knowledge: perplexities worked out by hand, the interval, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from luthier.data.facts import Pair
from luthier.errors import DataError, OptionError
from luthier.instruments.knowledge import Knowledge, knowledge, read_pairs, wilson
from luthier.methods.low_rank.lora import LoRA
from luthier.train.fit import fit
from tests.train import train_testbed as bed

PAIRS = [
    Pair("the cat was", "good good", "bad"),
    Pair("a very dull movie", "one", "three two one"),
]


@torch.no_grad()
def by_hand(model, context, response):
    """exp of the mean of -log p over the response's tokens and its end."""
    row = model.preprocess.encode_text2text([context], [response])[0]
    if model.kind == "decoder":
        ids, front = torch.tensor([row["input_ids"]]), sum(row["instruction"])
        logits, said = model.base(input_ids=ids).logits[0, front - 1 : -1], ids[0, front:]
    else:
        said = torch.tensor(row["labels"])
        ids = torch.tensor([row["input_ids"]])
        logits = model.base(input_ids=ids, decoder_input_ids=torch.tensor([[0, *said[:-1]]])).logits[0]
    assert model.preprocess.tokenizer.decode(said, skip_special_tokens=True) == response and said[-1] == 3
    return float((-logits.log_softmax(-1)[range(len(said)), said].mean()).exp())


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_perplexities_are_those_of_single_responses(kind):
    model = bed.model(kind)
    found = knowledge(model, PAIRS, batch_size=3)
    for i, pair in enumerate(PAIRS):
        assert found.right[i] == pytest.approx(by_hand(model, pair.context, pair.right), rel=1e-4)
        assert found.wrong[i] == pytest.approx(by_hand(model, pair.context, pair.wrong), rel=1e-4)


def test_what_is_fitted_takes_part_and_is_taken_off_again():
    model = bed.model("encoder-decoder")
    before = knowledge(model, PAIRS)
    fitted = fit(model, bed.data("text2text"), LoRA(rank=2), steps=3, rate=0.1, progress=False)
    assert knowledge(fitted, PAIRS) != before
    assert knowledge(model, PAIRS) == before


def test_the_accuracy_and_its_interval():
    found = Knowledge((1.0, 2.0, 3.0, 2.0), (2.0, 3.0, 3.0, 1.0))
    assert found.preferred == [True, True, False, False] and found.accuracy == 0.5
    assert found.card()["pairs"] == 4 and found.card()["low"] == found.interval[0]
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, method 3
    assert wilson(0, 20)[0] == 0 and wilson(20, 20)[1] == pytest.approx(1)


def test_what_cannot_be_asked_is_refused(tmp_path):
    with pytest.raises(OptionError, match="writes no text"):
        knowledge(bed.model("encoder"), PAIRS)
    with pytest.raises(DataError, match="no pairs"):
        knowledge(bed.model("decoder"), [])
    model = bed.model("decoder")
    classes = fit(model, bed.data(), LoRA(rank=2), steps=1, progress=False)
    with pytest.raises(OptionError, match="output head"):
        knowledge(classes, PAIRS)
    with pytest.raises(DataError, match="do not fit"):
        knowledge(model, [Pair("cat " * 200, "dog", "cat")])
    table = tmp_path / "pairs.csv"
    table.write_text("context,right\na,b\n")
    with pytest.raises(DataError, match="no column wrong"):
        read_pairs(table)
    table.write_text("context,right,wrong\na,b,c\na,b,b\n")
    with pytest.raises(DataError, match="line 3"):
        read_pairs(table)

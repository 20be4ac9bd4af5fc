"""Prompts from thin factors, what they are settled to, and the starts that cross with them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import luthier as lt
from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
from luthier.methods.prompts.deep_prompt import DeepPrompt
from luthier.methods.prompts.dpt import DPT
from luthier.methods.prompts.prompt import CARRIERS, Prompt
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.sources.low_rank import LowRank
from luthier.sources.rows import from_rows, to_rows
from luthier.sources.settle import settled
from luthier.starts.vocabulary import Vocabulary
from tests.host import bed


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4))
def test_rows_of_a_prefix_come_back(heads, length, dim):
    x = torch.randn(heads, length, dim)
    rows = to_rows(x)
    assert rows.shape == (length, heads * dim)
    assert torch.equal(rows[0, :dim], x[0, 0])
    assert torch.equal(from_rows(rows, x.shape), x)
    assert torch.equal(from_rows(rows.expand(3, -1, -1), x.shape)[2], x)


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_a_factored_prompt_counts_and_ranks_as_the_paper_says(name):
    base = bed.base(name)
    made = Adaptation.new(DPT(length=7, source=LowRank(rank=3, initial="random")), base)
    width = base.get_input_embeddings().embedding_dim
    assert sum(p.numel() for p in made.trainable().values()) == 3 * (7 + width)
    at = made.at()[0]
    prompt = at.t(None).P
    assert prompt.shape == (7, width) and torch.linalg.matrix_rank(prompt) == 3
    assert all(0 < v.abs().max() <= 0.5 for v in at.values.values())


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
@pytest.mark.parametrize("carrier", list(CARRIERS))
def test_what_is_settled_says_the_same_and_has_no_source(name, carrier):
    base = bed.base(name)
    made = Adaptation.new(Prompt(carrier=carrier, length=5, source=LowRank(rank=2)).parts()[0], base, seed=3)
    plain = settled(made, base)
    assert plain.method.source.name == "free"
    assert not [n for n in plain.trainable() if n.endswith(("_A", "_B"))]
    model, batch, found = Adapted(base), bed.batch(name), []
    with torch.no_grad():
        alone = bed.result(model, batch)
        for each in (made, plain):
            with model.attached(each):
                found.append(bed.result(model, batch))
    bed.close(found[0], found[1], 1e-6)
    assert not torch.allclose(found[0], alone, atol=1e-3)


def test_a_settled_prefix_from_an_mlp_says_the_same():
    base = bed.base("llama")
    made = Adaptation.new(PTuningV2(length=3, reparameterise=True), base)
    plain, model, batch = settled(made, base), Adapted(base), bed.batch("llama")
    assert not plain.method.reparameterise and "E" not in "".join(plain.state())
    with torch.no_grad(), model.attached(made):
        want = bed.result(model, batch)
    with torch.no_grad(), model.attached(plain):
        bed.close(bed.result(model, batch), want, 1e-6)


def test_factors_of_a_start_are_its_best_of_that_rank():
    base = bed.base("llama")
    words = Adaptation.new(PromptTuning(length=6, start=Vocabulary(ids=(3, 4, 5, 6, 7, 8))), base)
    want = words.at()[0].values["P"]
    for rank, exact in ((6, True), (2, False)):
        made = Adaptation.new(
            PromptTuning(length=6, start=Vocabulary(ids=(3, 4, 5, 6, 7, 8)), source=LowRank(rank=rank)), base
        )
        left = float((made.at()[0].t(None).P - want).detach().norm())
        tail = torch.linalg.svdvals(want.detach())[rank:].norm()
        assert left == pytest.approx(float(tail), abs=1e-4)
        assert (left < 1e-4) == exact


def test_a_rank_above_the_length_is_refused():
    with pytest.raises(OptionError, match="rank=9 is above 4"):
        Adaptation.new(DPT(length=4, source=LowRank(rank=9)), bed.base("bert"))


def test_a_deep_prompt_has_tokens_of_its_own_in_every_block():
    base = bed.base("bert")
    made = Adaptation.new(DeepPrompt(length=3), base)
    blocks = base.config.num_hidden_layers
    assert [a.site.role for a in made.at()] == ["embedding"] + ["block"] * (blocks - 1)
    assert sum(p.numel() for p in made.trainable().values()) == blocks * 3 * base.config.hidden_size


@pytest.fixture
def reviews(tmp_path):
    rows = [f"{'good' if i % 2 else 'bad'} film {i},{'fine' if i % 2 else 'poor'}" for i in range(12)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]))
    return lt.data(tmp_path / "rows.csv", input="text", label="label", split=(0.5, 0.25, 0.25), seed=0)


def test_words_of_labels_and_texts_start_a_prompt(reviews):
    model = lt.load("builtin:t5", device="cpu")
    ids = [model.preprocess.tokenizer(w, add_special_tokens=False)["input_ids"] for w in reviews.task.labels]
    flat = [i for word in ids for i in word]
    from luthier.train.beginning import new_adaptation
    from luthier.train.settings import Settings

    method = lt.methods.get("prompt")
    made = new_adaptation(
        lt.methods.make("prompt", {"length": 5, "start": "label_words"}), model, reviews, Settings(), None, {}
    )
    table = model.base.get_input_embeddings().weight
    want = table[[flat[i % len(flat)] for i in range(5)]]
    assert torch.equal(made.at()[0].values["P"], want) and method is Prompt
    deep = new_adaptation(
        lt.methods.make("prompt", {"length": 5, "start": "label_words", "carrier": "deep"}),
        model,
        reviews,
        Settings(),
        None,
        {},
    )
    assert len(deep.at()) > 1 and all(torch.equal(a.values["P"], want) for a in deep.at())
    with pytest.raises(OptionError, match="tokens and the prompt 5"):
        new_adaptation(
            lt.methods.make("prompt", {"length": 5, "start": "text", "start.text": "the"}),
            model,
            reviews,
            Settings(),
            None,
            {},
        )
    with pytest.raises(OptionError, match="takes rows of a vocabulary"):
        new_adaptation(
            lt.methods.make("prompt", {"carrier": "keys_values", "start": "label_words"}),
            model,
            reviews,
            Settings(),
            None,
            {},
        )

"""DePT: sizes, what it is at the start, and that its shift follows positions through padding and cached generation."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import OptionError, RunError
from luthier.host import Adaptation, Adapted
from luthier.methods.prompts.dept import DePT
from luthier.methods.prompts.embedding_shift import EmbeddingShift
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.starts.normal import Normal
from tests.host import bed


class Wide:
    """A site as far as the solver looks at it."""

    def __init__(self, width):
        self.out_features = width


@given(st.integers(5, 200), st.integers(1, 300), st.integers(16, 512), st.data())
def test_the_solver_spends_the_budget_and_no_more(budget, width, positions, data):
    length = data.draw(st.integers(1, budget - 1))
    shift = DePT(length=length, budget=budget, max_positions=positions).parts()[1]
    left = budget * width - length * width - shift.rank_at(Wide(width)) * (positions + width)
    assert 0 <= left < positions + width


def test_sizes_are_those_of_t5_base_in_the_paper():
    assert DePT(length=60, budget=100).parts()[1].rank_at(Wide(768)) == 30


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "mamba"])
def test_with_b_zero_it_is_prompt_tuning_of_its_length_bit_for_bit(name):
    base, start = bed.base(name), Normal(std=1.0)
    plain = Adaptation.new(PromptTuning(length=4, start=start), base, seed=1)
    made = Adaptation.new(DePT(length=4, start=start), base, seed=1)
    model, batch, found = Adapted(base), bed.batch(name), []
    with torch.no_grad():
        for each in (plain, made, bed.shaken(copy.deepcopy(made))):
            with model.attached(each):
                found.append(bed.result(model, batch))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-3)


@pytest.mark.parametrize("name", ["bert", "t5", "llama"])
def test_the_shift_is_that_of_each_tokens_position(name):
    """Against the base fed with shifted embeddings, row by row and without padding."""
    base, batch = bed.base(name), bed.batch(name)
    model = Adapted(base)
    made = bed.shaken(Adaptation.new(EmbeddingShift(rank=2), base))
    t = made.at()[0].values
    table = 8.0 / 2**0.5 * t["A"] @ t["B"]
    with torch.no_grad():
        with model.attached(made):
            out = model(batch)
        got = out.logits if out.logits is not None else out.hidden
        for i, mask in enumerate(batch["attention_mask"].bool()):
            ids = batch["input_ids"][i][mask][None]
            x = base.get_input_embeddings()(ids) + table[: ids.shape[1]]
            rest = {"decoder_input_ids": batch["decoder_input_ids"][i : i + 1]} if name == "t5" else {}
            raw = base(inputs_embeds=x, **rest)
            want = raw.last_hidden_state if name == "bert" else raw.logits
            bed.close(got[i : i + 1] if name == "t5" else got[i][mask][None], want, 1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "mamba"])
def test_cached_generation_goes_on_at_the_right_position(name):
    base = bed.base(name)
    model = Adapted(base)
    model.attach("main", bed.shaken(Adaptation.new(DePT(length=4), base), 0.5)).eval()
    batch = {k: v for k, v in bed.batch(name).items() if k != "decoder_input_ids"}
    with torch.no_grad():
        cached = model.generate(**batch, max_new_tokens=6, do_sample=False)
        whole = model.generate(**batch, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(cached, whole)


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_a_longer_input_is_refused_and_padding_does_not_count(name):
    base = bed.base(name)
    model = Adapted(base)
    model.attach("main", Adaptation.new(DePT(length=4, rank=2, max_positions=16), base))
    batch = bed.batch(name, rows=1, tokens=17)
    with pytest.raises(RunError, match="16 positions, and a row here has 17 tokens"):
        model(batch)
    batch["attention_mask"][:, -1] = 0
    model(batch)


def test_a_recurrent_state_without_a_mask_has_no_position():
    base = bed.base("mamba")
    ids = bed.batch("mamba")["input_ids"]
    state = base(ids, use_cache=True).cache_params
    Adapted(base).attach("main", Adaptation.new(EmbeddingShift(), base))
    with pytest.raises(RunError, match="attention_mask of the whole sequence"):
        base(ids[:, :1], cache_params=state, use_cache=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"length": 100}, "Set length below 100"),
        ({"length": 99}, "the rank is 0"),
        ({"rank": 40}, "the rank is 40"),
    ],
)
def test_sizes_that_leave_no_shift_are_refused(options, says):
    with pytest.raises(OptionError, match=says):
        Adaptation.new(DePT(**options), bed.base("bert"))


def test_a_shift_of_other_sites_is_refused():
    with pytest.raises(OptionError, match="Leave targets=embedding"):
        Adaptation.new(EmbeddingShift(targets=r"mlp.up"), bed.base("llama"))


@pytest.mark.parametrize(
    ("rate", "prompt", "shift"), [(None, 0.1, 0.1 * 0.05), (0.4, 0.4, 0.02)], ids=["own", "of the run"]
)
def test_the_two_parts_have_rates_of_their_own(rate, prompt, shift):
    method = DePT(length=4)
    made = Adaptation.new(method, bed.base("bert"))

    class Run:
        def rates(self, name):
            own = {0: 0.1, 1: EmbeddingShift.rate, 2: 7.0}[int(name.split(".")[2])]
            return own if rate is None or own == 7.0 else rate, 0.0

    named = {f"main.{n}": p for n, p in made.trainable().items()}
    named["main.parts.2.at.output.values.weight"] = torch.nn.Parameter(torch.zeros(2))
    found = {
        n.split(".")[-1]: g["lr"]
        for g in method.adamw_at_two_rates(named, Run()).param_groups
        for n in g["param_names"]
    }
    assert found == pytest.approx({"P": prompt, "A": shift, "B": shift, "weight": 7.0})


def test_towers_that_share_their_embedding_do_not_share_the_shift():
    """After resizing, both towers of a T5 call the same module: the decoder's input must stay as it was."""
    base, batch = bed.base("t5"), bed.batch("t5")
    base.resize_token_embeddings(bed.VOCABULARY + 8)
    assert base.encoder.embed_tokens is base.decoder.embed_tokens
    model = Adapted(base)
    made = bed.shaken(Adaptation.new(EmbeddingShift(rank=2), base))
    t = made.at()[0].values
    with torch.no_grad():
        with model.attached(made):
            got = model(batch).logits
        mask = batch["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        x = base.shared(batch["input_ids"]) + (8.0 / 2**0.5 * t["A"] @ t["B"])[positions]
        want = base(inputs_embeds=x, attention_mask=mask, decoder_input_ids=batch["decoder_input_ids"]).logits
    bed.close(got, want, 1e-5)

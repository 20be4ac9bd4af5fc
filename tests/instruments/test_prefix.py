"""What a prefix can do to attention: exact for every way of making one; and the verdict on whether it suffices."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.host import Adaptation
from luthier.instruments.prefix import Sufficiency, equal_methods, prefix_bias, prefix_suffices
from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
from luthier.methods.prompts.prompt import Prompt
from luthier.sources.low_rank import LowRank
from luthier.sources.settle import settled
from luthier.starts.normal import Normal
from tests.host import bed

CARRIERS = {
    "free": lambda m: PTuningV2(length=m),
    "mlp": lambda m: PTuningV2(length=m, reparameterise=True),
    "low_rank": lambda m: PTuningV2(length=m, source=LowRank(rank=1)),
    "prompt": lambda m: Prompt(carrier="keys_values", length=m, start=Normal()),
}


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5"])
def test_a_prefix_adds_a_bias_in_the_span_of_its_values_and_keeps_ratios(name, carrier, length):
    base = bed.base(name).double()
    made = bed.shaken(Adaptation.new(CARRIERS[carrier](length), base), 1.0).to(torch.float64)
    batch = bed.batch(name, rows=2, tokens=6)
    held = base.config._attn_implementation
    found = prefix_bias(base, made, batch)
    assert base.config._attn_implementation == held
    assert found.alpha.min() > 0 and 0.01 < found.alpha.mean() < 0.999
    bound = 1e-6 if name == "llama" else 1e-10  # its softmax is float32
    assert max(found.outside, found.formula, found.ratios) < bound


def test_a_settled_prefix_keeps_it_too_and_a_change_of_attention_does_not():
    base = bed.base("llama").double()
    made = bed.shaken(Adaptation.new(CARRIERS["low_rank"](3), base), 1.0)
    batch = bed.batch("llama")
    found = prefix_bias(base, settled(made, base).to(torch.float64), batch)
    assert max(found.outside, found.formula, found.ratios) < 1e-6

    class Wrong(PTuningV2):
        """A prefix that takes its attention from the last content token, too."""

        def attend(self, seen, out, t, ctx):
            return out + 0.1 * seen.v[:, :1, -1:].transpose(1, 2)

    wrong = bed.shaken(Adaptation.new(Wrong(length=1), base), 1.0).to(torch.float64)
    assert prefix_bias(base, wrong, batch).outside > 1e-2


def test_equal_numbers_as_the_row_counts_them():
    from transformers import LlamaConfig, LlamaForCausalLM

    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4
        )
    )
    made = equal_methods(base, 4)
    assert made["prefix"].length == 16
    assert {Adaptation.new(m, base).counts()["method"] for m in made.values()} == {2048}
    wide = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            head_dim=512,
        )
    )
    assert equal_methods(wide, 1)["prefix"].length == 2


def test_the_verdict_is_what_the_interval_over_seeds_says():
    def of(prefix, lora, better=True):
        numbers = {"prefix": 8, "lora": 8}
        return Sufficiency(
            dict(enumerate(prefix)), dict(enumerate(lora)), numbers, "accuracy", better, 0.02
        ).verdict

    assert of([0.2, 0.21, 0.19], [0.99, 0.98, 1.0]) == "attention must change"
    assert of([0.9, 0.91, 0.92], [0.9, 0.9, 0.91]) == "prefix suffices"
    assert of([0.5, 0.9, 0.7], [0.9, 0.5, 0.8]) == "undecided" == of([0.5], [0.9])
    assert of([2.0, 2.1, 2.2], [0.1, 0.2, 0.1], better=False) == "attention must change"


def test_both_are_trained_and_scored_on_the_users_data():
    model = lt.load("builtin:llama", device="cpu")
    data = lt.data("builtin:verdicts").limit(train=24, validation=6, test=6)
    found = prefix_suffices(model, data, rank=1, seeds=(0, 1), rates=(1.0,), steps=2, batch_size=4)
    assert set(found.prefix) == set(found.lora) == {0, 1}
    assert 0.9 * found.numbers["lora"] < found.numbers["prefix"] <= found.numbers["lora"]
    assert found.card()["verdict"] in ("prefix suffices", "attention must change", "undecided")

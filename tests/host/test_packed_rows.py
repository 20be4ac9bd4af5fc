"""Rows packed of several sequences say what each sequence says alone, also under prompts and prefixes; or they are refused."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.errors import ModelError
from luthier.host import Adaptation, Adapted
from tests.host import bed
from tests.host.test_sliding_window import base as with_a_window

LENGTHS = (5, 7, 1, 3)
METHODS = [
    lt.methods.LoRA(rank=2),
    lt.methods.PromptTuning(length=3),
    lt.methods.DeepPrompt(length=2),
    lt.methods.DePT(length=2, budget=20),
    lt.methods.PTuningV2(length=3),
    lt.methods.NTKAttention(),
]


def packed() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Sequences of LENGTHS tokens, (1, tokens) each, and the positions of the row that packs them."""
    rng = torch.Generator().manual_seed(0)
    pieces = [torch.randint(3, 40, (1, n), generator=rng) for n in LENGTHS]
    return pieces, torch.cat([torch.arange(n) for n in LENGTHS])[None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_each_piece_says_what_it_says_alone(method, architecture, attention) -> None:
    base = bed.base(architecture)
    base.set_attn_implementation(attention)
    pieces, positions = packed()
    adapted = Adapted(base)
    with adapted.attached(bed.shaken(Adaptation.new(method, base))), torch.no_grad():
        row = adapted({"input_ids": torch.cat(pieces, 1), "position_ids": positions, "use_cache": False})
        alone = [adapted({"input_ids": ids, "use_cache": False}).logits for ids in pieces]
    assert torch.allclose(row.logits, torch.cat(alone, 1), atol=1e-4)


@pytest.mark.parametrize("length", [1, 4])
def test_gradients_of_a_packed_row_are_those_of_its_pieces(length) -> None:
    base = bed.base("llama")
    pieces, positions = packed()
    made = bed.shaken(Adaptation.new(lt.methods.DeepPrompt(length=length), base))
    adapted = Adapted(base)

    def gradients(batches):
        with adapted.attached(made):
            made.zero_grad()
            sum(adapted(b).logits.square().sum() for b in batches).backward()
        return [p.grad.clone() for p in made.trainable().values()]

    row = gradients([{"input_ids": torch.cat(pieces, 1), "position_ids": positions}])
    alone = gradients([{"input_ids": ids} for ids in pieces])
    for a, b in zip(row, alone, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@pytest.mark.parametrize("method", [lt.methods.IDSPAM(length=2), lt.methods.IAPT()], ids=lambda m: m.name)
def test_a_prompt_made_from_the_whole_row_is_refused(method) -> None:
    base = bed.base("llama")
    pieces, positions = packed()
    adapted = Adapted(base)
    with (
        adapted.attached(Adaptation.new(method, base)),
        pytest.raises(ModelError, match=r"packed.*row of its own"),
    ):
        adapted({"input_ids": torch.cat(pieces, 1), "position_ids": positions})


def test_a_window_is_refused() -> None:
    base = with_a_window("mistral")
    pieces, positions = packed()
    adapted = Adapted(base)
    with (
        adapted.attached(Adaptation.new(lt.methods.PromptTuning(length=2), base)),
        pytest.raises(ModelError, match="sliding window"),
    ):
        adapted({"input_ids": torch.cat(pieces, 1), "position_ids": positions})

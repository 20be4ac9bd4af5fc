"""Which tokens are the first and the last of the input: under padding, answers, prompts, caches and packed rows."""

from __future__ import annotations

import pytest
import torch

from luthier.host import Adaptation, Adapted
from luthier.host.context import Context
from luthier.host.ends import FAR, ends
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.methods.representation.loreft import LoReFT
from tests.host import bed

CPU = torch.device("cpu")


def distances(found) -> list[list[list[int | None]]]:
    return [[[None if v == FAR else int(v) for v in row] for row in x] for x in (found.before, found.behind)]


@pytest.mark.parametrize("left", [True, False])
def test_padding_is_no_input(left: bool) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    mask = mask if left else mask.flip(1)
    before, behind = distances(ends(Context(tower="main", mask=mask), 5, CPU))
    assert before[1] == [0, 1, 2, 3, 4] and behind[1] == [4, 3, 2, 1, 0]
    assert before[0] == ([None, None, 0, 1, 2] if left else [0, 1, 2, None, None])
    assert behind[0] == ([None, None, 2, 1, 0] if left else [2, 1, 0, None, None])


def test_the_answer_is_no_input() -> None:
    ids, mask = torch.arange(6)[None], torch.tensor([[0, 1, 1, 1, 1, 1]])
    labels = torch.tensor([[-100, -100, -100, -100, 4, 5]])
    ctx = Context(tower="main", ids=ids, mask=mask, labels=labels, causal=True)
    assert distances(ends(ctx, 6, CPU)) == [
        [[None, 0, 1, 2, None, None]],
        [[None, 2, 1, 0, None, None]],
    ]


def test_a_cache_holds_the_input_or_a_part_of_it() -> None:
    said = {"instruction": torch.tensor([[0, 1, 1, 1, 1]])}
    mask = torch.ones(1, 6)
    written = Context(tower="main", mask=mask, given=said, phase="decode", seen=5)
    assert distances(ends(written, 1, CPU)) == [[[None]], [[None]]]
    rest = Context(tower="main", mask=mask[:, :5], given=said, phase="decode", seen=3)
    assert distances(ends(rest, 2, CPU)) == [[[2, 3]], [[1, 0]]]
    assert ends(Context(tower="main", mask=mask, phase="decode", seen=5), 1, CPU) is None
    assert ends(Context(tower="main", given=said, phase="decode"), 1, CPU) is None  # a recurrent state


def test_every_sequence_of_a_packed_row_has_its_ends() -> None:
    ctx = Context(tower="main", causal=True, positions=torch.tensor([[0, 1, 2, 0, 1]]))
    found = ends(ctx, 5, CPU)
    assert found.packed and distances(found) == [[[0, 1, 2, 0, 1]], [[2, 1, 0, 1, 0]]]


def changed(model: Adapted, x: dict) -> torch.Tensor:
    """(rows, tokens) whether the first block's output was edited there."""
    seen: list[torch.Tensor] = []
    block = model.base.get_submodule(model.structure.towers[0].blocks[0])
    handle = block.register_forward_hook(
        lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(x)
        with model.using(*(n for n in model.active if n != "main")):
            model(x)
    handle.remove()
    return (seen[0] != seen[1]).any(-1)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "mamba"])
def test_prompts_in_front_are_no_input(name: str) -> None:
    base, x = bed.base(name), bed.batch(name)
    model = Adapted(base)
    model.attach("prompt", Adaptation.new(PromptTuning(length=3), base))
    part = LoReFT(rank=2, first=1, last=2, targets="block[0]")
    model.attach("main", bed.shaken(Adaptation.new(part, base)))
    found = changed(model, x)
    assert found.shape[1] == 3 + x["input_ids"].shape[1]
    mask = x["attention_mask"]
    want = torch.zeros(len(mask), 3 + mask.shape[1], dtype=torch.bool)
    for i, row in enumerate(mask):
        own = row.nonzero()[:, 0] + 3  # a recurrent tower has its prompts behind the padding: the tokens stay
        want[i, own[[0, -2, -1]]] = True
    assert torch.equal(found, want)


def test_what_is_recomputed_knows_its_tower_again() -> None:
    """An edit inside a block, behind prompts, under gradient checkpointing: the same gradients."""

    def gradients(recompute: bool) -> list[torch.Tensor]:
        base, x = bed.base("llama"), bed.batch("llama")
        model = Adapted(base)
        model.attach("prompt", Adaptation.new(PromptTuning(length=3), base))
        made = bed.shaken(Adaptation.new(LoReFT(rank=2, first=1, last=2, targets="mlp.down"), base))
        model.attach("main", made)
        if recompute:
            model.checkpoint()
        bed.result(model, x).pow(2).mean().backward()
        return [p.grad for p in made.trainable().values()]

    for plain, again in zip(gradients(False), gradients(True), strict=True):
        assert plain.abs().max() > 0
        bed.close(again, plain, 1e-5)

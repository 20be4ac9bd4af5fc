"""LoReFT and DiReFT: the formula, which tokens, what stays orthonormal, and generation."""

from __future__ import annotations

import pytest
import torch

from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.methods.representation.loreft import DiReFT, LoReFT
from luthier.sources.orthonormal import orthonormal_rows
from luthier.starts.rotated import Rotated
from tests.host import bed


def test_rows_are_orthonormal_span_the_same_and_are_smooth() -> None:
    p = torch.randn(3, 4, 9, dtype=torch.float64, requires_grad=True)
    r = orthonormal_rows(p)
    assert torch.allclose(r @ r.mT, torch.eye(4, dtype=torch.float64).expand(3, 4, 4))
    assert torch.allclose(p @ r.mT @ r, p)  # nothing of p lies outside
    assert (r * p).sum(-1).gt(0).all()  # Gram-Schmidt's signs, whatever the decomposition's
    assert torch.autograd.gradcheck(orthonormal_rows, p)


@pytest.mark.parametrize("kind", [LoReFT, DiReFT])
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_the_edit_is_its_formula_at_the_ends_and_nothing_else(kind, tied: bool) -> None:
    """Rows of 9, 6, 3 and 1 tokens of input; 3 first and 2 last: where they meet, the nearer end has the token."""
    base = bed.base("llama").double()
    x = bed.batch("llama")
    lengths = [9, 6, 3, 1]
    x["attention_mask"] = torch.tensor([[0] * (9 - n) + [1] * n for n in lengths])
    model = Adapted(base)
    part = kind(rank=3, first=3, last=2, tied=tied, targets="block[1]")
    made = bed.shaken(Adaptation.new(part, base)).double()
    model.attach("main", made)
    seen: list[torch.Tensor] = []
    handle = base.model.layers[1].register_forward_hook(lambda m, a, out: seen.append(out))
    with model.using():
        model(x)
    model(x)
    handle.remove()
    t = made.at()[0].t(None)
    if kind is LoReFT:
        assert torch.allclose(t.R @ t.R.mT, torch.eye(3, dtype=torch.float64).expand(len(t.R), 3, 3))
    which = {9: [0, 0, 0, None, None, None, None, 1, 1], 6: [0, 0, 0, None, 1, 1], 3: [0, 0, 1], 1: [0]}
    want = seen[0].clone()
    for i, n in enumerate(lengths):
        for j, end in enumerate(which[n]):
            if end is None:
                continue
            k = 0 if tied else end
            h = seen[0][i, 9 - n + j]
            inside = t.W[k] @ h + t.b[k]
            want[i, 9 - n + j] = h + t.R[k].T @ (inside - t.R[k] @ h if kind is LoReFT else inside)
    assert torch.allclose(seen[1], want)
    assert torch.equal(seen[1] != seen[0], (want != seen[0]).any(-1, keepdim=True).expand_as(want))


def test_it_replaces_the_subspace_and_leaves_the_rest() -> None:
    """R of the edited state is W h + b; what is orthogonal to R's rows stays."""
    base = bed.base("bert").double()
    part = LoReFT(rank=4, first=20, last=0)
    t = bed.shaken(Adaptation.new(part, base)).double().at()[0].t(None)
    assert t.layout == {"sets": 1}
    r, w, b = t.R[0], t.W[0], t.b[0]
    h = torch.randn(5, base.config.hidden_size, dtype=torch.float64)
    new = h + part.change(h, r, w, b)
    assert torch.allclose(new @ r.T, h @ w.T + b)
    left = torch.eye(len(h.T), dtype=torch.float64) - r.T @ r
    assert torch.allclose(new @ left, h @ left)


def test_starts_and_counts() -> None:
    base = bed.base("llama")
    x = bed.batch("llama")
    model = Adapted(base)
    want = bed.result(model, x)
    for part, same in (
        (LoReFT(rank=4), True),
        (LoReFT(rank=4, start=Rotated(apart=True)), False),
        (DiReFT(rank=4), True),
    ):
        made = Adaptation.new(part, base)
        assert made.counts()["method"] == 3 * 2 * (2 * 4 * 32 + 4)
        with model.attached(made), torch.no_grad():
            assert torch.equal(bed.result(model, x), want) == same


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
@pytest.mark.parametrize("ask", ["adapted", "base"])
@torch.no_grad()
def test_generation_edits_the_prompt_alone_with_and_without_what_the_host_says(name: str, ask: str) -> None:
    """Cached generation equals a forward over all tokens in which only the prompt is input; Transformers' own `generate` too."""
    base, x = bed.base(name), bed.batch(name)
    model = Adapted(base)
    model.attach("main", bed.shaken(Adaptation.new(LoReFT(rank=4, first=2, last=2), base), 0.4))
    writer = model if ask == "adapted" else base
    written = writer.generate(**x, max_new_tokens=5, do_sample=False)
    mask = torch.cat([x["attention_mask"], torch.ones(len(written), 5, dtype=torch.long)], 1)
    positions = {} if name == "mamba" else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    whole = {"input_ids": written, "attention_mask": mask, "instruction": x["attention_mask"], **positions}
    logits = model(whole).logits[:, x["input_ids"].shape[1] - 1 : -1]
    assert torch.equal(logits.argmax(-1), written[:, x["input_ids"].shape[1] :])
    with model.using():
        bare = model.generate(**x, max_new_tokens=5, do_sample=False)
    assert not torch.equal(bare, written)


def test_bad_options_are_refused() -> None:
    for part, words in (
        (LoReFT(rank=33), "above the width 32"),
        (LoReFT(first=0, last=0), "leave no token"),
        (LoReFT(targets="decoder:block"), "the tower that reads the input"),
    ):
        with pytest.raises(OptionError, match=words):
            Adaptation.new(part, bed.base("t5"))

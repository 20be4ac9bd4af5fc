"""p-adapter (S211): messages on attention's own map, against loops over its edges."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.methods.adapters.p_adapter import FLOOR, PAdapter, PLaplacian, messages, pooling
from tests.host import bed


def graph(seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    a = torch.softmax(torch.randn(2, 3, 4, 5, generator=rng, dtype=torch.float64), -1)
    queries, values = (torch.randn(2, 3, n, 6, generator=rng, dtype=torch.float64) for n in (4, 5))
    return a, queries, values


def test_at_two_messages_are_attention_of_the_values() -> None:
    a, queries, values = graph()
    assert torch.allclose(messages(a, queries, values, 2.0, 0.0), a @ values, atol=1e-12)
    assert torch.allclose(messages(a, queries, values, 2.0, 3.0), a @ values / 4, atol=1e-12)


@pytest.mark.parametrize("p", [1.0, 1.25, 1.75, 3.0])
def test_other_exponents_are_a_loop_over_edges(p: float) -> None:
    a, queries, values = graph()
    mu, want = 0.7, torch.zeros(2, 3, 4, 6, dtype=torch.float64)
    for r in range(2):
        for head in range(3):
            for i in range(4):
                total, masses = 0.0, 0.0
                for j in range(5):
                    edge = a[r, head, i, j]
                    gap = (queries[r, head, i] - values[r, head, j]).pow(2).sum()
                    m = edge * (edge * gap + FLOOR).sqrt() ** (p - 2)
                    total, masses = total + m * values[r, head, j], masses + m
                want[r, head, i] = total / (masses + 2 * mu / p)
    assert torch.allclose(messages(a, queries, values, p, mu), want, atol=1e-12)


def test_equal_nodes_and_hidden_edges_are_finite_and_pass_gradients() -> None:
    a = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]).requires_grad_()
    nodes = torch.ones(3, 4, requires_grad=True)
    p, mu = torch.tensor(1.25, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    out = messages(a, nodes[:2], nodes, p, mu)
    assert (out >= 0).all() and (out <= 1).all() and not out[1].any()
    for g in torch.autograd.grad(out.sum(), (a, nodes, p, mu)):
        assert torch.isfinite(g).all()


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "vit"])
@torch.no_grad()
def test_the_edit_reads_the_models_own_map(name: str) -> None:
    """The map is that which Transformers returns, masks and position biases included; all else by hand."""
    base = bed.base(name).double()
    base.set_attn_implementation("eager")
    x = bed.batch(name)
    x = {k: v.double() if v.is_floating_point() else v for k, v in x.items()}
    if (
        "attention_mask" in x
    ):  # on the right: of rows that see nothing Llama's eager attention makes NaN in double precision
        x["attention_mask"] = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 9, [1] * 9])
    model = Adapted(base)
    role = "cross_attention" if name == "t5" else "attention"
    made = bed.shaken(Adaptation.new(PLaplacian(reduction=4, targets=f"{role}.output[1]"), base)).double()
    at = made.at()[0]
    site, caught = at.site, []
    out = model({**x, "output_attentions": True}).raw
    maps = out.cross_attentions if name == "t5" else out.attentions
    projected: dict[str, torch.Tensor] = {}
    handles = []
    for what in ("query", "value"):
        where = next(
            s
            for s in model.structure.sites
            if s.role == f"{role}.{what}" and s.layer == 1 and s.tower == site.tower
        )
        rows = slice(*where.rows) if where.rows else slice(None)
        handles.append(
            base.get_submodule(where.path).register_forward_hook(
                lambda m, a, y, what=what, rows=rows: projected.__setitem__(what, y[..., rows])
            )
        )
    layer = base.get_submodule(site.path)
    plain = layer.register_forward_hook(lambda m, a, y: caught.append(y))
    with model.attached(made):
        edited = layer.register_forward_hook(lambda m, a, y: caught.append(y))
        model(x)
    for h in (*handles, plain, edited):
        h.remove()
    t, (h, new) = at.t(None), caught
    q, v = projected["query"], projected["value"]
    if name == "llama":  # two heads share a value; queries are turned by their positions
        v = v.unflatten(-1, (2, 8)).repeat_interleave(2, -2).flatten(-2)
        n = q.shape[1]
        cos, sin = base.model.rotary_emb(q, torch.arange(n)[None])
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        heads = q.unflatten(-1, (4, 8)).transpose(1, 2)
        q = apply_rotary_pos_emb(heads, heads, cos, sin)[0].transpose(1, 2).flatten(2)
    nodes = [(layer(each) @ t.down.T + t.down_bias).unflatten(-1, (4, 2)).transpose(1, 2) for each in (q, v)]
    mu = 1.0 * (2 + torch.tanh(t.m))
    f = messages(maps[1], *nodes, t.p, mu).transpose(1, 2).flatten(2)
    want = h + (F.gelu(h @ t.gate.T + t.gate_bias) * f) @ t.up.T + t.up_bias
    seen = x["attention_mask"].bool() if name in ("bert", "llama", "gpt2") else slice(None)
    assert torch.allclose(new[seen], want[seen], atol=1e-6)  # Llama's own softmax is in single precision
    assert (new - h)[seen].abs().max() > 1e-3


def test_keys_are_pooled_in_equal_groups_of_what_is_seen() -> None:
    from luthier.host.bridge import Attended

    k = torch.zeros(2, 1, 6, 3)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0]], dtype=torch.bool)[:, None, None]
    seen = Attended(torch.nn.Module(), k, k, k, mask, 1.0)
    third = 1 / 2
    assert pooling(seen, 3)[0].tolist() == [
        [third, 0, 0], [third, 0, 0], [0, third, 0], [0, third, 0], [0, 0, third], [0, 0, third]
    ]  # fmt: skip
    assert pooling(seen, 3)[1].nonzero().tolist() == [[1, 0], [2, 1], [4, 2]]
    base, x = bed.base("t5"), bed.batch("t5")
    model = Adapted(base)
    part = PLaplacian(reduction=4, pooled=2)
    made = bed.shaken(Adaptation.new(part, base))
    assert {a.layout["pools"] for a in made.at()} == {False, True}
    with torch.no_grad(), model.attached(made):
        together = bed.result(model, x)
        row = {k: v[1:2] for k, v in x.items()}
        own = row["attention_mask"][0].bool()
        row = {**row, "input_ids": row["input_ids"][:, own], "attention_mask": row["attention_mask"][:, own]}
        bed.close(bed.result(model, row), together[1:2], 1e-4)
    with model.attached(bed.shaken(Adaptation.new(PLaplacian(reduction=4), base))), torch.no_grad():
        assert not torch.allclose(bed.result(model, x), together)


def test_it_begins_as_the_base_and_counts_its_numbers() -> None:
    base, x = bed.base("t5"), bed.batch("t5")
    model = Adapted(base)
    want = bed.result(model, x)
    made = Adaptation.new(PAdapter(reduction=4, width=6, mu=0.1, p=1.25), base)
    with model.attached(made), torch.no_grad():
        assert torch.equal(bed.result(model, x), want)
    nodes = 4 * (8 // 4)
    own = 9 * (3 * nodes * 32 + 2 * nodes + 32 + 2) + 6 * (2 * 6 * 32 + 6 + 32)
    assert made.counts()["method"] == own
    assert made.at()[0].values["p"].tolist() == [1.25]
    with pytest.raises(OptionError, match="leaves nothing of heads of width 8"):
        Adaptation.new(PLaplacian(reduction=9), base)

"""Prompts fetched from a memory: the nearest rows, by row, and what gets a gradient."""

from __future__ import annotations

import pytest
import torch

from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.methods.prompts.retrieved_prompt import RetrievedPrompt
from luthier.sources.retrieved import Retrieved, largest
from tests.host import bed


def method(**options):
    return RetrievedPrompt(length=5, source=Retrieved(**{"entries": 12, "k": 3, **options}))


def test_the_nearest_are_those_of_a_search_of_all_rows_also_with_duplicates():
    rng = torch.Generator().manual_seed(0)
    memory = torch.randn(10_000, 8, generator=rng).round()  # many rows are equal
    queries = torch.randn(5, 8, generator=rng).round()
    scores = queries @ memory.T
    got = largest(scores, 20)
    for mine, row in zip(got.tolist(), scores.tolist(), strict=True):
        assert mine == sorted(range(len(row)), key=lambda i: (-row[i], i))[:20]
    assert len(set(scores[0].tolist())) < 1000


@torch.no_grad()
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5"])
def test_each_row_gets_the_rows_nearest_to_it(name, weighted):
    model, batch = Adapted(bed.base(name)), bed.batch(name)
    made = bed.shaken(Adaptation.new(method(weighted=weighted), model.base))
    model.attach("main", made)
    kept, usual = [], RetrievedPrompt.tokens
    RetrievedPrompt.tokens = lambda self, t, ctx: kept.append(t.P) or usual(self, t, ctx)
    try:
        together = bed.result(model, batch)
    finally:
        RetrievedPrompt.tokens = usual
    t, table = made.at()[0].values, model.base.get_input_embeddings().weight
    chosen = set()
    for ids, mask, mine in zip(batch["input_ids"], batch["attention_mask"], kept[0], strict=True):
        query = table[ids[mask.bool()]].mean(0)
        query = query @ t["Wq"] if weighted else query
        scores = t["M"] @ query
        at = scores.topk(3).indices
        chosen.add(tuple(at.tolist()))
        share = 3 * (scores[at] / 32**0.5).softmax(0) if weighted else torch.ones(3)
        torch.testing.assert_close(mine, torch.cat([t["M"][at] * share[:, None], t["P"]]))
    assert len(chosen) > 1
    for i in range(4):
        bed.close(bed.result(model, {k: v[i : i + 1] for k, v in batch.items()}), together[i : i + 1], 1e-5)


@torch.no_grad()
def test_without_a_memory_it_is_prompt_tuning():
    for name in ("bert", "llama"):
        base, batch, found = bed.base(name), bed.batch(name), []
        for part in (method(k=0), PromptTuning(length=5)):
            model = Adapted(base)
            with model.attached(Adaptation.new(part, base, seed=3)):
                found.append(bed.result(model, batch))
        assert torch.equal(*found)


@pytest.mark.parametrize("weighted", [True, False])
def test_exactly_the_fetched_rows_get_a_gradient(weighted):
    model, batch = Adapted(bed.base("llama")), bed.batch("llama")
    made = Adaptation.new(method(weighted=weighted), model.base)
    model.attach("main", made)
    kept, usual = [], Retrieved.fetch
    Retrieved.fetch = lambda self, scores: kept.append(usual(self, scores)) or kept[-1]
    try:
        bed.result(model, batch).pow(2).mean().backward()
    finally:
        Retrieved.fetch = usual
    t = made.at()[0].values
    fetched = sorted(set(kept[0].flatten().tolist()))
    assert t["M"].grad.abs().amax(1).nonzero()[:, 0].tolist() == fetched and len(fetched) < 12
    assert ("Wq" in t) == weighted and (not weighted or t["Wq"].grad.abs().max() > 0)


def test_more_than_there_is_cannot_be_fetched():
    base = bed.base("bert")
    for options in ({"k": 6}, {"entries": 2}):
        with pytest.raises(OptionError, match="is above"):
            Adaptation.new(method(**options), base)
    made = Adaptation.new(RetrievedPrompt(length=3, source=Retrieved(entries=4)), base)
    assert set(made.at()[0].values) == {"M", "Wq"}

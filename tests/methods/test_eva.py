"""EVA (S144): directions of the inputs by incremental PCA, ranks shared out, and what calibration leaves out and shares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import OptionError, SiteError
from luthier.host import Adaptation, Adapted
from luthier.host.calibrate import calibrate
from luthier.host.files import load, save
from luthier.methods.low_rank.chain import ChainOfLoRA
from luthier.methods.low_rank.eva import EVA
from luthier.methods.low_rank.lora import LoRA
from luthier.starts.eva import NAME, EVAStart, allocated
from luthier.starts.principal_inputs import IncrementalPCA
from tests.host import bed


def tokens(count: int, width: int, seed: int = 0, mean: float = 3.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=rng, dtype=torch.float64) * 0.7 ** torch.arange(width)
    return torch.randn(count, width, generator=rng, dtype=torch.float64) @ mix.T + mean


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 50), st.integers(1, 6), st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_with_room_for_all_directions_it_is_the_batch_pca(seed, width, sizes):
    x, state, gather = tokens(sum(sizes), width, seed), None, IncrementalPCA(width)
    for piece in x.split(sizes):
        state = gather(state, piece)
    centred = x - x.mean(0)
    values = torch.linalg.svdvals(centred).square()
    kept = len(state.squares)
    assert torch.allclose(state.mean, x.mean(0))
    assert state.total.item() == pytest.approx(centred.square().sum().item(), abs=1e-9)
    assert torch.allclose(state.squares, values[:kept], atol=1e-8 * float(values[:1] + 1))
    assert float(values[kept:].sum()) <= 1e-9 * max(1.0, float(values.sum()))
    one = torch.eye(kept, dtype=torch.float64)
    assert torch.allclose(state.components @ state.components.T, one, atol=1e-8)


def test_a_truncated_one_captures_what_the_batch_pca_captures():
    x, state, gather = tokens(3000, 24), None, IncrementalPCA(8)
    for piece in x.split(200):
        state = gather(state, piece)
    centred = x - x.mean(0)
    for rank in (1, 4):
        own = (centred @ state.components[:rank].T).square().sum()
        best = torch.linalg.svdvals(centred)[:rank].square().sum()
        assert 0.995 <= float(own / best) <= 1 + 1e-9
    assert (state.stood[:4] > 0.99).all()
    # without centring the first direction is mostly the mean
    first = torch.linalg.svd(x, full_matrices=False).Vh[0]
    mean = x.mean(0) / x.mean(0).norm()
    assert abs(float(first @ mean)) > 0.9 > abs(float(state.components[0] @ mean))


def test_ranks_go_where_the_shares_are_largest():
    shares = {
        "a": torch.tensor([0.5, 0.2, 0.1]),
        "b": torch.tensor([0.9, 0.05]),
        "c": torch.tensor([0.1, 0.1]),
    }
    assert allocated(shares, 3, 4) == {"a": 3, "b": 1, "c": 0}
    assert allocated(shares, 1, 3) == {"a": 1, "b": 1, "c": 1}
    assert allocated(shares, 2, 5) == {"a": 2, "b": 1, "c": 2}


def made(name: str, method: LoRA, base=None) -> tuple[Adaptation, Adapted, dict]:
    base = bed.base(name) if base is None else base
    model, x = Adapted(base), bed.batch(name, rows=8)
    found = calibrate(
        model, method.sites(model.structure), method.start.asks(method), [x, bed.batch(name, rows=8, seed=4)]
    )
    return Adaptation.new(method, base, statistics=found), model, found


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "vit"])
def test_ranks_add_up_and_shared_inputs_give_nested_factors(name: str, tmp_path) -> None:
    method = EVA(rank=3, start=EVAStart(rho=2.0))
    adaptation, model, _ = made(name, method)
    sites = method.sites(model.structure)
    ranks = {a.site.name: a.layout["rank"] for a in adaptation.at()}
    assert sum(ranks.values()) == 3 * len(sites) and max(ranks.values()) <= 6
    assert len(set(ranks.values())) > 1
    for at in adaptation.at():
        a = at.values["A"].detach()
        assert len(a) == ranks[at.site.name] and not at.values["B"].any()
        bed.close(a @ a.T, torch.eye(len(a)), 1e-5)
    by_block = {}
    for at in adaptation.at():
        if at.site.role in ("attention.query", "attention.key", "attention.value"):
            by_block.setdefault((at.site.tower, at.site.layer), []).append(at.values["A"].detach())
    for group in by_block.values():
        shortest = min(map(len, group))
        assert len(group) > 1 and all(torch.equal(a[:shortest], group[0][:shortest]) for a in group)
    with torch.no_grad():
        x = bed.batch(name)
        want = bed.result(model, x)
        model.attach("main", adaptation)
        assert torch.equal(bed.result(model, x), want)
        bed.shaken(adaptation)
        got = bed.result(model, x)
        save(adaptation, tmp_path / "a", "b" * 64)
        model.detach()
        model.attach("main", load(tmp_path / "a", model.base, "b" * 64))
        assert torch.equal(bed.result(model, x), got)


def test_equal_ranks_where_rho_is_1_and_none_at_all_where_nothing_is_explained():
    adaptation, _, _ = made("bert", EVA(rank=3, start=EVAStart(rho=1.0)))
    assert {a.layout["rank"] for a in adaptation.at()} == {3}
    _, model, found = made("bert", EVA(rank=3))
    some = sorted(found)[0]
    weak = found[some][NAME]
    found[some] = {NAME: weak._replace(total=weak.total * 1e9)}
    left = Adaptation.new(EVA(rank=3), model.base, statistics=found)
    assert some not in {a.site.name for a in left.at()} and len(left.at()) == len(found) - 1
    assert sum(a.layout["rank"] for a in left.at()) == 3 * len(found)


def test_it_reads_until_the_directions_stand_still() -> None:
    model, method = Adapted(bed.base("bert")), EVA(rank=2)
    read = []

    def batches(limit):
        for i in range(limit):
            read.append(i)
            yield bed.batch("bert", rows=16, seed=i % 3)

    sites = method.sites(model.structure)
    found = calibrate(
        model, sites, method.start.asks(method), batches(60), lambda s: method.start.enough(method, s)
    )
    assert 2 <= len(read) < 60
    assert method.start.enough(method, found)
    assert not EVAStart(still=1.0).enough(method, found)


def test_too_few_rows_and_no_rank_are_refused():
    base = bed.base("bert")
    model, method = Adapted(base), EVA(rank=8)
    one = {k: v[:1, :3] for k, v in bed.batch("bert").items()}
    found = calibrate(model, method.sites(model.structure), method.start.asks(method), [one])
    with pytest.raises(OptionError, match="too few for rank=8"):
        Adaptation.new(method, base, statistics=found)
    with pytest.raises(OptionError, match="needs statistics"):
        Adaptation.new(method, base)
    assert Adaptation.new(method, base, unfilled=True).counts()["method"] > 0


def test_sites_that_receive_nothing_are_named():
    model = Adapted(bed.base("t5"))
    sites = LoRA(targets="*attention.query").sites(model.structure)
    with pytest.raises(SiteError, match=r"6 of 9 sites receive nothing .* first decoder"):
        calibrate(model, sites, ("input_mean",), [bed.batch("t5")], body=True)


def test_a_chain_takes_its_first_link_from_the_inputs() -> None:
    adaptation, _, _ = made("bert", ChainOfLoRA(rank=3, start=EVAStart(), targets="projections"))
    assert all(set(a.layout) == {"rank", "links"} for a in adaptation.at())


@torch.no_grad()
def test_padding_and_ignored_answers_are_left_out() -> None:
    """What is gathered of a padded batch is what its rows give one by one."""
    model, x = Adapted(bed.base("llama")), bed.batch("llama")
    sites = LoRA(targets="projections").sites(model.structure)
    whole = calibrate(model, sites, ("input_moment", "input_mean"), [x])
    rows = []
    for i in range(len(x["input_ids"])):
        seen = x["attention_mask"][i].bool()
        rows.append(
            {
                "input_ids": x["input_ids"][i : i + 1, seen],
                "attention_mask": torch.ones(1, int(seen.sum()), dtype=torch.long),
            }
        )
    alone = calibrate(model, sites, ("input_moment", "input_mean"), rows)
    count = int(x["attention_mask"].sum())
    for s in sites:
        assert whole[s.name]["input_mean"][1] == alone[s.name]["input_mean"][1] == count
    first = sites[0].name  # deeper ones see positions, which padding on the left moves
    bed.close(whole[first]["input_moment"], alone[first]["input_moment"], 1e-5)
    labels = torch.full_like(x["input_ids"], -100)
    labels[:, -2:] = x["input_ids"][:, -2:]
    gather = {NAME: IncrementalPCA(4), "input_mean": None}
    found = calibrate(model, sites, gather, [{**x, "labels": labels}])
    assert found[first][NAME].number == 2 * len(labels) and found[first]["input_mean"][1] == count


@torch.no_grad()
def test_a_decoder_that_reads_an_encoder_has_masks_of_its_own() -> None:
    model, x = Adapted(bed.base("t5")), bed.batch("t5")
    labels = x["decoder_input_ids"].clone()
    labels[0, 2:] = -100
    sites = LoRA(targets="projections").sites(model.structure)
    found = calibrate(model, sites, ("input_mean",), [{**x, "labels": labels}])
    counts = {(s.tower, s.role): found[s.name]["input_mean"][1] for s in sites}
    inside, outside = int(x["attention_mask"].sum()), int((labels != -100).sum())
    for (tower, role), count in counts.items():
        of_encoder = tower == model.structure.towers[0].name or role in (
            "cross_attention.key",
            "cross_attention.value",
        )
        assert count == (inside if of_encoder else outside), (tower, role)

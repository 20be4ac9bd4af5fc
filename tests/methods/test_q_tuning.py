"""Q-Tuning: its compression, what a task hands on, and that a stream's earlier tasks answer as they did."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import train_testbed as bed

from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.host.following import following
from luthier.host.part import T
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.methods.prompts.q_tuning import NEW, OLD, QTuning
from luthier.sources.principal import compressed, decomposed
from luthier.streams.stream import stream
from luthier.train.fit import fit
from luthier.train.fitted import load_fitted

SMALL = {"length": 2, "shared_length": 3, "queue": 3}


def rows(n=8, width=12, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + 3


def test_with_all_but_one_components_every_row_is_reconstructed():
    x = rows()
    mean, weights, components = decomposed(x, 7)
    assert (mean + weights @ components - x).abs().max() < 1e-5
    mean, weights, components = decomposed(x, 3)
    assert (mean + weights @ components - x).abs().max() > 0.1
    assert components.shape == (3, 12) and weights.shape == (8, 3)


def test_what_is_kept_are_the_principal_components_around_the_mean():
    x = rows()
    kept = compressed(x, 3).double()
    centred = x.double() - x.double().mean(0)
    directions = kept - x.double().mean(0)
    values, vectors = torch.linalg.eigh(centred.mT @ centred)
    for i, direction in enumerate(directions):
        torch.testing.assert_close(direction.norm() ** 2, values[-1 - i])
        assert abs(float(direction @ vectors[:, -1 - i]) / float(direction.norm())) > 1 - 1e-9
    torch.testing.assert_close(
        compressed(x.flip(0), 3).double(), kept
    )  # the order of rows does not turn signs


def at(method, base, before=None):
    made = following(before, method, base) if before is not None else Adaptation.new(method, base)
    return made, made.at()[0]


def test_the_queue_grows_to_its_size_and_stays():
    base = bed.model().base
    for evict in ("pca", "fifo"):
        method = QTuning(**SMALL, evict=evict)
        made, first = at(method, base)
        lengths, held = [], [first.values["P"].detach().clone()]
        for _ in range(5):
            made.at()[0].values["S"].data.add_(1.0)
            old = {k: v.detach().clone() for k, v in made.at()[0].values.items()}
            made, here = at(method, base, made)
            v = here.values
            assert torch.equal(v["S"], old["S"]) and torch.equal(v["S_before"], old["S"])
            assert (v["u"] == 1).all() and (v["v"] == 1).all()
            before = torch.cat([old["Q"], old["P"]]) if "Q" in old else old["P"]
            want = before if len(before) <= 4 else compressed(before, 4) if evict == "pca" else before[-4:]
            assert torch.equal(v["Q"], want)
            t = here.t(None)
            lengths.append(len(method.tokens(t, Nothing())))
            held.append(v["P"].detach().clone())
        assert lengths == [3 + 2 + 2, *[3 + 4 + 2] * 4]


class Nothing:
    """A context that says nothing."""

    given: dict = {}


class Given:
    def __init__(self, task):
        self.given = {"task": task}


def test_weights_of_ones_give_plain_concatenation_and_others_reweigh_the_queue_alone():
    base = bed.model().base
    method = QTuning(**SMALL)
    made, _ = at(method, base, at(method, base)[0])
    t = made.at()[0].t(None)
    plain = torch.cat([t.S, t.Q, t.P])
    assert torch.equal(method.tokens(t, Nothing()), plain)
    t["u"] = torch.tensor([[2.0], [3.0]])
    t["v"] = torch.full_like(t["v"], 0.5)
    found = method.tokens(t, Nothing())
    assert torch.equal(found[3:5], torch.tensor([[1.0], [1.5]]) * t["Q"])
    assert torch.equal(found[:3], plain[:3]) and torch.equal(found[5:], plain[5:])
    assert torch.equal(method.tokens(t, Given(NEW)), torch.cat([t["S"], t["Q"]]))
    assert torch.equal(method.tokens(t, Given(OLD)), torch.cat([t["S_before"], t["Q"]]))


def test_trained_numbers_of_a_first_and_a_later_task():
    base = bed.model().base
    method = QTuning(**SMALL)
    first, _ = at(method, base)
    second, _ = at(method, base, first)
    assert first.counts()["method"] == (2 + 3) * 32
    assert second.counts()["method"] == (2 + 3) * 32 + 2 + 32


def test_the_retention_term_is_infonce_of_pooled_states_and_trains_the_shared_prompt_alone():
    m = bed.model()
    method = QTuning(**SMALL)
    made, here = at(method, m.base, at(method, m.base)[0])
    adapted = Adapted(m.base)
    adapted.attach("main", made)
    batch = m.preprocess.collate(m.preprocess.encode(["the cat", "a good dog was red", "two awful plot"]))
    batch["labels"] = torch.tensor([0, 1, 2])

    class Run:
        pass

    run = Run()
    run.adapted, run.main = adapted, made
    here.values["S"].data.add_(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)))
    loss = method.forgetting(run, batch)
    states = {}
    for name in ("S", "S_before"):
        one = Adapted(m.base)
        prompt = Adaptation.new(PromptTuning(length=5), m.base)
        prompt.at()[0].values["P"].data.copy_(torch.cat([here.values[name], here.values["Q"]]))
        adapted.detach("main") if "main" in adapted.adaptations else None
        with one.attached(prompt), torch.no_grad():
            hidden = one(batch, body=True).hidden
        mask = batch["attention_mask"][:, :, None]
        states[name] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    scores = states["S"] @ states["S_before"].mT / method.temperature
    want = -torch.log_softmax(scores, -1).diagonal().mean()
    torch.testing.assert_close(loss.detach(), want, atol=1e-5, rtol=1e-5)
    loss.backward()
    reached = {k for k, p in here.values.items() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == {"S"}


@pytest.mark.parametrize(
    ("kind", "signal"), [("encoder", "auto"), ("decoder", "choices"), ("encoder-decoder", "choices")]
)
def test_a_streams_earlier_tasks_answer_bitwise_as_they_did(kind, signal, tmp_path):
    m = bed.model(kind)
    tasks = {f"task {i}": bed.data(seed=i, train=16, validation=8, test=8) for i in range(5)}
    settings = {"steps": 2, "batch_size": 8, "progress": False, "signal": signal}
    texts = tasks["task 0"].test.inputs
    alone = fit(m, tasks["task 0"], QTuning(**SMALL), **settings)
    before = alone.predict_proba(texts)
    said = []
    made = stream(m, tasks, QTuning(**SMALL), out=tmp_path / "s", say=said.append, **settings)
    assert (made["task 0"].predict_proba(texts) == before).all()
    assert (load_fitted(tmp_path / "s" / "001-task-0", m).predict_proba(texts) == before).all()
    assert said[0] == "task 1 of 5: task 0"
    last = made["task 4"].adaptation.at()[0].values
    assert last["Q"].shape == (4, 32) and not torch.equal(last["S"], last["S_before"])
    assert not (last["u"] == 1).all() and not (last["v"] == 1).all()
    summary = json.loads((tmp_path / "s" / "stream.json").read_text())["tasks"]
    assert [t["folder"] for t in summary] == [f"{i + 1:03d}-task-{i}" for i in range(5)]
    assert all(0 <= t["own"] <= 1 and 0 <= t["last"] <= 1 for t in summary)
    assert summary[-1]["own"] == summary[-1]["last"]
    again = stream(m, tasks, QTuning(**SMALL), out=tmp_path / "s", **settings)  # all done: read back
    assert (again["task 3"].predict_proba(texts) == made["task 3"].predict_proba(texts)).all()
    afresh = stream(m, tasks, QTuning(**SMALL), afresh=True, **settings)
    assert "Q" not in afresh["task 4"].adaptation.at()[0].values
    with pytest.raises(OptionError, match="No task of this stream is called 'task 9'"):
        made["task 9"]


def test_a_fit_after_another_begins_where_it_ended_and_the_base_of_resuming_knows_it(tmp_path):
    m, data = bed.model(), bed.data()
    settings = {"batch_size": 8, "progress": False, "rate": 1e-8, "steps": 1}
    for method in (PromptTuning(length=3), LoRA(rank=2)):
        one = fit(m, data, method, **{**settings, "steps": 3, "rate": 0.1})
        two = fit(m, data, method, after=one, **settings)
        for a, b in zip(one.adaptation.placed()[0].ats(), two.adaptation.placed()[0].ats(), strict=True):
            for k in a.values:
                torch.testing.assert_close(a.values[k], b.values[k], atol=1e-5, rtol=0)
        assert not torch.equal(*(f.adaptation.placed()[1].ats()[0].values["W"] for f in (one, two)))
    one = fit(m, data, PromptTuning(length=3), **settings)
    queued = fit(m, data, QTuning(**SMALL), after=one, out=tmp_path / "run", **settings)
    assert torch.equal(queued.adaptation.at()[0].values["Q"], one.adaptation.at()[0].values["P"])
    assert (
        "S_before" not in queued.adaptation.at()[0].values
    )  # a plain prompt leaves no shared one to remember
    assert "after" in json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    with pytest.raises(
        OptionError, match=r"wants P of shape \(4, 32\), and the other adaptation has \(3, 32\)"
    ):
        fit(m, data, PromptTuning(length=4), after=one, **settings)
    with pytest.raises(OptionError, match="the other adaptation has none there"):
        fit(m, data, PromptTuning(length=4), after=fit(m, data, LoRA(rank=2), **settings), **settings)


def test_a_queue_of_one_is_a_shared_prefix_and_a_prompt():
    base = bed.model().base
    method = QTuning(**{**SMALL, "queue": 1})
    _, here = at(method, base, at(method, base)[0])
    assert set(here.values) == {"P", "S"} and len(method.tokens(T(here.values), Nothing())) == 5

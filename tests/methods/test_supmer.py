"""SUPMER: its regulator, its pseudo tasks, what its meta-training moves, and that a run begins with what it learned."""

import copy
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import train_testbed as bed

from luthier.errors import DataError, ModelError, OptionError
from luthier.host import Adaptation, Adapted
from luthier.meta.initialise import Learner, Meta, Mixed, answered, initialise
from luthier.meta.pseudo_tasks import FORMATS, LETTERS, PseudoTasks, embedded, similarity, telling_words
from luthier.meta.texts import sentences
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.methods.prompts.supmer import SUPMER
from luthier.signals.regulator import direction, gate, regulated, specs, states
from luthier.sources.low_rank import LowRank
from luthier.train.fit import fit

SMALL = {"length": 3, "rank": 4, "hidden": 5}
META = {"steps": 2, "tasks": 2, "rows": 4, "ways": 3, "clusters": 5}


def regulator(width=12, seed=0, learned=1.0):
    rng = torch.Generator().manual_seed(seed)
    made = {k: s.start(s.shape, rng) for k, s in specs(width, 4, 2, 5).items()}
    made["psi_learned"].fill_(learned)
    return made


def gradient(rows=6, width=12):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1))


def texts(n=120):
    """Sentences of three sorts of words, no two alike."""
    rng, groups = random.Random(0), (bed.WORDS[:7], bed.WORDS[7:14], bed.WORDS[14:])
    found = {}
    while len(found) < n:
        group = groups[len(found) % 3]
        found[" ".join(rng.choice(group) for _ in range(4))] = None
    return list(found)


def pseudo(ways=3):
    rows = texts()
    words = sorted({w for t in rows for w in t.split()})
    counts = np.array([[t.split().count(w) for w in words] for t in rows], dtype=np.float32)
    return PseudoTasks(rows, counts, clusters=3, rows=8, ways=ways)


def test_a_gate_of_one_leaves_the_gradient_and_a_gate_of_zero_its_rows_norms():
    t, g = regulator(), gradient()
    assert (regulated(g, 1.0, t) - g).abs().max() < 1e-6
    turned = regulated(g, 0.0, t)
    torch.testing.assert_close(turned.norm(dim=-1), g.norm(dim=-1), atol=1e-5, rtol=1e-5)
    assert (turned >= 0).all() and not torch.allclose(turned, g, atol=0.1)
    torch.testing.assert_close(regulated(g, 0.3, t), 0.7 * turned + 0.3 * g)


def test_the_direction_and_the_gate_by_hand():
    t, g = regulator(), gradient()
    x = g
    for i in range(2):
        x = torch.relu((t[f"psi_u{i}"] @ (t[f"psi_v{i}"] @ x.T)).T + t[f"psi_b{i}"])
    torch.testing.assert_close(direction(g, t), x / x.norm(dim=1, keepdim=True) * g.norm(dim=1, keepdim=True))
    s = g[0]
    hidden = torch.relu(t["psi_gate_w1"] @ s + t["psi_gate_b1"])
    torch.testing.assert_close(gate(s, t), torch.sigmoid(t["psi_gate_w2"] @ hidden + t["psi_gate_b2"]))
    assert gate(s, regulator(learned=0.0)) == 1.0
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    hidden = torch.randn(2, 3, 12)
    want = (hidden[0, 0] + hidden[0, 1] + hidden[1, 0]) / 3
    torch.testing.assert_close(states(hidden, mask).mean(0), want)


def test_pseudo_tasks_ask_what_their_clusters_answer():
    tasks, rng = pseudo(), random.Random(0)
    cluster_of = {t: c for c, members in enumerate(tasks.members) for t in members}
    for _ in range(5):
        for format in FORMATS:
            episode = tasks.draw(rng, format)
            for inputs, answers in (episode.support, episode.query):
                assert len(inputs) == len(answers) == 8
                assert len(set(answers)) == (2 if format == "pair" else 3)
                for text, answer in zip(inputs, answers, strict=True):
                    if format == "pair":
                        one, other = text.split(" / ")
                        assert (cluster_of[one] == cluster_of[other]) == (answer == "yes")
                        continue
                    asked, _, rest = text.partition("? ")
                    options = rest.removesuffix(" The correct one is")
                    parts = [options.partition(f"{letter}. ")[2].split(f" {LETTERS[i + 1]}. ")[0] for i, letter in enumerate("ABC")]  # fmt: skip
                    right = parts["ABC".index(answer)]
                    if format == "choice":
                        same = [cluster_of[p] == cluster_of[asked] for p in parts]
                        assert same.count(True) == 1 and right != asked and same["ABC".index(answer)]
                    else:
                        assert right == tasks.words[cluster_of[asked]]
            asked = [{i.split("? ")[0].split(" / ")[0] for i in part[0]} for part in (episode.support, episode.query)]  # fmt: skip
            assert not asked[0] & asked[1]
    assert similarity(episode, episode) == pytest.approx(1.0)


def test_a_telling_word_is_the_clusters_own():
    found = telling_words([["red cat", "red dog"], ["blue cat", "blue dog"], ["red blue one", "two one"]])
    assert found == ["red", "blue", "one"]


def test_too_little_text_is_refused_by_name():
    with pytest.raises(DataError, match="too few for 4 clusters of 32"):
        PseudoTasks(["a", "b"], np.zeros((2, 3)))
    with pytest.raises(OptionError, match="inner_rate=0"):
        initialise(bed.model("encoder-decoder"), texts(), meta=Meta(inner_rate=0))
    with pytest.raises(ModelError, match="Use an encoder-decoder"):
        initialise(bed.model("decoder"), texts())


def learner(**more):
    model, meta = bed.model("encoder-decoder"), Meta(**{**META, "rows": 8, **more})
    adapted = Adapted(model.base)
    made = adapted.attach("main", Adaptation.new(SUPMER(**SMALL), model.base))
    return Learner(model, adapted, made, pseudo(), meta)


def test_one_outer_step_gives_theta_and_phi_gradients_and_nothing_else():
    one = learner()
    one.learn(*(one.tasks.draw(one.rng, "choice") for _ in range(2)))
    reached = {n for n, p in one.mixed.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    psi = {n for n in reached if ".common.psi_" in n}
    assert reached - psi == {one.name} and len(psi) >= 9
    assert not any(p.requires_grad for p in one.adapted.base.parameters())


def test_the_inner_step_is_plain_sgd_under_a_gate_of_one():
    one = learner()
    one.psi["psi_learned"].data.fill_(0.0)  # a gate of one
    g = gradient(3, 32)
    ahead = one.prompt - one.meta.inner_rate * regulated(g, gate(torch.ones(32), one.psi), one.psi)
    assert (ahead - (one.prompt - 0.1 * g)).abs().max() < 1e-6


def test_the_query_is_asked_at_the_prompt_after_the_inner_step():
    one = learner()
    query = one.batch(one.tasks.draw(one.rng, "pair").query)
    ahead = one.prompt.detach() + torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    found = torch.func.functional_call(one.mixed, {one.name: ahead}, (query, query, 1.0))
    one.prompt.data.copy_(ahead)
    torch.testing.assert_close(found, answered(one.adapted(query).logits, query["labels"]))


def test_lambda_of_one_removes_the_second_task_and_of_zero_the_first():
    one = learner()
    mixed = Mixed(one.adapted)
    first, second, third = (one.batch(one.tasks.draw(one.rng, f).query) for f in ("pair", "choice", "choice"))
    with torch.no_grad():
        alone = {i: answered(one.adapted(b).logits, b["labels"]) for i, b in enumerate((first, second))}
        assert torch.equal(mixed(first, second, 1.0), mixed(first, third, 1.0))
        torch.testing.assert_close(mixed(first, second, 1.0), alone[0])
        torch.testing.assert_close(mixed(first, second, 0.0), alone[1], atol=1e-5, rtol=1e-5)
        half, other = mixed(first, second, 0.5), mixed(first, third, 0.5)
    assert abs(float(half - other)) > 1e-4 and math.isfinite(half)


def test_the_curriculum_begins_without_a_second_task():
    one = learner()
    assert min(one.draw() for _ in range(50)) > 0.999
    one.running = 1.0
    drawn = [one.draw() for _ in range(400)]
    assert 0.4 < sum(drawn) / 400 < 0.6 and min(drawn) < 0.1


def test_meta_training_learns_the_pseudo_tasks():
    told = []
    model = bed.model("encoder-decoder")
    made = initialise(
        model, texts(), method=SUPMER(**SMALL), embedder=bed.model(), meta=Meta(**{**META, "steps": 16, "outer_rate": 0.3}),
        tell=lambda step, loss: told.append(loss),
    )  # fmt: skip
    assert sum(told[-3:]) < 0.8 * sum(told[:3])
    assert made.about["clusters"] >= 3 and float(made.placed()[0].common["psi_learned"]) == 1.0


def test_a_run_begins_with_the_start_and_keeps_the_regulator(tmp_path):
    model, data = bed.model("encoder-decoder"), bed.data()
    start = initialise(model, texts(), method=SUPMER(**SMALL), embedder=bed.model(), meta=Meta(**META))
    settings = {"steps": 2, "batch_size": 8, "progress": False, "signal": "choices", "seed": 4}
    theta = start.at()[0].values["P"]
    barely = fit(model, data, SUPMER(**SMALL), after=start, **{**settings, "rate": 1e-9})
    torch.testing.assert_close(barely.adaptation.at()[0].values["P"], theta, atol=1e-6, rtol=0)
    turned = fit(model, data, SUPMER(**SMALL), after=start, out=tmp_path / "run", **settings)
    plain = fit(model, data, SUPMER(**SMALL, regulate=False), after=start, **settings)
    alone = fit(model, data, PromptTuning(length=3), after=start, **settings)
    p = {n: f.adaptation.at()[0].values["P"] for n, f in (("turned", turned), ("plain", plain), ("alone", alone))}  # fmt: skip
    assert torch.equal(p["plain"], p["alone"]) and not torch.equal(p["turned"], p["plain"])
    for name, tensor in turned.adaptation.placed()[0].common.items():
        assert torch.equal(tensor, start.placed()[0].common[name])
    micro = fit(model, data, SUPMER(**SMALL), after=start, micro_batch=3, **settings)
    torch.testing.assert_close(micro.adaptation.at()[0].values["P"], p["turned"], atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("source", [None, LowRank(rank=2, initial="random")])
def test_begun_afresh_the_regulator_does_nothing_with_any_source(source):
    model, data = bed.model(), bed.data()
    more = {} if source is None else {"source": source}
    settings = {"steps": 3, "batch_size": 8, "progress": False}
    ours = fit(model, data, SUPMER(**SMALL, **more), **settings)
    theirs = fit(model, data, SUPMER(**SMALL, regulate=False, **more), **settings)
    for k, v in theirs.adaptation.at()[0].values.items():
        assert torch.equal(v, ours.adaptation.at()[0].values[k])


def test_embeddings_are_of_length_one_whatever_the_order():
    model, rows = bed.model(), ["the cat", "a very good dog was red", "dull"]
    found = embedded(model, rows, batch_size=2)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.allclose(found[[2, 0, 1]], embedded(model, [rows[i] for i in (2, 0, 1)], 3), atol=1e-5)


def test_sentences_come_from_lines_or_data(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    assert sentences(str(tmp_path / "a.txt")) == ["one", "two"]
    assert len(sentences("builtin:verdicts")) > 1000
    with pytest.raises(DataError, match="not texts"):
        sentences("builtin:digits")
    with pytest.raises(DataError, match="Cannot read"):
        sentences(str(tmp_path / "none.txt"))


def test_a_run_can_be_copied_between_two_steps():
    one = learner()
    again = copy.deepcopy(one.adapted)
    assert torch.equal(again.adaptations["main"].at()[0].values["P"], one.prompt)

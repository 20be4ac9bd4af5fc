"""Prompts of a language and a task that recombine (S287), and controls of preferences trained in two stages (S227)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import luthier as lt
from luthier.data.split import controlled
from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.methods.prompts.factored_prompt import FactoredPrompt
from luthier.methods.prompts.meet import MEET
from luthier.methods.prompts.prompt_and_model import PromptAndModel
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.sources.residual import Residual
from luthier.train.run import share_out
from tests.conformance.cells import Cell
from tests.conformance.properties import PROPERTIES
from tests.host import bed

FACTORED = FactoredPrompt(languages="en, sw", tasks="short, spans, order", language_length=2, task_length=3)
PREFERENCES = "good, bad"


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_pair_that_no_row_had_is_the_language_part_then_the_task_part(name):
    base, batch = bed.base(name).double(), bed.batch(name)
    made = bed.shaken(Adaptation.new(FACTORED, base)).to(torch.float64)
    first, second = (p.ats()[0].values["P"] for p in made.placed())
    assert first.shape[:2] == (2, 2) and second.shape[:2] == (3, 3)
    rows = [("en", "short"), ("sw", "short"), ("sw", "order"), ("en", "spans")]
    model = Adapted(base)
    with model.attached(made):
        together = bed.result(model, {**batch, "attributes": rows})
    for i, (language, task) in enumerate(rows):
        own = Adaptation.new(PromptTuning(length=5), base).to(torch.float64)
        parts = first[["en", "sw"].index(language)], second[["short", "spans", "order"].index(task)]
        own.at()[0].values["P"].copy_(torch.cat(parts))
        with model.attached(own):
            alone = bed.result(model, {k: v[i : i + 1] for k, v in batch.items()})
        bed.close(together[i : i + 1], alone, 1e-10)


def test_what_is_kept_is_one_part_for_each_language_and_task():
    base = bed.base("llama")
    made = Adaptation.new(FACTORED, base)
    assert made.counts()["method"] == (2 * 2 + 3 * 3) * base.config.hidden_size
    plain = Adaptation.new(FactoredPrompt(language_length=2, task_length=3), base)
    assert plain.counts()["method"] == 5 * base.config.hidden_size


@dataclass(frozen=True)
class Labelled(Cell):
    """A cell whose batches say the labels of every row."""

    def batch(self, **options):
        made = super().batch(**options)
        numbers = torch.tensor([[1, 0], [0, 2], [1, 1], [0, 0]])
        kept = 2 if self.method == "factored_prompt" else 1
        return {**made, "attributes": numbers.repeat(2, 1)[: len(made["input_ids"]), :kept]}


KEPT = (
    "nothing_is_dead", "rows_do_not_mix_and_padding_is_not_seen", "a_file_holds_all_of_it",
    "a_run_resumes_bitwise_inside_every_phase", "training_moves_nothing_else", "several_do_not_disturb_each_other",
)  # fmt: skip
OWN = {
    "factored_prompt": FACTORED,
    "meet": MEET(preferences=PREFERENCES, length=3),
    "meet, lora": MEET(preferences=PREFERENCES, adapter="lora", rank=2),
}


@pytest.mark.parametrize("which", list(OWN))
@pytest.mark.parametrize("named", KEPT)
def test_conformance_with_labels(named, which):
    PROPERTIES[named].check(Labelled(which.split(",")[0], "llama", OWN[which]))


# -- MEET


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    path = tmp_path_factory.mktemp("meet") / "rows.csv"
    rows = [f"film {i},{'fine' if i % 2 else 'poor'} film,{'good' if i % 2 else 'bad'}" for i in range(40)]
    path.write_text("\n".join(["input,target,mark", *rows]))
    return lt.data(path, kind="text2text", attributes="mark", split=(0.6, 0.2, 0.2), seed=0)


@pytest.mark.parametrize("adapter", ["prompt", "lora"])
def test_in_stage_one_nothing_but_the_controls_moves_and_the_base_is_never_written(reviews, adapter):
    model = lt.load("builtin:gpt2", device="cpu")
    before = {k: v.clone() for k, v in model.base.state_dict().items()}
    seen = {}
    method = MEET(preferences=PREFERENCES, adapter=adapter, length=2, rank=2)
    alone, both = method.phases()

    def values(run, part):
        placed = run.main.placed()[part]
        return {f"{a.key}{k}": v.detach().clone() for a in placed.ats() for k, v in a.values.items()}

    class Watched(MEET):
        def phases(self):
            alone.enter = lambda run: seen.update(start=[values(run, i) for i in (0, 1)])
            alone.leave = lambda run: seen.update(middle=[values(run, i) for i in (0, 1)])
            both.leave = lambda run: seen.update(end=[values(run, i) for i in (0, 1)])
            return alone, both

    watched = Watched(preferences=PREFERENCES, adapter=adapter, length=2, rank=2)
    lt.fit(model, reviews, watched, steps=4, batch_size=8, progress=False)
    start, middle, end = (seen[k] for k in ("start", "middle", "end"))
    assert all(torch.equal(v, middle[1][k]) for k, v in start[1].items())
    assert not all(torch.equal(v, middle[0][k]) for k, v in start[0].items())
    assert not all(torch.equal(v, end[1][k]) for k, v in middle[1].items())
    assert not all(torch.equal(v, end[0][k]) for k, v in middle[0].items())
    assert all(torch.equal(before[k], v) for k, v in model.base.state_dict().items())


def test_the_control_is_chosen_at_prediction_and_equal_controls_say_the_same(reviews, tmp_path):
    model = lt.load("builtin:gpt2", device="cpu")
    made = lt.fit(
        model,
        reviews,
        MEET(preferences=PREFERENCES, length=4),
        steps=40,
        batch_size=8,
        progress=False,
        rate=0.03,
    )
    made.save(tmp_path / "saved")
    again = lt.load_adaptation(tmp_path / "saved", model)
    rows = reviews.test.inputs
    for fitted in (made, again):
        good, bad = (fitted.predict(controlled(rows, [mark])) for mark in ("good", "bad"))
        assert good != bad
    table = made.adaptation.placed()[0].ats()[0].values["P"]
    with torch.no_grad():
        table[1] = table[0]
    assert made.predict(controlled(rows, ["good"])) == made.predict(controlled(rows, ["bad"]))


def test_one_preference_of_a_model_with_lora_controls_merges():
    base, batch = bed.base("llama").double(), bed.batch("llama")
    model, found = Adapted(base), {}
    every = {n for n, m in base.named_modules() if next(m.parameters(recurse=False), None) is not None}
    method = MEET(preferences=PREFERENCES, adapter="lora", rank=2)
    made = bed.shaken(Adaptation.new(method, base, reached=every)).to(torch.float64)
    model.attach("main", made)
    with torch.no_grad():
        for mark in ("good", "bad"):
            found[mark] = bed.result(model, {**batch, "attributes": [mark] * 4})
        assert (found["good"] - found["bad"]).abs().max() > 1e-3
        model.merge("main", attributes=["bad"])
        bed.close(bed.result(model, {**batch, "attributes": ["bad"] * 4}), found["bad"], 1e-6)


def test_stages_share_the_steps_and_without_the_first_it_is_joint_training():
    assert [p.name for p in MEET(preferences=PREFERENCES, first=0).phases()] == ["both"]
    assert share_out(MEET(first=0.25).phases(), 100) == [25, 75]
    assert share_out(PromptAndModel().phases(), 100) == [100]


def test_the_models_rate_keeps_its_proportion():
    class Run:
        def __init__(self, rate):
            self.rate = rate

        def rates(self, name):
            return (self.rate or (0.03 if ".parts.0." in name else 5e-5)), 0.0

    named = {f"main.parts.{i}.x": torch.nn.Parameter(torch.zeros(2)) for i in (0, 1)}
    method = MEET(model_rate=1e-3)
    for rate, want in ((None, [1e-3, 0.03]), (0.3, [1e-2, 0.3])):
        rates = sorted(g["lr"] for g in method.adamw_at_two_rates(named, Run(rate)).param_groups)
        assert rates == pytest.approx(want)


def test_a_source_that_cannot_be_kept_for_each_preference_is_refused():
    with pytest.raises(OptionError, match="not kept for each of the preferences"):
        MEET(preferences=PREFERENCES, source=Residual()).parts()

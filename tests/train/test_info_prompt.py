"""InfoPrompt as a signal: its terms against sums by hand, and that without them it is plain prompt tuning bit for bit."""

import math
from functools import cache

import pytest
import torch
import train_testbed as bed

from luthier.errors import OptionError, RunError
from luthier.host import Adaptation, Adapted
from luthier.host.bank import Bank
from luthier.methods.heads import LinearHead
from luthier.methods.info_head import InfoHead
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.prompts.deep_prompt import DeepPrompt
from luthier.methods.prompts.dpt import DPT
from luthier.methods.prompts.id_spam import IDSPAM
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.signals.info_prompt import (
    InfoPrompt,
    head_information,
    representation_information,
    standard_divergence,
)
from luthier.signals.objectives import CrossEntropy
from luthier.sources.low_rank import LowRank
from luthier.train.fit import fit
from luthier.train.fitted import load_fitted
from luthier.train.run import Recipe, Run

KINDS = ("encoder", "decoder", "encoder-decoder")


@cache
def model(kind):
    return bed.model(kind)


def trained(kind="encoder", signal="infoprompt", method=None, data=None, **options):
    options = {"steps": 3, "batch_size": 8, "progress": False, "seed": 1, **options}
    method = method or PromptTuning(length=3)
    return fit(model(kind), data or bed.data(), method, signal=signal, **options)


def test_the_terms_by_hand():
    rng = torch.Generator().manual_seed(0)
    prompt, head = torch.randn(1, 3, 4, generator=rng), torch.randn(2, 4, generator=rng)
    tokens, seen = torch.randn(2, 3, 4, generator=rng), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    w = (head[0] + head[1]) / 2
    for row, n in ((0, 2), (1, 3)):
        scores = [float(prompt[0].mean(0) @ w) / 2, *(float(tokens[row, j] @ w) / 2 for j in range(n))]
        want = -math.log(math.exp(scores[0]) / sum(map(math.exp, scores)))
        assert math.isclose(head_information(prompt, tokens, seen, head)[row], want, rel_tol=1e-5)
    code, others, context = (torch.randn(*s, generator=rng) for s in ((2, 4), (2, 5, 4), (1, 4)))
    for row in range(2):
        scores = [float(code[row] @ context[0]) / 2, *(float(o @ context[0]) / 2 for o in others[row])]
        want = -math.log(math.exp(scores[0]) / sum(map(math.exp, scores)))
        assert math.isclose(representation_information(code, others, context)[row], want, rel_tol=1e-5)
    mean, deviation = torch.tensor([[0.3, -1.0]]), torch.tensor([[0.5, 2.0]])
    want = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, deviation), torch.distributions.Normal(0.0, 1.0)
    ).mean(-1)
    torch.testing.assert_close(standard_divergence(mean, deviation.log()), want)


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_terms_it_is_plain_prompt_tuning_bit_for_bit(kind):
    plain = trained(kind, "auto")
    bare = trained(kind, "infoprompt representation=0 head=0 bottleneck=0")
    ours, theirs = bare.adaptation.state(), plain.adaptation.state()
    assert {k.split(".", 2)[2] for k in ours} == {k.split(".", 2)[2] for k in theirs}
    for a, b in zip(ours.values(), theirs.values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(*(f.adaptation.at()[0].values["P"] for f in (plain, trained(kind))))


@pytest.mark.parametrize("method", [PromptTuning(length=3), DPT(length=3, source=LowRank(rank=2, initial="random")), DeepPrompt(length=3), IDSPAM(length=3)])  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_any_soft_prompt_trains_with_it_and_its_file_predicts_the_same(kind, method, tmp_path):
    fitted = trained(kind, method=method, out=tmp_path / "run")
    texts = bed.data().test.inputs
    before = fitted.predict_proba(texts)
    assert (before == fitted.predict_proba(texts)).all()  # no noise in prediction
    assert (load_fitted(tmp_path / "run", model(kind)).predict_proba(texts) == before).all()


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_tasks_of_three_kinds(kind):
    assert trained(data=bed.data(kind)).metrics["parameters_head"] > 0


def test_the_count_is_the_docstrings():
    head = trained().adaptation.counts()["head"]
    classes, width, code = 3, 32, 64
    assert head == (classes * (width + 1) + 2 * code * (width + 1) + width * (code + 1) + width * (width + 1))


def begun(options, method=None):
    m, data = bed.model("encoder"), bed.data()
    from luthier.train.batches import Batches, encode, number_examples

    rows = encode(m.preprocess, data.train, data.task)
    number_examples([rows])
    adapted = Adapted(m.base)
    head = InfoHead(classes=3, width=32, **options)
    adapted.attach("main", Adaptation.new(method or PromptTuning(length=3), m.base, head=head))
    batches = Batches({"train": rows}, batch_size=8, seed=0, device="cpu")
    run = Run(adapted, adapted.adaptations["main"].method.phases(), batches, InfoPrompt(CrossEntropy()), Recipe(4))  # fmt: skip
    run.enter()
    return run


@pytest.mark.parametrize("name", ["representation", "head", "bottleneck"])
def test_every_weight_counts_its_term(name):
    losses = []
    for weight in (0.1, 0.4, 1.3):
        run = begun({"representation": 0.2, "head": 0.1, "bottleneck": 0.1, name: weight})
        torch.manual_seed(3)
        losses.append(float(run.loss(run.batch()).detach()))
    one, two, three = losses
    term = (two - one) / 0.3
    assert term > 1e-3 and math.isclose((three - two) / 0.9, term, rel_tol=1e-3)


def test_no_gradient_reaches_the_model_and_the_prompt_is_reached_through_each_term():
    for only in ("representation", "head", "bottleneck"):
        run = begun({"representation": 0.0, "head": 0.0, "bottleneck": 0.0, only: 1.0})
        torch.manual_seed(0)
        run.loss(run.batch()).backward()
        assert all(p.grad is None for p in run.adapted.base.parameters())
        assert run.main.at()[0].values["P"].grad.abs().max() > 0


def test_the_terms_fade():
    def at(step, fade):
        run = begun({"fade": fade})
        run.step = step
        torch.manual_seed(3)
        return float(run.loss(run.batch()).detach())

    steady, first, last = at(3, 0.0), at(0, 1.0), at(3, 1.0)
    bare = begun({})
    torch.manual_seed(3)
    with bare.adapted.using("main"):
        task = float(CrossEntropy().mean(bare.adapted(bare.batch()), bare.batch()).detach())
    assert math.isclose(last, task, rel_tol=1e-5)
    assert math.isclose(first - task, 0.75 * (steady - task), rel_tol=1e-4)


def test_a_bank_of_such_heads_serves_each_row_its_own():
    m = model("encoder")
    made = {}
    for i in range(3):
        made[f"a{i}"] = Adaptation.new(
            PromptTuning(length=3), m.base, head=InfoHead(classes=3, width=32), seed=i
        )
    batch = m.preprocess.collate(m.preprocess.encode(["the cat was good"] * 3))
    adapted, apart = Adapted(m.base).eval(), []
    with torch.no_grad():
        for one in made.values():
            with adapted.attached(one.eval()):
                apart.append(adapted(batch).logits[0])
        bank = Bank(m.base, made)
        with adapted.attached(bank.adaptation.eval()):
            together = bank(adapted, batch, list(made)).logits
    torch.testing.assert_close(together, torch.stack(apart), atol=1e-5, rtol=1e-4)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(
        OptionError, match=r"'heads=1' is none of its options\. infoprompt takes representation="
    ):
        trained(signal="infoprompt heads=1")
    with pytest.raises(OptionError, match="choices takes no options"):
        trained("decoder", "choices lm=1")
    with pytest.raises(OptionError, match="its options are numbers"):
        trained("decoder", "t_few lm=much")
    with pytest.raises(OptionError, match="info_head: head='lots'"):
        trained(signal="infoprompt head=lots")
    with pytest.raises(OptionError, match="not a text2text"):
        trained("decoder", data=bed.data("text2text"))
    with pytest.raises(OptionError, match="brings its own output part"):
        trained(head=LinearHead(classes=3, width=32))
    with pytest.raises(OptionError, match="this method has none"):
        trained(method=LoRA(rank=2))
    run = begun({})
    run.adapted.heads[0].part = LinearHead(classes=3, width=32)
    with pytest.raises(RunError, match="info_head"):
        run.loss(run.batch())

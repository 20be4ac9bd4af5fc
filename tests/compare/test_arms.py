import fake_results
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.compare.arms import parse_arm, parse_arms, safe_name, split_methods
from luthier.compare.grid import FACTORS, at_end, choose, factors, parse, rate_for
from luthier.errors import OptionError


def test_options_stay_with_their_arm():
    assert split_methods("t-lora, t-lora:rank=4,alpha=8,t-ia3") == [
        "t-lora",
        "t-lora:rank=4,alpha=8",
        "t-ia3",
    ]


def test_an_arm_with_options():
    arm = parse_arm("t-lora:rank=4,alpha=8")
    assert (arm.method.rank, arm.method.alpha, arm.label) == (4, 8.0, "t-lora:rank=4,alpha=8")


def test_an_instance_is_labelled_by_what_it_changes():
    assert parse_arm(fake_results.TLora()).label == "t-lora"
    assert parse_arm(fake_results.TLora(rank=4)).label == "t-lora:rank=4"


@pytest.mark.parametrize(
    "text",
    [
        "t-lorra",
        "t-lora:",
        "t-lora:rank",
        "t-lora:rank=",
        "t-lora:rnk=4",
        "t-lora:rank=x",
        "t-lora:rank=4,rank=5",
        "t-lora,t-lora",
        "t-lora,",
        "",
        ",",
        "t-lora,t-lora:rank=8",
    ],
)
def test_mistakes_are_refused(text):
    with pytest.raises(OptionError):
        parse_arms(text)


def test_something_else_than_a_method_is_refused():
    with pytest.raises(OptionError, match="int"):
        parse_arm(3)


@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
def test_folder_names_are_safe_and_tell_labels_apart(a, b):
    assert set(safe_name(a)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert not safe_name(a).startswith((".", "-")) and safe_name(a) not in (
        "majority",
        "tfidf",
        "probe",
        "pixels",
    )
    assert a == b or safe_name(a) != safe_name(b)


def trial(factor, value):
    return {
        "factor": factor,
        "rate": factor,
        "validation": None if value is None else {"accuracy": value, "log_loss": value},
    }


def test_the_best_trial_on_validation_is_chosen():
    assert choose([trial(f, v) for f, v in zip(FACTORS, (0.5, 0.7, 0.6))], "accuracy")["factor"] == 1.0
    assert choose([trial(f, v) for f, v in zip(FACTORS, (0.5, 0.7, 0.6))], "log_loss")["factor"] == FACTORS[0]


def test_ties_go_to_the_default_and_failures_lose():
    assert choose([trial(f, 0.5) for f in FACTORS], "accuracy")["factor"] == 1.0
    assert choose([trial(1.0, None), trial(3.0, 0.1)], "accuracy")["factor"] == 3.0
    assert choose([trial(1.0, None)], "accuracy") is None


def test_texts_are_chosen_by_their_loss():
    made = [{"factor": f, "validation": {"loss": x}} for f, x in zip(FACTORS, (2.0, 1.0, 3.0))]
    assert choose(made, "rougeL")["factor"] == 1.0


def test_the_default_rate_is_left_to_the_method():
    method = fake_results.TPrompt()
    assert rate_for(method, 1.0) is None and rate_for(method, 3.0) == pytest.approx(0.09)
    assert factors(parse(False)) == (1.0,)
    assert factors(parse(True)) == FACTORS
    assert parse("3,0.1, 1") == parse([1, 3, 0.1]) == (0.1, 1.0, 3.0)


@pytest.mark.parametrize("grid", ["", "1", "1,1", "0,1", "-1,1", "a,b", "1,inf", [2], [None, 1]])
def test_a_grid_that_is_none_is_refused(grid):
    with pytest.raises(OptionError, match="multiples"):
        parse(grid)


def test_the_end_of_a_grid_is_named():
    def arm(*chosen):
        return {"trials": [{"factor": f, "chosen": c} for f, c in zip((3.0, 1.0, 0.3), chosen)]}

    assert at_end(arm(True, False, False)) == "highest" and at_end(arm(False, False, True)) == "lowest"
    assert not at_end(arm(False, True, False)) and not at_end({"trials": []})
    assert not at_end({"trials": [{"strength": 1.0}, {"strength": 2.0, "chosen": True}]})

"""A knowledge base as sentences, with one value masked, and as pairs that differ in one value."""

from __future__ import annotations

import pytest

from luthier.data.facts import Fact, MaskedFact, Wording, contrasted, masked_facts, read_facts
from luthier.errors import DataError, OptionError

FACTS = [
    Fact("Ivy", "food", "french"),
    Fact("Ivy", "area", "south"),
    Fact("Hut", "food", "italian"),
]


def test_atomic_and_composite_facts_have_one_value_masked():
    made = masked_facts(FACTS, mask="<mask>")
    whole = "The food of Ivy is french. The area of Ivy is south."
    assert made == [
        MaskedFact("The food of Ivy is <mask>.", "The food of Ivy is french.", "atomic", FACTS[0]),
        MaskedFact("The food of Ivy is <mask>. The area of Ivy is south.", whole, "composite", FACTS[0]),
        MaskedFact("The area of Ivy is <mask>.", "The area of Ivy is south.", "atomic", FACTS[1]),
        MaskedFact("The food of Ivy is french. The area of Ivy is <mask>.", whole, "composite", FACTS[1]),
        MaskedFact("The food of Hut is <mask>.", "The food of Hut is italian.", "atomic", FACTS[2]),
    ]
    assert {m.form for m in masked_facts(FACTS, forms=("composite",))} == {"composite"}


def test_slots_may_have_a_sentence_of_their_own():
    told = Wording(own={"food": "{entity} serves {value} food"})
    assert [told.tell(f) for f in FACTS[:2]] == ["Ivy serves french food", "The area of Ivy is south."]
    for text, why in (
        ("{entity} serves food", "lacks {value}"),
        ("{entity.__class__} {value}", "has {entity.__class__}"),
        ("{entity:>99999999} {value}", "has {entity}"),
        ("{entity} {value", "malformed"),
    ):
        with pytest.raises(OptionError, match=why.replace("{", r"\{").replace("}", r"\}")):
            Wording(own={"food": text})
    with pytest.raises(OptionError, match="No form 'molecular'"):
        masked_facts(FACTS, forms=("molecular",))


def test_tables_of_facts_and_of_entities_say_the_same(tmp_path):
    long, wide = tmp_path / "long.csv", tmp_path / "wide.csv"
    long.write_text(
        "entity,slot,value\nIvy,food,french\nIvy,area,south\nHut,food,italian\nHut,area,\nHut,food,italian\n"
    )
    wide.write_text("food,name,area\nfrench,Ivy,south\nitalian,Hut,\n")
    assert read_facts(long) == FACTS
    assert read_facts(wide, entity="name") == FACTS
    several = tmp_path / "several.jsonl"
    several.write_text(
        '{"entity": "Ivy", "slot": "stars", "value": 3}\n{"entity": "Ivy", "slot": "stars", "value": 4}\n'
    )
    assert read_facts(several) == [Fact("Ivy", "stars", "3 and 4")]
    several.write_text('{"entity": "Ivy", "slot": "stars", "value": null}\n')
    with pytest.raises(DataError, match="holds no fact"):
        read_facts(several)
    several.write_text('{"entity": "Ivy", "slot": "stars", "value": [3, 4]}\n')
    with pytest.raises(DataError, match="holds a "):
        read_facts(several)
    with pytest.raises(DataError, match="--entity NAME"):
        read_facts(wide)
    with pytest.raises(DataError, match="no column"):
        read_facts(wide, entity="restaurant")


def test_pairs_differ_in_one_value_of_the_same_slot():
    facts = [*FACTS, Fact("Curry", "food", "indian"), Fact("Oak", "food", "french")]
    made = contrasted(facts, "what {slot} has {entity}", "it is {value} .", seed=3)
    assert [p.context for p in made] == [f"what food has {e}" for e in ("Ivy", "Hut", "Curry", "Oak")]
    said = ["it is french .", "it is italian .", "it is indian .", "it is french ."]
    assert [p.right for p in made] == said and all(p.wrong != p.right for p in made)
    assert made == contrasted(facts, "what {slot} has {entity}", "it is {value} .", seed=3)
    drawn = {tuple(contrasted(facts, "{entity}", "{value}", seed=s)) for s in range(20)}
    assert len(drawn) > 1
    with pytest.raises(DataError, match="one value only"):
        contrasted(FACTS[1:2], "{entity}", "{value}")
    with pytest.raises(OptionError, match="is asked for"):
        contrasted(FACTS, "{entity} {value}", "{value}")
    with pytest.raises(OptionError, match="lacks"):
        contrasted(FACTS, "{entity}", "yes")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("values", ["aabb", "aaabbc", "aabbccd", "aaaaab", "abcdefg", "aaabbb", "aab", "aa"])
def test_whoever_knows_only_which_values_are_frequent_is_right_in_half(values, seed):
    facts = [Fact(f"e{i}", "s", v) for i, v in enumerate(values)]
    most = max(values.count(v) for v in values)
    wanted = 2 * min(len(values) // 2, len(values) - most)
    if not wanted:
        with pytest.raises(DataError):
            contrasted(facts, "{entity}", "{value}", seed=seed)
        return
    made = contrasted(facts, "{entity}", "{value}", seed=seed)
    assert len(made) == wanted and all(p.right != p.wrong for p in made)
    assert sum(values.count(p.right) > values.count(p.wrong) for p in made) == sum(
        values.count(p.right) < values.count(p.wrong) for p in made
    )
    assert sorted(p.right for p in made) == sorted(p.wrong for p in made)

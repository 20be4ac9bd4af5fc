"""Recipe of `builtin:entities`: generated sentences in which the context says what a name is.

Persons (PER), places (LOC) and organisations (ORG) share one list of names: `Marlow` signs a letter, lies on a river or
brews beer, so that the word alone tells nothing. These names are disjoint between the parts, and a quarter of the
words that tell (`carpenter`, `harbour`, `brewery`) occur in no train sentence. Tags are IOB2.

Everything is drawn by `random.Random(seed).random()`, whose sequence Python keeps: the rows are equal on every machine.
"""

from __future__ import annotations

from random import Random

SEED = 20
ROWS = {"train": 2000, "validation": 250, "test": 500}
KINDS = ("PER", "LOC", "ORG")

NAMES = """Abbott Alden Arden Ashby Aston Avery Barlow Barton Beckett Bentley Berwick Blythe Bolton Bradford Bramley Brandon
    Brixton Burton Byron Calder Calvert Camden Carlisle Carlton Carver Chester Clayton Clifton Colby Compton Corby Cromwell
    Crosby Dalton Darby Darnell Denby Denton Dexter Douglas Dover Drayton Dudley Dunmore Durham Easton Edison Eldon Ellery
    Elston Fairfax Farley Felton Fenwick Forbes Garland Garrick Gifford Glenn Gordon Graham Granby Grantham Greeley Hadley
    Halifax Hamlin Harlow Hartley Haydon Hilton Holden Holt Houston Howard Hudson Huntley Irving Jarvis Kelso Kendall Kent
    Keswick Kimberley Kingsley Kirby Lambert Lancaster Langley Lawton Leighton Lennox Leslie Lincoln Lindsay Logan Ludlow
    Lytton Madison Malden Malvern Marlow Marsden Melton Melville Merton Milford Milton Monroe Morley Morton Nelson Newton
    Norwood Oakley Orton Osborne Oxley Paisley Parkhurst Pelham Percy Perth Preston Quincy Radcliffe Ramsey Redford Redmond
    Ripley Rodney Romney Rowley Royston Russell Rutland Salisbury Savile Selby Selkirk Sheldon Shelby Sherwood Sidney Skelton
    Stafford Stanley Sterling Stirling Stratton Sutton Sydney Tatum Taunton Thornton Tilden Tipton Travis Trent Tyndall Upton
    Vernon Wakefield Walden Wallace Walton Warwick Webster Wellington Weston Whitby Wilton Winslow Winston Worthing York"""
FIRST = "Ada Ben Clara David Edith Felix Grace Henry Iris Jacob Kate Leon Mary Noah Olive Peter Rosa Simon Vera Walter"

# what tells, by kind; a split's share of each list is `known`
ROLES = {
    "PER": "carpenter nurse poet teacher pilot surgeon farmer painter lawyer soldier baker violinist clerk tailor sailor "
    "dentist engineer gardener historian waiter",
    "LOC": "village harbour town island valley port suburb county resort city parish district settlement region hamlet "
    "borough peninsula province plateau coast",
    "ORG": "insurer brewery publisher bank retailer airline manufacturer union newspaper charity wholesaler broadcaster "
    "refinery startup theatre-company shipbuilder foundation agency cooperative supplier",
}
HEADS = {  # "the HEAD of NAME": who or what has one
    "PER": "daughter widow voice childhood brother cousin handwriting diary patience nephew neighbour appetite",
    "LOC": "mayor harbour streets outskirts climate population north bishop beaches suburbs skyline map",
    "ORG": "chairman shareholders profits treasurer founder workforce accounts logo headquarters board customers shares",
}
FROM = {  # "a THING from NAME"
    "PER": "kiss smile letter birthday-card whisper nod compliment confession",
    "LOC": "train ferry coach postcard road pipeline refugee pilgrim",
    "ORG": "loan invoice refund press-release dividend subsidy catalogue job-offer",
}
CLAUSES = {  # * stands for the name, @ for a name of any kind with a clause of its own beside it
    "PER": (
        "* , a ROLE , slept until noon",
        "* smiled and put the kettle on",
        "the ROLE * broke a leg last winter",
        "a FROM from * arrived this morning",
        "the HEAD of * surprised everyone",
        "nobody believed * , who blushed at once",
        "* married the ROLE in June",
        "we asked * how old she was",
        "according to * himself , the ROLE was ill",
        "* took off her coat and wept",
    ),
    "LOC": (
        "* , a ROLE in the north , was flooded",
        "it rained all night in *",
        "the ROLE of * lies beside the river",
        "a FROM from * arrived this morning",
        "the HEAD of * surprised everyone",
        "they drove to * and found a hotel",
        "snow closed every road near *",
        "we spent our holidays in * again",
        "according to a guide to * , the ROLE was old",
        "* has two bridges and a cathedral",
    ),
    "ORG": (
        "* , a ROLE with forty employees , was sold",
        "* hired two accountants in June",
        "the ROLE * broke its own record last winter",
        "a FROM from * arrived this morning",
        "the HEAD of * surprised everyone",
        "regulators fined * for late filings",
        "* merged with a rival ROLE in June",
        "we own ten percent of *",
        "according to * itself , the ROLE was solvent",
        "* reported a loss and closed two branches",
    ),
}
JOINTS = (", and", "while", "because", "although", ", but", "before")
OPENINGS = ("On Monday", "Last year", "Oddly enough", "In short", "Two weeks later", "As expected")


def rows(part: str) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """(words, tags) of every sentence of `train`, `validation` or `test`; no sentence twice."""
    draw = Random(f"{SEED} {part}".encode()).random
    names, known = _names(part), 0.75 if part == "train" else 1.0
    made: dict[tuple[str, ...], tuple[str, ...]] = {}
    while len(made) < ROWS[part]:
        words, tags = _sentence(draw, names, known)
        made.setdefault(tuple(words), tuple(tags))
    return list(made.items())


def _names(part: str) -> tuple[str, ...]:
    """A part's own names: 60 %, 10 % and 30 % of a shuffled list."""
    draw = Random(SEED).random
    order = sorted(NAMES.split(), key=lambda name: draw())
    a, b = round(0.6 * len(order)), round(0.7 * len(order))
    return tuple({"train": order[:a], "validation": order[a:b], "test": order[b:]}[part])


def _sentence(draw, names, known) -> tuple[list[str], list[str]]:  # type: ignore[no-untyped-def]
    words: list[str] = []
    tags: list[str] = []
    if draw() < 0.25:
        words, tags = _plain([*_one(draw, OPENINGS).split(), ","])
    for number in range(1 + int(draw() * 2.5)):
        if number:
            joint = _plain(_one(draw, JOINTS).split())
            words, tags = words + joint[0], tags + joint[1]
        clause = _clause(draw, names, known)
        words, tags = words + clause[0], tags + clause[1]
    words = [words[0][0].upper() + words[0][1:], *words[1:], "."]
    return words, [*tags, "O"]


def _clause(draw, names, known) -> tuple[list[str], list[str]]:  # type: ignore[no-untyped-def]
    kind = _one(draw, KINDS)
    words: list[str] = []
    tags: list[str] = []
    for word in _one(draw, CLAUSES[kind]).split():
        if word == "*":
            name = _name(draw, kind, names)
            words += name
            tags += [f"B-{kind}"] + [f"I-{kind}"] * (len(name) - 1)
        else:
            lists = {"ROLE": ROLES, "HEAD": HEADS, "FROM": FROM}.get(word)
            if lists is not None:
                all_ = lists[kind].split()
                word = _one(draw, all_[: round(known * len(all_))])
            words.append(word)
            tags.append("O")
    return words, tags


def _name(draw, kind, names) -> list[str]:  # type: ignore[no-untyped-def]
    """Most often one word that may be anything; else two or three, of which some tell."""
    name, chance = _one(draw, names), draw()
    if chance < 0.6:
        return [name]
    if chance < 0.75:  # two of the shared names: Hudson Kent
        return [name, _one(draw, names)]
    if kind == "PER":
        return [_one(draw, FIRST.split()), name]
    if kind == "LOC":
        return ["New", name] if chance < 0.87 else [name, "Bay"]
    return [name, "Brothers"] if chance < 0.87 else [name, "&", _one(draw, names)]


def _plain(words: list[str]) -> tuple[list[str], list[str]]:
    return words, ["O"] * len(words)


def _one(draw, of):  # type: ignore[no-untyped-def]
    return of[int(draw() * len(of))]

"""The words that generated texts are made of: kinds of things with their members, names, and made-up words."""

from __future__ import annotations

import random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


KINDS: dict[str, tuple[str, ...]] = {
    kind: _words(members)
    for kind, members in {
        "animal": "tiger horse rabbit eagle salmon spider monkey goat whale fox wolf hen",
        "food": "bread cheese rice soup apple carrot honey cake egg bean pasta onion",
        "colour": "red blue green yellow purple orange black white brown grey pink gold",
        "vehicle": "car truck train bicycle boat plane bus tram ferry rocket van scooter",
        "clothing": "shirt coat hat glove scarf shoe belt dress sock jacket skirt boot",
        "furniture": "table chair bed shelf desk sofa lamp mirror drawer bench stool cabinet",
        "sport": "tennis football chess rowing hockey golf boxing skiing running judo fencing surfing",
        "weather": "rain snow wind fog storm sunshine hail thunder frost cloud heat mist",
        "plant": "oak rose tulip fern pine moss ivy maple cactus daisy willow reed",
        "drink": "tea coffee milk juice water wine cider cocoa lemonade beer broth soda",
        "metal": "iron copper silver tin zinc lead nickel steel brass chrome cobalt bronze",
        "music": "piano violin drum flute guitar trumpet harp organ cello bell horn banjo",
    }.items()
}
THINGS = tuple(word for members in KINDS.values() for word in members)
KIND_OF = {word: kind for kind, members in KINDS.items() for word in members}
NAMES = _words(
    "Ana Bob Carl Dina Eva Finn Gus Hana Ivan Jane Kim Leo Mia Nils Olga Paul Rosa Sam Tom Uma Vera Will"
)
CITIES = _words("Oslo Rome Paris Lima Cairo Delhi Tokyo Berlin Madrid Dublin Vienna Prague Lagos Quito")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
GOOD = _words("good great lovely excellent nice wonderful pleasant superb fine perfect")
BAD = _words("bad awful terrible poor nasty horrible dreadful ugly weak broken")
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def made_up(rng: random.Random) -> str:
    """A word of two or three syllables that means nothing."""
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.choice((2, 2, 3))))


def word(rng: random.Random) -> str:
    """A thing, or now and then a made-up word."""
    return rng.choice(THINGS) if rng.random() < 0.8 else made_up(rng)


def different(rng: random.Random, n: int) -> list[str]:
    """`n` different words."""
    found: dict[str, None] = {}
    while len(found) < n:
        found[word(rng)] = None
    return list(found)

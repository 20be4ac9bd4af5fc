"""The baseline of a language model: a trigram with interpolated Kneser-Ney smoothing (Kneser and Ney, 1995;
interpolated as in Chen and Goodman, 1999)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence


class Trigram:
    """p(token | the two before it), discounted and interpolated down to a uniform distribution.

    Begin and end of a text are tokens of their own: `begin` stands twice in front, `end` is predicted.
    """

    def __init__(self, texts: Iterable[Sequence[int]], vocabulary: int, begin: int, end: int) -> None:
        self.vocabulary, self.begin, self.end = vocabulary, begin, end
        whole: Counter[tuple[int, ...]] = Counter()
        for text in texts:
            row = (begin, begin, *text, end)
            whole.update(zip(row, row[1:], row[2:]))
        # Below the highest order a context counts once, however often it occurred.
        pairs: Counter[tuple[int, ...]] = Counter((b, c) for _, b, c in whole)
        singles = Counter(c for _, c in pairs)
        self.levels = [_Level(whole), _Level(pairs), _Level({(c,): n for c, n in singles.items()})]

    def probability(self, a: int, b: int, c: int) -> float:
        p = 1 / self.vocabulary
        for level, context in zip(reversed(self.levels), ((), (b,), (a, b))):
            p = level.mix((*context, c), context, p)
        return p

    def bits(self, text: Sequence[int]) -> float:
        """Bits of a text, its end included."""
        row = (self.begin, self.begin, *text, self.end)
        return -sum(math.log2(self.probability(*three)) for three in zip(row, row[1:], row[2:]))

    def likeliest(self, before: int) -> int:
        """The token that follows `before` most often in the texts."""
        return self._following.get(before, self.end)

    @property
    def _following(self) -> dict[int, int]:
        if not hasattr(self, "_best"):
            best: dict[int, tuple[int, int]] = {}
            totals: Counter[tuple[int, int]] = Counter()
            for (_, b, c), n in self.levels[0].counts.items():
                totals[b, c] += n
            for (b, c), n in totals.items():
                best[b] = max(best.get(b, (0, 0)), (n, c))
            self._best = {b: c for b, (_, c) in best.items()}
        return self._best


class _Level:
    """The counts of one order, with one discount for all."""

    def __init__(self, counts: Mapping[tuple[int, ...], int]) -> None:
        self.counts = counts
        self.totals: Counter[tuple[int, ...]] = Counter()
        self.kinds: Counter[tuple[int, ...]] = Counter()
        for key, n in counts.items():
            self.totals[key[:-1]] += n
            self.kinds[key[:-1]] += 1
        once = sum(n == 1 for n in counts.values())
        twice = sum(n == 2 for n in counts.values())
        self.discount = once / (once + 2 * twice) if once else 0.0

    def mix(self, key: tuple[int, ...], context: tuple[int, ...], below: float) -> float:
        total = self.totals.get(context, 0)
        if not total:
            return below
        own = max(self.counts.get(key, 0) - self.discount, 0) / total
        return own + self.discount * self.kinds[context] / total * below

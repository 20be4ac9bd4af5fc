"""How long Python takes longer to start with Luthier: `import luthier`, and `luthier --help`, against `python -c pass`, in turns.

python bench/start_up.py [--threads 2]    processes begun one after the other; the median of the differences of the pairs
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timing

NOTHING = [sys.executable, "-c", "pass"]
STARTS = {
    "import luthier": ([sys.executable, "-c", "import luthier"], 0.3),
    "luthier --help": ([sys.executable, "-m", "luthier", "--help"], 0.5),
}


def process(command: list[str]) -> Callable[[], Any]:
    return partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    given = timing.arguments(__doc__, argv)
    pairs, figures = 2 if given.smoke else given.pairs or 20, []
    for name, (command, limit) in STARTS.items():
        runs = timing.in_turns(process(command), process(NOTHING), pairs)
        more = statistics.median(a - b for a, b in zip(runs["ours"], runs["peer"], strict=True))
        figures.append(timing.figure(f"{name}, more than python -c pass", more, limit, "seconds", runs=runs))
    return timing.write("start_up", figures, given)


if __name__ == "__main__":
    main()

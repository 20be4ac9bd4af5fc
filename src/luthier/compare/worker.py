"""A worker of a comparison: `python -m luthier.compare.worker`. Takes model and data, then orders; answers each in a line.

On standard input come the length of the parcel (8 bytes), the parcel, and one order in a line (JSON) after another. Whatever
libraries print goes to standard error. When the comparison ends, however that be, its end of the pipe closes, and so ends this.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import sys
import threading
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    parcel = sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(8), "little"))
    orders: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=read, args=(orders,), daemon=True).start()
    work = open_parcel(parcel)
    del parcel
    while True:
        order = json.loads(orders.get())
        answer = work if isinstance(work, dict) else work.carry_out(order)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def open_parcel(parcel: bytes) -> Any:
    """The work, or the answer that every order gets because there is none."""
    try:
        return pickle.loads(parcel)
    except (pickle.UnpicklingError, AttributeError, ImportError) as error:
        return {
            "error": f"The model, the data or a function cannot be had in another process ({error}): define it in a module "
            "that can be imported, or leave out workers."
        }


def read(orders: queue.Queue[bytes]) -> None:
    """Orders as they come; the end of them ends the process, in whatever it is."""
    while line := sys.stdin.buffer.readline():
        orders.put(line)
    os._exit(1)


if __name__ == "__main__":
    main()

"""Run as a script: commands that are killed for real, then given again.

    python killed_commands.py FOLDER SEED      prints JSON: for every scenario, one object per kill

Every command is a forked child, so that libraries are imported once. What a child does to its output folder is seen by an audit
hook (opening for writing, renaming, removing, making) and by the barriers of `luthier.train.checkpoint`; both are
events, numbered as they come. What a kill inside the n-th event of a name would leave, before it takes effect, is copied while one
child goes through all of them: only what was written to files is there, as after SIGKILL. "half" then cuts the file that is to be
renamed in half. Kills at any moment are SIGKILL from outside.
"""

import collections
import contextlib
import fnmatch
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)

from e2e_testbed import save_bert, save_rows  # noqa: E402

from luthier.cli.main import main  # noqa: E402
from luthier.train import checkpoint, outcome, watch  # noqa: E402

watch.SECONDS_BETWEEN = watch.COST = (
    0  # a checkpoint after every step, so that a resumed run has something to go on from
)
outcome.learning_curve = lambda *_: "<svg/>"  # the picture takes longer than the run
os.fsync = lambda handle: None  # decides what a power cut leaves, not what a killed process leaves

FIT = ["--epochs", "2", "--batch-size", "16", "--quiet"]
SCENARIOS = {
    "lora": ["fit", "--method", "lora", "--set", "rank=2", *FIT],
    "xprompt": ["fit", "--method", "xprompt", "--set", "length=4", "pieces=4", "scored=2", *FIT],
    "cache": ["fit", "--method", "lora", "--set", "rank=2", "targets=attention.query[-1]", *FIT],
    "side": ["fit", "--method", "lst", *FIT],
    "compare": [
        "compare", "--methods", "lora:rank=2,last_layers:layers=1", "--budget", "epochs=2", "--batch-size", "16", "--quiet",
    ],
}  # fmt: skip
CLOCKED = ("seconds", "latency_ms", "resident_bytes", "seconds_train", "machine")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def command(scenario, folder, out):
    first, *rest = SCENARIOS[scenario]
    return [
        first,
        "--model",
        str(folder / "bert"),
        "--data",
        str(folder / "rows.csv"),
        "--out",
        str(out),
        *rest,
    ]


class Events:
    """Told of everything that a process does to `out`; `act(name, paths)` is called before it is done."""

    def __init__(self, out, act):
        self.out, self.act, self.busy = str(out), act, False
        checkpoint._barrier = lambda point: self.tell(point)
        sys.addaudithook(self.hook)

    def hook(self, event, args):
        if event == "open":
            if isinstance(args[0], (str, bytes, os.PathLike)) and args[2] & WRITING:
                self.maybe("write", args[0])
        elif event == "os.rename":
            self.maybe("rename", args[0], args[1])
        elif event in ("os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            self.maybe(event.partition(".")[2], args[0])

    def maybe(self, verb, *paths):
        paths = [os.fsdecode(p) for p in paths]
        if paths[-1].startswith(self.out + os.sep) or paths[-1] == self.out:
            shown = re.sub(r"\.adaptation\.\w{8}", ".adaptation.*", os.path.relpath(paths[-1], self.out))
            shown = re.sub(
                r"^(\.|.*/\.)(results\.json|report\.html|test\.jsonl|.*\.jsonl)\.\d+$", r"\1\2.*", shown
            )
            shown = re.sub(r"leaderboard\.csv\.\w+", "leaderboard.csv.*", shown)
            shown = re.sub(r"checkpoints/(.?)[0-9]+", r"checkpoints/\1N", shown)
            self.tell(f"{verb} {shown}", paths)

    def tell(self, name, paths=()):
        if not self.busy:
            self.busy = True
            self.act(name, paths)
            self.busy = False


def child(folder, scenario, out, act, wait=None):
    """Give the command in a forked process. Returns (its wait status, what it said); wait: seconds until a kill from outside."""
    said = folder / "said.txt"
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            Events(out, act)
            code = main(command(scenario, folder, out))
        finally:
            os._exit(code)
    if wait is not None:
        time.sleep(wait)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return status, said.read_text()[-2000:]


def untimed(value):
    """Without what a clock, or the operating system's count of a process's memory, says."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in CLOCKED}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def result(scenario, out):
    """{file: content} of all that must be equal bit by bit."""
    held = {}
    for path in sorted(
        p for p in out.rglob("*") if p.is_file() and p.name not in ("lock", "report.html", "leaderboard.csv")
    ):
        name = str(path.relative_to(out))
        if "checkpoints/" in name:
            continue
        held[name] = path.read_bytes()
        if path.name in ("metrics.json", "results.json"):
            held[name] = untimed(json.loads(held[name]))
    if scenario == "compare":
        report, board = (out / "report.html").read_text(), (out / "leaderboard.csv").read_text()
        held["report"] = report.rstrip().endswith("</html>")
        held["board"] = [line.split(",")[:2] for line in board.splitlines()]
    return held


def different(a, b):
    return sorted(k for k in {*a, *b} if a.get(k) != b.get(k))


def cut(path):
    """Leave half of the file (or of the largest file of the folder) that was about to be renamed."""
    if path.is_dir():
        path = max(path.iterdir(), key=lambda p: p.stat().st_size)
    with contextlib.suppress(OSError):
        os.truncate(path, path.stat().st_size // 2)


def leaving(plans, out, home):
    """Copies `out` to home/NUMBER of a plan when its event comes."""
    count = collections.Counter()

    def act(name, paths):
        count[name] += 1
        for number, (point, visit, half, wait) in enumerate(plans):
            if wait is None and (point, visit) == (name, count[name]):
                copy = home / str(number)
                shutil.copytree(out, copy) if out.exists() else copy.mkdir()
                if half and paths:
                    cut(copy / os.path.relpath(paths[0], out))

    return act


def choose(scenario, events, took, rng):
    """(point, which visit of it, half, seconds until a kill from outside)."""
    plans = []
    for pattern, half in POINTS[scenario]:
        points = [p for p in dict.fromkeys(events) if fnmatch.fnmatchcase(p, pattern)]
        if "checkpoints" in pattern or not pattern.startswith(("write", "rename", "*")):
            points = points[:1]  # one of those that differ in their number only
        elif pattern != "*":
            points = [rng.choice(points)]
        else:  # everything; what lies between two events that stay need not be tried twice
            points = [
                p for p in points if not p.startswith(("before ", "after ")) and not p.endswith(".part")
            ]
        plans += [(p, rng.randint(1, events.count(p)), half, None) for p in points]
    if scenario == "xprompt":  # 3 steps train, two and two score, 3 train again: one kill within each phase
        plans += [("done", n, False, None) for n in (rng.randint(1, 2), 4, 6, rng.randint(8, 9))]
    return plans + [("any moment", 0, False, rng.uniform(0.03, 0.95) * took) for _ in range(RANDOM[scenario])]


POINTS = {
    "lora": [("*", False), ("rename *N", True), ("rename adaptation", True), ("rename metrics.json", True)],
    "xprompt": [],
    "cache": [("cache: half written", False), ("cache: shard written", False)],
    "side": [("cache: half written", False)],
    "compare": [
        ("rename results.json", False), ("rename results.json", True), ("rename report.html", True),
        ("rename leaderboard.csv", True), ("rename predictions/*", True), ("rename runs/*", False),
        ("write runs/*/lock", False), ("rename trials/*/adaptation", True), ("rename trials/*/DONE", False),
        ("cache: half written", False), ("half of the tensors", False),
    ],
}  # fmt: skip
"""(events, half): "*" is everything."""
RANDOM = {"lora": 3, "xprompt": 2, "cache": 1, "side": 1, "compare": 3}


def kill_and_resume(scenario, folder, rng):
    home = folder / scenario
    home.mkdir()
    assert (
        main([*command(scenario, folder, home / "warm")]) == 0
    )  # what is imported here, children need not import
    events = folder / "events.txt"
    with events.open("w") as file:

        def note(name, paths):
            file.write(name + "\n")
            file.flush()

        began = time.monotonic()
        status, said = child(folder, scenario, home / "whole", note)
        assert status == 0, said
        took = time.monotonic() - began
    seen = events.read_text().splitlines()
    expected, found = result(scenario, home / "whole"), []
    plans = choose(scenario, seen, took, rng)
    status, said = child(folder, scenario, home / "on", leaving(plans, home / "on", home))
    assert status == 0, said
    for number, (point, visit, half, wait) in enumerate(plans):
        out = home / str(number)
        reached = out.exists()
        if wait is not None:
            status, _ = child(folder, scenario, out, lambda name, paths: None, wait)
            reached = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        stood = checkpoint.read_newest(out / "checkpoints")
        again, said = child(folder, scenario, out, lambda name, paths: None)
        made = {"point": point, "visit": visit, "half": half, "reached": reached, "resumed": again}
        made["phase"] = stood[1]["index"] if stood else None
        made["different"] = different(expected, result(scenario, out)) if again == 0 else said
        made["left"] = [str(p.relative_to(out)) for p in out.rglob(".*")]
        found.append(made)
    return {"kills": found, "events": sorted(set(seen)), "took": took}


def drive(folder, seed, names):
    folder.mkdir(exist_ok=True)
    save_bert(folder / "bert")
    save_rows(folder / "rows.csv")
    return {name: kill_and_resume(name, folder, random.Random(seed)) for name in names}


if __name__ == "__main__":
    names = sys.argv[3:] or list(SCENARIOS)
    made = drive(Path(sys.argv[1]), int(sys.argv[2]), names)
    Path(sys.argv[1], "kills.json").write_text(json.dumps(made))

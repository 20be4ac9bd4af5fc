"""`luthier methods --matrix`: what the conformance suite holds, from the index alone."""

from __future__ import annotations

import json
import subprocess
import sys

from luthier import methods
from luthier.cli.methods import by_choices, carried, cell


def run(*arguments: str) -> str:
    code = "from luthier.cli.main import main; sys.exit(main())"
    check = "assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\ntry:\n    {code}\nfinally:\n    {check}", "methods", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_matrix_has_a_row_for_every_method_and_loads_no_torch():
    shown = run("--matrix")
    whole = [e["name"] for e in methods.entries().values() if e["place"] != "output"]
    assert [n for n in whole if f"\n{n} " not in shown.replace("\n ", "\n")] == []
    assert all(a in shown for a in ("bert", "llama", "gpt2", "t5", "vit", "mamba", "plain"))
    assert "no site" in shown and "bypassed" in shown


def test_json_has_the_counts():
    found = {e["name"]: e for e in json.loads(run("--json"))}
    for e in found.values():
        if e["place"] == "output":
            continue
        total: dict[str, int] = {}
        whole = set()
        for held in e["architectures"].values():
            whole.add(held["holds"] + sum(held["not_applicable"].values()))
            for reason, n in held["not_applicable"].items():
                total[reason] = total.get(reason, 0) + n
        assert len(whole) == 1 and total == e["not_applicable"], e["name"]
    assert found["lora"]["architectures"]["mamba"]["holds"] == 0
    assert found["lora"]["architectures"]["llama"]["not_applicable"] == {}


def test_cells_say_how_many_or_why_not():
    assert cell({"holds": 3, "not_applicable": {}}) == "3"
    assert cell({"holds": 2, "not_applicable": {"no positions": 1}}) == "2 of 3"
    assert cell({"holds": 0, "not_applicable": {"no site": 3}}) == "no site"
    e = {"architectures": {"a": {"holds": 2, "not_applicable": {"no positions": 1}}}}
    assert carried(e) == "a 2 of 3 (no positions)"


def test_every_method_is_listed_by_its_five_choices():
    shown = run("--choices")
    entries = methods.entries()
    rows = {r[0]: r[1:] for r in by_choices(entries.values())}
    assert set(rows) == set(entries) and all(all(r) for r in rows.values())
    assert all(name in shown for name in ("deep_prompt", "selection", "signal"))
    assert rows["deep_prompt"][0] == "deep tokens" and rows["prompt_tuning"][0] == "input tokens"
    assert rows["p_tuning_v2"][0] == "keys and values" and rows["ntk_attention"][0] == "attention's output"
    assert rows["dept"][0] == "input tokens + activation" and rows["ia3"][3] != "its own"

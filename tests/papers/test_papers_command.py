"""`luthier papers`: what it prints, its exit codes, and that nothing a row says acts on the terminal."""

import json
from collections import Counter

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("luthier.cli.show", reason="the command line is another room's")

from luthier.cli.papers import papers
from luthier.papers import catalogue
from luthier.papers.catalogue import rows

app = typer.Typer(rich_markup_mode=None)
app.command()(papers)


def run(*arguments: str):
    return CliRunner().invoke(app, [*arguments])


def test_the_list_names_every_row_and_counts_them():
    done = run()
    assert done.exit_code == 0
    assert all(r.id in done.stdout for r in rows())
    states = Counter(r.status for r in rows())
    assert "374 of 374 papers" in done.stderr
    assert all(f"{states[s]} {s}" in done.stderr for s in ("works", "partial", "absent"))


def test_words_and_filters_narrow_it():
    done = run("low-rank", "--room", "weights", "--limit", "2", "--json")
    read = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 0 and len(read) == 2 and {r["room"] for r in read} == {"weights"}


def test_json_is_one_object_per_row_with_all_that_is_known():
    done = run("--json")
    read = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(read) == 374 and done.stderr == "" and done.stdout.isascii()
    assert read == [r.record() for r in rows()]
    assert {"id", "title", "system", "status", "entry", "check"} <= set(read[0])


def test_an_id_shows_the_row_in_full():
    done = run("s282")
    flat = " ".join(done.stdout.split())
    for text in (
        "Parameter-Efficient Prompt Tuning",
        "prompt_tuning",
        "works",
        "google-research/prompt-tuning",
    ):
        assert text in flat
    assert catalogue.row("S282").mechanism.split()[-1] in flat
    both = run("S282", "S294", "--json")
    assert [json.loads(line)["id"] for line in both.stdout.splitlines()] == ["S282", "S294"]
    assert "mechanism" in run("xprompt", "--full", "--limit", "1").stdout


def test_no_match_exits_1_with_a_hint_on_stderr():
    for arguments in (
        ["xyzzy", "plugh"],
        ["xyzzy", "plugh", "--json"],
        ["--status", "guide"],
        ["S282", "--room", "words"],
    ):
        done = run(*arguments)
        assert (done.exit_code, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 1
    assert "fewer words" in run("xyzzy", "plugh").stderr
    assert "--meaning" in run("xyzzy").stderr and "filter" in run("--status", "guide").stderr


def test_an_unknown_id_or_filter_value_names_what_there_is():
    for arguments, said in ((["S999"], "S001 to S374"), (["--room", "promts"], "Did you mean 'prompts'")):
        done = run(*arguments)
        assert done.exit_code != 0 and said in str(done.exception)


@pytest.mark.parametrize("arguments", [[], ["--full"], ["S001"]])
def test_markup_and_terminal_escapes_in_a_row_are_text(monkeypatch, arguments):
    hostile = "[red]x[/b] [link=file:///x]y \x1b[2J\x1b]0;title\x07 \x9b31m </script>"
    first = rows()[0].model_copy(update={"title": hostile, "system": "[/]", "mechanism": hostile})
    monkeypatch.setattr(catalogue, "_by_id", lambda: {"S001": first})
    done = run(*arguments)
    assert done.exit_code == 0
    assert "[red]x[/b] [link=file:///x]y" in " ".join(done.stdout.split())
    assert not [c for c in done.stdout if not c.isprintable() and c != "\n"]


def test_meaning_ranks_with_the_model_and_shows_similarities(monkeypatch):
    from luthier.papers import meaning

    def stub(query, model, limit, *, on_embedding, **filters):
        on_embedding(374)
        assert query == "less memory" and filters["room"] == "frugal"
        return [(catalogue.row("S200"), 0.71234), (catalogue.row("S068"), 0.5)][:limit]

    monkeypatch.setattr(meaning, "search_by_meaning", stub)
    done = run("--meaning", "less memory", "--room", "frugal")
    assert done.exit_code == 0 and "0.71" in done.stdout and "Embedding 374" in done.stderr
    read = [
        json.loads(line)
        for line in run("--meaning", "less memory", "--room", "frugal", "--json").stdout.splitlines()
    ]
    assert [(r["id"], r["similarity"]) for r in read] == [("S200", 0.7123), ("S068", 0.5)]


def test_html_writes_a_page_of_what_was_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--html").exit_code == 0 and (tmp_path / "papers.html").read_text().count("<article") == 374
    done = run("--room", "clients", "--html", "some.html", "--json")
    said = json.loads(done.stdout)
    assert (said["file"], said["rows"]) == ("some.html", 15)
    assert (tmp_path / "some.html").read_text().count("<article") == 15 and said["bytes"] == (
        tmp_path / "some.html"
    ).stat().st_size
    missing = run("--html", "nowhere/some.html")
    assert missing.exit_code != 0 and "no folder 'nowhere'" in str(missing.exception)

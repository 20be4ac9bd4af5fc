"""Dialects: functions of the standard library, rewritten by rules."""

from itertools import pairwise

from luthier.models.testbeds.dialects import BRACES, DIALECTS, ENDS, PYTHON, functions

SOURCE = """def first_name(self, names):
    if names is None:
        return 'no name'
    else:
        for name in names:
            self.last_seen = name
    return names[0]"""


def test_python_is_itself_and_the_others_follow_their_rules():
    assert PYTHON.says(SOURCE) == SOURCE
    assert BRACES.says(SOURCE) == (
        "function firstName(this, names) { if names === null { return 'no name'; } else { for name in names { "
        "this.lastSeen = name; } } return names[0]; }"
    )
    assert ENDS.says(SOURCE) == (
        "method first_name(me, names) do when names same nil do give 'no name' else do each name of names do "
        "me.last_seen = name end end give names[0] end"
    )


def test_every_block_that_opens_closes():
    for _, body in functions(("shutil.py", "textwrap.py")):
        said = BRACES.says(body)
        assert said.count(" {") >= 1 and said.endswith("}")
        words = ENDS.says(body).split()
        goes_on = [
            w in ("elsif", "rescue") or (w in ("else", "finally") and then == "do")
            for w, then in pairwise(words)
        ]
        opened = words.count("do") - sum(goes_on)
        assert opened == words.count("end"), body


def test_functions_are_documented_once_and_without_their_docstring():
    found = functions(("shutil.py", "textwrap.py"))
    assert len(found) > 20 and found == functions(("shutil.py", "textwrap.py"))
    assert len({c for c, _ in found}) == len({b for _, b in found}) == len(found)
    assert all(body.startswith(("def ", "async def ")) and comment not in body for comment, body in found)
    assert len({d.says(found[0][1]) for d in DIALECTS}) == 3

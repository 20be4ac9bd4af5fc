"""`import luthier as lt`: names load on use; packages that are also functions are both, however imported."""

import subprocess
import sys

import pytest

PREPARE = """
import sys, types
def room(name, **names):
    module = types.ModuleType(name)
    module.__dict__.update(names)
    sys.modules[name] = module
room("luthier.data.load", load_data=lambda *a, **k: ("data", a, k))
room("luthier.compare.compare", compare=lambda *a, **k: ("compare", a, k))
room("luthier.search.search", search=lambda *a, **k: ("search", a, k))
"""


def outcome(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", PREPARE + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["data", "compare", "search"])
@pytest.mark.parametrize(
    "imports",
    [
        "import luthier as lt",
        "import luthier.ROOM as room; import luthier as lt",
        "import luthier as lt; import luthier.ROOM",
        "from luthier import ROOM as room; import luthier as lt",
        "import luthier as lt; lt.ROOM; from importlib import import_module; import_module('luthier.ROOM')",
    ],
)
def test_a_package_is_called_whoever_imports_it_first(name, imports):
    pytest.importorskip(f"luthier.{name}")
    code = imports.replace("ROOM", name) + f"\nimport luthier.{name} as p\n"
    code += f"print(lt.{name}('x', seed=1), lt.{name} is p)"
    assert outcome(code) == f"('{name}', ('x',), {{'seed': 1}}) True"


def test_an_unknown_name_lists_what_there_is():
    import luthier

    with pytest.raises(AttributeError, match=r"no attribute 'lod'; it has .*load"):
        luthier.lod  # noqa: B018


def test_names_are_listed_without_loading_them():
    found = outcome(
        "import luthier as lt; print({'fit', 'Classifier'} <= set(dir(lt)), 'torch' in sys.modules)"
    )
    assert found == "True False"


def test_the_methods_package_is_no_function():
    import luthier

    assert not callable(luthier.methods)
    assert luthier.methods.__name__ == "luthier.methods"

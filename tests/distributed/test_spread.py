"""What the rest of a comparison's spreading says, without starting anything."""

import pytest

from luthier.cli.main import address_after_ray
from luthier.compare import cluster
from luthier.compare.orders import Made, held_threads
from luthier.errors import OptionError, RunError


@pytest.mark.parametrize(
    "given, expanded",
    [
        ("--ray", "--ray auto"),
        ("--ray --quiet", "--ray auto --quiet"),
        ("--ray local --quiet", "--ray local --quiet"),
    ],
)
def test_ray_stands_without_an_address(given, expanded):
    assert address_after_ray(given.split()) == expanded.split()


def test_ray_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(
        cluster.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name))
    )
    with pytest.raises(OptionError, match=r"pip install 'luthier\[ray\]'"):
        cluster.load_ray()


def test_a_run_on_a_machine_with_another_disk_is_refused(tmp_path):
    with pytest.raises(RunError, match="does not share this folder"):
        Made.of({"metrics": {}}, {"out": str(tmp_path)}, None)


def test_a_run_goes_on_with_the_threads_that_it_was_begun_with(tmp_path):
    assert held_threads(str(tmp_path)) is None
    (tmp_path / "run.json").write_text('{"surroundings": {"threads": 3}}')
    assert held_threads(str(tmp_path)) == 3

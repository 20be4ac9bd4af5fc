"""MkDocs' hooks: the pages that are made from the code and its stored figures, the navigation, the search index."""

import json
import shutil
from pathlib import Path
from typing import Any

import site_pages as pages
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]


def on_config(config: Any) -> Any:
    """The navigation: what is written by hand and there, then what is made."""
    config.nav = pages.navigation(ROOT)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add what is made: Markdown pages, and files that are copied as they are."""
    for name, content in pages.made(ROOT).items():
        files.append(File.generated(config, name, content=content))
    return files


def on_post_build(config: Any) -> None:
    """The search index as a script: a page opened from a folder may not fetch JSON."""
    from luthier.data.html import for_script

    folder = Path(config.site_dir) / "search"
    found = json.loads((folder / "search_index.json").read_text(encoding="utf-8"))
    entries = [[d["location"], d["title"], " ".join(d["text"].split())] for d in found["docs"]]
    shutil.rmtree(folder)
    (Path(config.site_dir) / "js" / "index.js").write_text(
        f"window.PAGES = {for_script(entries)};\n", encoding="utf-8"
    )

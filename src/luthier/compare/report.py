"""The report: one HTML file that works offline, made of a static page, its data, and a small script.

Everything that data says is escaped. The content-security policy admits only the page's own script and
style, by their hashes.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from luthier.compare import sections
from luthier.compare.comparison import verdict
from luthier.compare.folder import write_text
from luthier.compare.view import view
from luthier.data.html import for_script, palette, policy, text


def write_report(results: Mapping[str, Any], folder: Path, path: Path) -> Path:
    """Replace `path` by the report of a comparison in `folder`."""
    write_text(path, page(dict(results), folder))
    return path


def page(results: dict[str, Any], folder: Path) -> str:
    """The whole file."""
    room = files("luthier.compare") / "page"
    names = ("report.html", "report.css", "charts.js", "report.js")
    template, style, *scripts = ((room / name).read_text(encoding="utf-8") for name in names)
    style = palette() + style
    script = '"use strict";\n' + "\n".join(scripts)
    label = f'<span class="badge">{text(results["labelled"])}</span>' if results["labelled"] else ""
    arms = sorted(results["arms"], key=lambda a: a["kind"] == "baseline")
    return Template(template).substitute(
        policy=policy(script, style),
        style=style,
        script=script,
        data=for_script(view(results, folder)),
        title=text(results["title"], 200),
        label=label,
        verdict=text(verdict(results), 1200),
        asked=sections.asked(results),
        tiles=sections.tiles(results),
        metric=text(sections.metric_name(results)),
        board=sections.board(results),
        failures=sections.failures(results),
        intervals=sections.intervals(results),
        cards="".join(sections.card(a, results) for a in arms),
        notes=sections.items(results["data"]["notes"]) or "<li>Nothing to report.</li>",
        data_facts=sections.facts(sections.data_facts(results)),
        machine=sections.facts(sections.machine_facts(results)),
        taste=sections.taste(results),
    )

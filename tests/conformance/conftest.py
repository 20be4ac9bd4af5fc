"""`pytest tests/conformance --publish` writes what was found to luthier/methods/conformance.json, which `make methods` counts."""

from __future__ import annotations

import json
from pathlib import Path

import luthier

FILE = Path(luthier.__file__).parent / "methods" / "conformance.json"


def pytest_addoption(parser):
    parser.addoption("--publish", action="store_true", help="store what the conformance suite found")


def pytest_configure(config):
    if config.getoption("--publish", default=False) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Publisher(), "conformance-publisher")


class Publisher:
    """Collects outcomes, of xdist's workers too. Cells that did not run keep what is stored; methods that are gone go."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str, str], str] = {}

    def pytest_runtest_logreport(self, report) -> None:
        said = dict(report.user_properties).get("conformance")
        if said is not None and (report.when == "call" or report.failed):
            method, architecture, name, reason = said
            outcome = "failed" if report.failed else reason or "passed"
            self.found[method, architecture, name] = outcome

    def pytest_sessionfinish(self) -> None:
        from tests.conformance.cells import ARCHITECTURES, parts
        from tests.conformance.properties import PROPERTIES

        held = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
        out = {
            m: {
                a: {
                    p: outcome
                    for p in PROPERTIES
                    if (outcome := self.found.get((m, a, p)) or held.get(m, {}).get(a, {}).get(p))
                }
                for a in ARCHITECTURES
            }
            for m in parts()
        }
        FILE.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")

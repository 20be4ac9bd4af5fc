"""Write constraints.txt: the exact versions, in this environment, of what pyproject.toml and the tests need.

    .venv/bin/python tools/pins.py

Local version labels (`+cpu`) are dropped, so that a pin matches the builds for CPUs and for GPUs.
"""

import importlib.metadata
import os
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HEADER = "# What the set-up installs, exactly. Written by tools/pins.py; pyproject.toml has the ranges.\n"
BUILD = "setuptools"


def closure(wanted: list[str]) -> dict[str, str]:
    """{distribution: version} of everything that `wanted` needs here, itself included."""
    found: dict[str, str] = {}
    queue = [Requirement(w) for w in wanted]
    seen: set[tuple[str, str]] = set()
    while queue:
        need = queue.pop()
        name = canonicalize_name(need.name)
        for extra in ["", *sorted(need.extras)]:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            distribution = importlib.metadata.distribution(name)
            found[name] = distribution.version.split("+")[0]
            for line in distribution.requires or []:
                child = Requirement(line)
                if child.marker is None or child.marker.evaluate({"extra": extra}):
                    queue.append(child)
    return found


def main() -> None:
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    pins = closure([*project["dependencies"], *extras["dev"], *extras["docs"], BUILD])
    with open(os.path.join(ROOT, "constraints.txt"), "w") as file:
        file.write(HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items())))


if __name__ == "__main__":
    main()

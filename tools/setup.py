"""Set up `.venv` for Luthier: the step behind `make run` and `make test`, with the standard library alone.

    python3.11 tools/setup.py [--index ADDRESS] [--venv FOLDER] [--gpu]

It refuses an old Python, asks pip (without downloading) what it would install, stops before GPU packages
reach a machine without a GPU, installs the pins of constraints.txt and this checkout, and does nothing if
nothing changed since.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST = (3, 11)
GPU_NAMES = re.compile(r"^(nvidia-.*|cuda-.*|triton|pytorch-triton.*)$")
LARGE_TORCH = 300
"""Megabytes: a torch wheel that is larger is one for GPUs (seen: 192 for CPUs, 527 for GPUs)."""


class SetupError(Exception):
    """One line that says what is wrong and what to do."""


def has_gpu() -> bool:
    return bool(shutil.which("nvidia-smi")) or any(n.startswith("nvidia") for n in _listdir("/dev"))


def _listdir(folder: str) -> "list[str]":
    try:
        return os.listdir(folder)
    except OSError:
        return []


def check_python(version: "tuple[int, ...]", path: str) -> None:
    """Raises SetupError if `version` is older than Luthier needs."""
    if tuple(version[:2]) < OLDEST:
        raise SetupError(
            f"Luthier needs Python {OLDEST[0]}.{OLDEST[1]} or newer; {path} is {version[0]}.{version[1]}. "
            "Install one and name it: make setup PYTHON=/path/to/python3.11"
        )


def gpu_package(line: str) -> str:
    """The GPU package that one line of pip's output is about to fetch, or ''.

    A torch wheel too large to be one for CPUs counts: an index that gives no metadata beforehand makes pip
    download the whole wheel before it names what that wheel requires.
    """
    found = re.match(r"\s*(?:Collecting|Would install|Downloading|Processing)\s+(.*)", line)
    if not found:
        return ""
    what = found[1]
    if re.match(r"\s*Would install", line):
        names = [re.sub(r"-[0-9][^-]*$", "", word) for word in what.split()]
    else:
        names = [re.split(r"[\s=<>!~;\[(]", what)[0]]
    for name in names:
        if GPU_NAMES.match(name.lower().replace("_", "-")):
            return name.lower().replace("_", "-")
    size = re.search(r"\btorch-[^\s/]*\.whl \(([0-9.]+) ([MG])B\)", what)
    if size and "cpu" not in what and float(size[1]) * (1000 if size[2] == "G" else 1) > LARGE_TORCH:
        return what.split("/")[-1]
    return ""


def index_arguments(index: str) -> "list[str]":
    """pip's arguments for INDEX: the address of an index, or a folder of wheels."""
    if not index:
        return []
    return ["--find-links", os.path.abspath(index)] if os.path.isdir(index) else ["--extra-index-url", index]


def requirements(root: str) -> "list[str]":
    """What pyproject.toml declares, the tools of the tests and of the site included."""
    import tomllib

    with open(os.path.join(root, "pyproject.toml"), "rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *extras["dev"], *extras.get("docs", [])]


def refuse_gpu_packages(pip: "list[str]", arguments: "list[str]") -> None:
    """Ask pip what it would install; stop it at the first GPU package, before a wheel. Raises SetupError."""
    for feature in (["--use-feature=fast-deps"], []):
        command = [*pip, "install", "--dry-run", "--progress-bar", "off", *feature, *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            name = gpu_package(line)
            if name:
                process.kill()
                process.wait()
                raise SetupError(
                    f"nothing was installed: pip would fetch GPU packages ({name}, ...; gigabytes), and this "
                    "machine has no GPU. Name an index or a folder that has torch for CPUs: "
                    "make setup INDEX=ADDRESS-OR-FOLDER (or install them all the same: make setup GPU=1)"
                )
        if process.wait() == 0:
            return
        if not (feature and "fast-deps" in "".join(lines[-5:])):
            sys.stderr.write("".join(lines[-15:]))
            raise SetupError(
                "pip cannot install what Luthier needs (its words are above). Is the package index reachable?"
            )


def digest(root: str, extra: "list[str]") -> str:
    """What the installed packages depend on, in one word."""
    text = hashlib.sha256("\0".join([sys.version, root, *extra]).encode())
    for name in ("pyproject.toml", "constraints.txt"):
        with open(os.path.join(root, name), "rb") as file:
            text.update(file.read())
    return text.hexdigest()


def executable(venv: str) -> str:
    return (
        os.path.join(venv, "Scripts", "python.exe")
        if os.name == "nt"
        else os.path.join(venv, "bin", "python")
    )


def make_venv(venv: str) -> "list[str]":
    """Create `venv`, and return the command that runs a pip that installs into it. Raises SetupError."""
    python = executable(venv)
    working = (
        os.path.exists(python)
        and subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0
    )
    if working:
        return [python, "-m", "pip"]
    try:
        import ensurepip  # noqa: F401
        import venv as _  # noqa: F401
    except ImportError:
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        raise SetupError(
            f"{sys.executable} cannot make virtual environments: its module ensurepip is not installed. "
            f"On Debian and Ubuntu: apt-get install {name}"
        ) from None
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", venv], capture_output=True, text=True)
    if made.returncode:
        words = (made.stderr or made.stdout).strip().splitlines()
        raise SetupError(
            f"cannot make a virtual environment in {venv}: {words[-1] if words else 'no reason given'}"
        )
    return [python, "-m", "pip"]


def set_up(root: str, venv: str, index: str = "", gpu: bool = False) -> bool:
    """Bring `venv` up to date; returns whether anything was done. Raises SetupError."""
    check_python(sys.version_info, sys.executable)
    stamp, now = os.path.join(venv, "luthier-setup"), digest(root, [os.path.abspath(venv)])
    if os.path.exists(executable(venv)) and os.path.exists(stamp):
        with open(stamp) as file:
            if file.read() == now:
                return False
    print(f"Setting up {os.path.relpath(venv, os.getcwd())} (a few minutes the first time)", flush=True)
    pip = make_venv(venv)
    chosen = [*index_arguments(index), "-c", os.path.join(root, "constraints.txt")]
    quiet = ["-qq", "--disable-pip-version-check"]
    if not (gpu or has_gpu()):
        print("  asking pip what it would install", flush=True)
        refuse_gpu_packages(pip, ["--disable-pip-version-check", *chosen, *requirements(root)])
    # The build tool is pinned too, so that building the editable package fetches nothing of its own choice.
    steps = [["setuptools"], ["--no-build-isolation", "-e", f"{root}[dev,docs]"]]
    print("  installing the pins of constraints.txt", flush=True)
    for step in steps:
        if subprocess.run([*pip, "install", *quiet, *chosen, *step]).returncode:
            raise SetupError(
                "pip could not install what Luthier needs (its words are above); run the same command again"
            )
    with open(stamp + ".new", "w") as file:
        file.write(now)
    os.replace(stamp + ".new", stamp)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up a virtual environment for Luthier.")
    parser.add_argument("--index", default="", help="an additional package index, or a folder of wheels")
    parser.add_argument("--venv", default=os.path.join(ROOT, ".venv"), help="where to (default: .venv)")
    parser.add_argument("--gpu", action="store_true", help="allow GPU packages on a machine without a GPU")
    chosen = parser.parse_args()
    try:
        set_up(ROOT, os.path.abspath(chosen.venv), chosen.index, chosen.gpu)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

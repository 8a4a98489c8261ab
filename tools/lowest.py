# SPDX-License-Identifier: Apache-2.0
"""Install the lowest versions that pyproject.toml declares, and run tests/smoke there.

Each Python gets an environment of its own below build/lowest: every `>=` of the requirements becomes `==`,
what those need themselves is as new as fits, and the wheel of this tree comes on top. The environment is kept
until a bound changes.

Some extras are left out. `torch`: the only build of torch that CI can install is one file of a newer release.
`ray`: it is a gigabyte. `dev` and `docs`: no user installs them, and constraints.txt pins them.

Example: python -m tools.lowest --python python3.11 --python python3.13
"""

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from tools.wheel import ROOT, build_sdist, build_wheel

BUILD: Final = ROOT / "build" / "lowest"
LEFT_OUT: Final = ("torch", "ray", "dev", "docs")
NEWEST: Final = "3.13"
"""The newest Python that every requirement has wheels for at its lowest version."""
_PIP: Final = ("-qq", "--disable-pip-version-check", "--no-input", "--root-user-action=ignore")


def lowest(requirement: str, python: str) -> str | None:
    """`name==version` of a requirement `name>=version`; None where its marker leaves this Python out.

    Raises
    ------
    ValueError
        The requirement declares no lower bound.
    """
    parsed = Requirement(requirement)
    if parsed.marker and not parsed.marker.evaluate({"python_version": python}):
        return None
    bounds = [part.version for part in parsed.specifier if part.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"pyproject.toml: {requirement!r} must declare one lower bound (>=)")
    return f"{parsed.name}=={bounds[0]}"


def requirements(python: str) -> list[str]:
    """What is installed for a `python` ("3.11"): the base and the extras that are not left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = list(project["dependencies"])
    for extra, needs in project["optional-dependencies"].items():
        declared += [] if extra in LEFT_OUT else needs
    return sorted({found for need in declared if (found := lowest(need, python)) is not None})


def version_of(python: str) -> str | None:
    """ "3.11", asked of the interpreter itself; None where there is none."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None  # pyenv has stand-ins that only fail


def find(version: str) -> str | None:
    """An interpreter of `version`: on PATH, or among pyenv's; None where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [f"python{version}", *(str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/python")))]
    return next((place for place in places if version_of(place) == version), None)


def run(*command: str | Path, folder: Path = ROOT) -> None:
    """Run a command to its end; CalledProcessError if it fails."""
    subprocess.run([str(part) for part in command], cwd=folder, check=True)


def environment(python: str, version: str) -> Path:
    """The interpreter of an environment with the lowest versions, made where it is missing or out of date."""
    folder = BUILD / version
    wanted = "\n".join([*requirements(version), _pinned("pytest")])
    stamp, own = folder / "requirements.txt", folder / "bin" / "python"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        run(python, "-m", "venv", "--clear", folder)
        listed = folder / "wanted.txt"
        listed.write_text(wanted, encoding="utf-8")
        run(own, "-m", "pip", "install", *_PIP, "--only-binary", ":all:", "-r", listed)
        listed.rename(stamp)  # last, so an install that broke off is done again
    return own


def _pinned(name: str) -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--python", action="append", help=f"default: this one, and {NEWEST} where it is found"
    )
    pythons = parser.parse_args(argv).python
    if not pythons:
        newest = find(NEWEST)
        if newest is None:
            print(f"no python{NEWEST} here, so it is not tested; name one with --python")
        pythons = [sys.executable, *([newest] if newest else [])]
    shutil.rmtree(BUILD / "wheel", ignore_errors=True)
    built = build_wheel(build_sdist(BUILD / "wheel"), BUILD / "wheel")
    started = []
    for python in pythons:
        version = version_of(python)
        if version is None:
            print(f"{python} is no Python that runs", file=sys.stderr)
            return 2
        own = environment(python, version)
        run(own, "-m", "pip", "install", *_PIP, "--no-deps", "--force-reinstall", built)
        run(own, "-m", "pip", "check", "--disable-pip-version-check")
        # -P, and no pythonpath: what is tested is the installed wheel, not the tree beside it.
        tests = ["-o", "pythonpath=", "--confcutdir", str(ROOT / "tests/smoke"), str(ROOT / "tests/smoke")]
        command = [str(own), "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        started.append((version, subprocess.Popen(command, cwd=BUILD, stdout=subprocess.PIPE, text=True)))
    failed = False
    for version, process in started:  # side by side: compiling kernels is most of the time, on one core each
        printed, _ = process.communicate()
        print(f"Python {version}: {' '.join(requirements(version))}\n{printed}", flush=True)
        failed |= process.returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Virtual environments for tests: made in a moment, with the packages of the tests' own and a module of their own."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MARKER = "venv_marker"


@dataclass(frozen=True, slots=True)
class Venv:
    """A virtual environment; `NAME` of its module `venv_marker` is `name`."""

    name: str
    directory: Path

    @property
    def python(self) -> str:
        return str(self.directory / "bin" / "python")

    @property
    def packages(self) -> Path:
        (found,) = self.directory.glob("lib/python*/site-packages")
        return found


def make_venv(directory: Path, *, name: str | None = None, with_prefect: bool = True) -> Venv:
    """A virtual environment that sees what the tests' interpreter sees, or nothing but its marker.

    It is called as its directory is, unless there is a `name`.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    venv = Venv(name=name or directory.name, directory=directory)
    (venv.packages / f"{MARKER}.py").write_text(f"NAME = {venv.name!r}\n")
    if with_prefect:
        shared = [entry for entry in sys.path if Path(entry).name in {"site-packages", "dist-packages"}]
        (venv.packages / "shared.pth").write_text("".join(f"{entry}\n" for entry in shared))
    return venv

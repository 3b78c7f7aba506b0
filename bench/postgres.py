"""A PostgreSQL cluster for a while, on loopback, from the programs that are installed here.

Owns finding the programs, and the command lines that make, start and ask a cluster. Does not own running them where the
caller looks after its processes itself (`bench.server`, and a test's own services).
"""

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# PostgreSQL refuses to run as root; Debian's package has this user.
_USER = "postgres"
_DEBIAN = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster in `place`, a directory that exists and is its alone, which the user `postgres` must be able to reach."""

    programs: Path
    place: Path
    port: int
    user: str
    password: str

    @property
    def argv(self) -> list[str]:
        """The server itself. What is written need not survive a loss of power: the cluster does not either."""
        return _as_user(
            [
                *(str(self.programs / "postgres"), "-D", str(self._data), "-k", str(self.place)),
                *("-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
            ]
        )

    @property
    def _data(self) -> Path:
        return self.place / "data"

    def make(self, environment: Mapping[str, str]) -> None:
        """Make its files. Raises subprocess.CalledProcessError."""
        secret = self.place / "password"
        secret.write_text(self.password)
        _give_away(self.place, secret)
        words = ("--pgdata", str(self._data), "--username", self.user, "--pwfile", str(secret))
        self._run(
            "initdb", *words, "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-sync", env=environment
        )

    def is_ready(self) -> bool:
        """Whether the server takes connections."""
        asked = [str(self.programs / "pg_isready"), "--host", "127.0.0.1", "--port", str(self.port)]
        return subprocess.run(asked, check=False, capture_output=True).returncode == 0

    def create(self, database: str, environment: Mapping[str, str]) -> None:
        """Create a database. Raises subprocess.CalledProcessError."""
        words = ("--host", "127.0.0.1", "--port", str(self.port), "--username", self.user, database)
        self._run("createdb", *words, env={**environment, "PGPASSWORD": self.password})

    def url(self, database: str) -> str:
        """What a Prefect server takes as the address of its database."""
        return f"postgresql+asyncpg://{self.user}:{self.password}@127.0.0.1:{self.port}/{database}"

    def _run(self, program: str, *words: str, env: Mapping[str, str]) -> None:
        command = _as_user([str(self.programs / program), *words])
        subprocess.run(
            command, env={**env, "LC_ALL": "C"}, cwd=self.place, check=True, capture_output=True, text=True
        )


def programs() -> Path | None:
    """The directory of the newest PostgreSQL's programs; None when there is none here."""
    if (found := shutil.which("postgres")) is not None:
        return Path(found).resolve().parent
    installed = [path for path in _DEBIAN.glob("*/bin") if (path / "postgres").exists()]
    return max(installed, key=lambda path: float(path.parent.name), default=None)


def version(directory: Path) -> str:
    """The version of the programs in this directory, such as 15.18."""
    said = subprocess.run(
        [str(directory / "postgres"), "--version"], check=True, capture_output=True, text=True
    ).stdout
    found = re.search(r"\d+(\.\d+)*", said)
    return found[0] if found else said.strip()


def _as_user(command: Sequence[str]) -> list[str]:
    if os.geteuid() != 0:
        return list(command)
    return ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups", *command]


def _give_away(*paths: Path) -> None:
    if os.geteuid() == 0:
        entry = pwd.getpwnam(_USER)
        for path in paths:
            os.chown(path, entry.pw_uid, entry.pw_gid)

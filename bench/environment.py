"""The environment of everything the benchmark starts: nothing of the user's own Prefect, headrace or proxies in it."""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

BIN = Path(sys.executable).parent
# Some shells forbid Python to keep its bytecode, and a checkout has none, other than what pip installs.
_FOREIGN = ("PREFECT_", "HEADRACE_", "GIT_", "PYTHONDONTWRITEBYTECODE")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


def environment(*, home: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process, scrubbed and at home in `home`, which is made if need be."""
    temporary = home / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(_FOREIGN) and name.upper() not in _PROXIES
    }
    own = {
        "PATH": os.pathsep.join([str(BIN), kept.get("PATH", os.defpath)]),
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "PREFECT_HOME": str(home / ".prefect"),
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    return kept | own | dict(extra)


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port

"""Where a daemon keeps what must outlive it: one directory per server, pool and worker name."""

import hashlib
import re
from pathlib import Path


def for_worker(root: Path, *, api_url: str, pool: str, name: str) -> Path:
    """The directory that holds the runs of this worker, made if need be, readable by its owner only.

    Raises OSError when it cannot be made.
    """
    identity = hashlib.sha256(f"{api_url}\0{pool}\0{name}".encode()).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60]
    directory = root.expanduser() / f"{readable}-{identity}" / "runs"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory.resolve()

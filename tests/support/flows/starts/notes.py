"""Writing facts down where the test finds them."""

import json
import uuid
from pathlib import Path
from typing import Any

from prefect import runtime


def note(out: str, kind: str, run: Any = None, **facts: object) -> None:
    """One fact file; written under another name first, so that a reader never sees half of it."""
    run = str(run or runtime.flow_run.id)
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{run}.{kind}.{uuid.uuid4().hex[:6]}.json"
    draft = target.with_suffix(".draft")
    draft.write_text(json.dumps({"run": run, "kind": kind, **facts}, default=str))
    draft.rename(target)

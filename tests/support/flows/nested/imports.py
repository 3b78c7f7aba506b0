"""A flow in a folder of its project that imports its neighbours early, late, and in processes it starts."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import neighbour as early_root
import nested_neighbour as early_neighbour
from prefect import flow, runtime

MODULES = ("neighbour", "nested_neighbour")


def importable(name: str) -> bool:
    sys.modules.pop(name, None)
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def importable_in_child(name: str, cwd: str) -> bool:
    child = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=cwd, capture_output=True)
    return child.returncode == 0


@flow
def imports(out: str) -> None:
    facts = {
        "run": str(runtime.flow_run.id),
        "kind": "seen",
        "early": [early_root.__name__, early_neighbour.__name__],
        "late": {name: importable(name) for name in MODULES},
        "child here": {name: importable_in_child(name, os.getcwd()) for name in MODULES},
        "child elsewhere": {name: importable_in_child(name, "/") for name in MODULES},
        "cwd": os.getcwd(),
        "sys.path": sys.path,
    }
    target = Path(out, f"{runtime.flow_run.id}.seen.json")
    target.with_suffix(".draft").write_text(json.dumps(facts))
    target.with_suffix(".draft").rename(Path(out, f"{runtime.flow_run.id}.seen.1.json"))

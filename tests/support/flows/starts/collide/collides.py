"""A flow whose modules have the names of other people's."""

import sys

EARLIER = {
    name: getattr(sys.modules.get(name), "__file__", None)
    for name in ("worker", "runs", "processes", "warmth", "control", "output", "forkserver", "yaml")
}

import json  # noqa: E402
import os  # noqa: E402

import control  # noqa: E402
import forkserver  # noqa: E402
import output  # noqa: E402
import processes  # noqa: E402
import runs  # noqa: E402
import warmth  # noqa: E402
import yaml  # noqa: E402
from prefect import flow, runtime  # noqa: E402

import worker  # noqa: E402

MODULES = (control, forkserver, output, processes, runs, warmth, worker, yaml)


@flow
def collides(out: str) -> str:
    target = os.path.join(out, f"{runtime.flow_run.id}.body")
    facts = {
        "earlier": EARLIER,
        "files": {module.__name__: module.__file__ for module in MODULES},
        "mine": {module.__name__: getattr(module, "MINE", None) for module in MODULES},
        "loads": yaml.safe_load("a: 1"),
        "path": sys.path,
        "cwd": os.getcwd(),
    }
    with open(target + ".draft", "w") as file:
        json.dump(facts, file)
    os.rename(target + ".draft", target + ".1.json")
    return "done"

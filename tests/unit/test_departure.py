"""How a forked process ends: what the flow has made is finalized, what was there before the fork is left alone."""

import subprocess
import sys
from pathlib import Path

OWN = Path(__file__).parents[2] / "worker" / "processes" / "forkserver_main"

# `shared` stands for a module of Prefect, `mine` for one of the flow's; each holds something that tells of its end.
HOST = """
import gc, os, sys, types
sys.path.insert(0, sys.argv[1])
from departure import Departure
sys.path.pop(0)
departure = Departure()
import atexit, threading

class Told:
    def __init__(self, what, write=os.write):
        self.what, self.write = what, write
    def __del__(self):
        self.write(1, f"{self.what} is finalized\\n".encode())

def module(name, **content):
    made = sys.modules[name] = types.ModuleType(name)
    made.__dict__.update(content)
    return made

module("shared", held=Told("what the shared module holds"), cache=[])
departure.keep()
module("preloaded", held=Told("what the user's module of before the fork holds"))
gc.collect()
gc.freeze()
pid = os.fork()
if pid:
    sys.stdout.flush()
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
file = open(sys.argv[2], "w")
file.write("written out")
module("mine", held=Told("what the flow holds"), file=file)
import shared
shared.cache.append([open(sys.argv[2] + ".binary", "wb"), open(sys.argv[2] + ".closed", "w")])
shared.cache[0][0].write(b"by whoever keeps it")
shared.cache[0][1].close()

class Imports:
    def __init__(self):
        self.itself = self
    def __del__(self):
        import shared
        print("a finalizer finds the shared module", "as it was" if shared is was else "made anew")

was = shared
Imports()
del file, shared
atexit.register(lambda: print("at exit, the shared module", "is there" if sys.modules.get("shared") is was else "is gone"))
threading.Thread(target=lambda: print("a thread has ended")).start()
sys.exit(3)
"""


def test_only_what_was_there_before_the_fork_is_left_alone(tmp_path: Path) -> None:
    written = tmp_path / "written"
    done = subprocess.run(
        [sys.executable, "-I", "-c", HOST, str(OWN), str(written)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 3
    assert done.stdout.splitlines() == [
        "a thread has ended",
        "at exit, the shared module is there",
        "a finalizer finds the shared module as it was",
        "what the user's module of before the fork holds is finalized",
        "what the flow holds is finalized",
    ]
    assert written.read_text() == "written out"
    assert (tmp_path / "written.binary").read_text() == "by whoever keeps it"

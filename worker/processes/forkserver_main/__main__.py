"""The fork server: a process that has imported Prefect once, and forks one flow process per request.

Run by path with the interpreter of the flows, as `python forkserver_main 0`, with a unix socket as descriptor 0. It
belongs to no package: only the standard library and what `warmth` imports is here, and nothing of it is left in a flow's
`sys.modules`. Owns: the conversation with the daemon (`worker.processes.forkserver`), forking, and making the forked
process look like a fresh `python -m prefect.engine`. Does not own: what is imported and brought up to date (`warmth`), and
what the process table shows of it (`portrait`).

The conversation. On descriptor 0 the daemon sends one line of JSON, `{"preload": [...]}`; the answer is a line, either
`{"ready": ...}` or `{"failed": "a sentence"}`. Each request is then one byte with two descriptors (SCM_RIGHTS, unix(7)): a
stream of its own, and the run's output file. On that stream the daemon sends a line with the run's directory, its whole
environment and its mark; it gets one line back, `{"ready": pid}`, `{"refused": "a sentence"}`, `{"stale": "a sentence"}`
or `{"failed": errno, "step": ...}`; and says `g` for go. End of file instead of that byte means that the daemon is gone
or wants it no more: the process ends without having done anything. End of file on descriptor 0 ends the fork server.

The flow process is forked twice and so becomes the child of the daemon, which is a child subreaper (prctl(2)): its exit
status does not depend on this process being alive.
"""

from __future__ import annotations

import array
import io
import json
import os
import runpy
import select
import socket
import sys
import time
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from portrait import Portrait
    from warmth import Warmth

GO = b"g"
ENGINE = "prefect.engine"
_PARENT_PAUSE = 0.0005


def take_socket() -> socket.socket:
    """The daemon's socket, moved away from descriptor 0, which is /dev/null from now on, as a flow's is."""
    connection = socket.socket(fileno=os.dup(0))
    os.set_inheritable(connection.fileno(), False)
    null = os.open(os.devnull, os.O_RDWR)  # as `subprocess.DEVNULL` opens it
    os.dup2(null, 0)
    os.close(null)
    # The interpreter looked at what 0 was when it made this; a fresh one would have seen /dev/null.
    old = sys.stdin
    fresh = io.TextIOWrapper(
        open(0, "rb", closefd=False),  # noqa: SIM115 - the standard input
        encoding=old.encoding,
        errors=old.errors,
        newline="\n",
        write_through=old.write_through,  # type: ignore[attr-defined]
    )
    fresh.buffer.raw.name = "<stdin>"  # type: ignore[attr-defined]
    fresh.mode = "r"  # type: ignore[attr-defined]
    sys.stdin = sys.__stdin__ = fresh  # type: ignore[misc]
    return connection


def receive_line(connection: socket.socket) -> dict[str, Any] | None:
    """One JSON object; None when the daemon is gone."""
    parts: list[bytes] = []
    while not parts or not parts[-1].endswith(b"\n"):
        part = connection.recv(1 << 20)
        if not part:
            return None
        parts.append(part)
    return json.loads(b"".join(parts))


def answer(connection: socket.socket, **content: Any) -> None:
    """One JSON object to the daemon; that it is gone is noticed where the next thing is awaited from it."""
    try:
        connection.sendall(json.dumps(content).encode() + b"\n")
    except OSError:
        return


def receive_request(control: socket.socket) -> tuple[socket.socket, int] | None:
    """A run's own stream and output file; None when the daemon is gone."""
    while True:
        size = 2 * array.array("i").itemsize
        try:
            data, ancillary, _, _ = control.recvmsg(1, socket.CMSG_SPACE(size))
        except ConnectionError:
            return None
        if not data:
            return None
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if len(descriptors) == 2:  # noqa: PLR2004 - a stream and a file
            return socket.socket(fileno=descriptors[0]), descriptors[1]
        # No descriptor was left for one of them: the daemon sees its stream closed.
        for descriptor in descriptors:
            os.close(descriptor)


class FlowProcess:
    """A process forked for one run, from its first moment to the engine's first line."""

    def __init__(self, *, request: dict[str, Any], stream: socket.socket, output: int, parent: int) -> None:
        self.request = request
        self.stream = stream
        self.output = output
        self.parent = parent

    def become(self, portrait: Portrait, warmth: Warmth) -> None:
        """Take on the run's identity, and wait for the word. Whatever goes wrong before that is told, and nothing done."""
        try:
            self._take_shape()
        except OSError as error:
            self._give_up(failed=error.errno, step="shape")
        try:
            os.chdir(self.request["directory"])
        except OSError as error:
            self._give_up(failed=error.errno, step="directory")
        except ValueError as error:
            self._give_up(refused=f"its directory cannot be entered: {error}")
        try:
            warmth.enter(env=self.request["environment"])
        except Exception as error:  # noqa: BLE001 - a cold start will say it to the run's owner
            self._give_up(refused=f"it could not be prepared: {type(error).__name__}: {error}")
        # Last of all: who is found by the mark has nothing more to do than to wait for the word, or to end for want of it;
        # meanwhile it gets ready, which nobody can see.
        try:
            portrait.repaint(*self.request["mark"])
        except (OSError, ValueError) as error:
            self._give_up(refused=f"it could not be marked: {error}")
        answer(self.stream, ready=os.getpid())
        warmth.copy_pages(until=self._is_told)
        try:
            word = self.stream.recv(1)
        except OSError:
            word = b""
        if word != GO:
            os._exit(0)
        self.stream.close()

    def _is_told(self) -> bool:
        """Whether the word is there, or is not to come."""
        return bool(select.select([self.stream], [], [], 0)[0])

    def _take_shape(self) -> None:
        os.setsid()
        os.dup2(self.output, 1)
        os.dup2(self.output, 2)
        os.close(self.output)
        while os.getppid() == self.parent:  # about to end; then the daemon is told of its child
            time.sleep(_PARENT_PAUSE)

    def _give_up(self, **content: Any) -> NoReturn:
        answer(self.stream, pid=os.getpid(), **content)
        os._exit(0)


def serve(control: socket.socket, portrait: Portrait, warmth: Warmth) -> FlowProcess | None:
    """Fork one process per request until the daemon is gone: None then, and in each forked process what it is."""
    while True:
        received = receive_request(control)
        if received is None:
            return None
        stream, output = received
        forked = handle(stream, output, warmth)
        if forked is not None:
            control.close()
            forked.become(portrait, warmth)
            return forked
        stream.close()
        os.close(output)


def handle(stream: socket.socket, output: int, warmth: Warmth) -> FlowProcess | None:
    """Answer one request, or fork; the flow process where this returns in it."""
    try:
        request = receive_line(stream)
    except OSError:
        request = None
    if request is None:
        return None
    stale = warmth.stale()
    if stale is not None:
        answer(stream, stale=stale)
        return None
    try:
        refusal = warmth.refusal(directory=request["directory"], env=request["environment"])
    except Exception as error:  # noqa: BLE001 - one run's peculiarities do not end the fork server
        refusal = f"it cannot be judged: {type(error).__name__}: {error}"
    if refusal is not None:
        answer(stream, refused=refusal)
        return None
    try:
        between = os.fork()
    except OSError as error:
        answer(stream, failed=error.errno, step="fork")
        return None
    if between:
        os.waitpid(between, 0)
        return None
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError as error:
        answer(stream, failed=error.errno, step="fork")
        os._exit(0)
    if child:
        os._exit(0)
    return FlowProcess(request=request, stream=stream, output=output, parent=parent)


def prepare(control: socket.socket, own: str) -> tuple[Portrait, Warmth] | None:
    """Do what is done once, and tell the daemon how it went; None when it is of no use to go on."""
    configuration = receive_line(control)
    if configuration is None:
        return None
    sys.path.insert(0, own)
    from departure import Departure  # noqa: PLC0415 - found only here

    departure = Departure()
    from portrait import Portrait  # noqa: PLC0415 - same
    from warmth import PreloadError, Warmth  # noqa: PLC0415 - same

    sys.path.remove(own)
    try:
        portrait = Portrait()
        portrait.check(os.fsencode("=".join(configuration["mark"])) + b"\0")
        warmth = Warmth(preload=configuration["preload"], departure=departure)
    except PreloadError as error:
        answer(control, failed=str(error), lasting=True)
        return None
    except Exception as error:  # noqa: BLE001 - the daemon says it, with what it means
        answer(control, failed=f"{type(error).__name__}: {error}", lasting=False)
        return None
    answer(control, ready=os.getpid())
    return portrait, warmth


def own_modules(own: str) -> list[str]:
    """The names of the modules that are found only here, looked up before the fork.

    Looking at a module writes to the memory it is in, by counting references: a forked process would get a copy of all
    pages that modules are in, a third of what it copies until a flow begins.
    """
    files = [(name, getattr(module, "__file__", None)) for name, module in list(sys.modules.items())]
    return [
        name
        for name, file in files
        if name != "__main__" and isinstance(file, str) and os.path.dirname(file) == own
    ]


def forget(own: str, modules: list[str]) -> None:
    """Leave no module of ours where a user's module of that name would be found."""
    for name in modules:
        sys.modules.pop(name, None)
    sys.path_importer_cache.pop(own, None)


def run_engine() -> None:
    """Run the engine as `python -m prefect.engine` does, to its end."""
    sys.orig_argv = [sys.orig_argv[0], "-m", ENGINE]
    sys.argv = ["-m"]
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, os.getcwd())
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.modules["__main__"].__dict__["__builtins__"] = __builtins__
    if "multiprocessing" in sys.modules:
        sys.modules["__mp_main__"] = sys.modules["__main__"]  # as importing it does
    runpy._run_module_as_main(ENGINE)  # type: ignore[attr-defined]  # noqa: SLF001 - what `-m` itself calls


def main() -> None:
    """Serve the daemon; in a forked process, run the flow."""
    own = os.path.abspath(sys.path.pop(0))
    os.chdir("/")
    control = take_socket()
    prepared = prepare(control, own)
    modules = own_modules(own)
    if prepared is None or serve(control, *prepared) is None:
        return
    forget(own, modules)
    run_engine()


if __name__ == "__main__":
    main()

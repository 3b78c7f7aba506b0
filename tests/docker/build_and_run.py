"""Build the image with buildah and show what docs/docker.md promises of it, without a container engine.

Needs root, buildah and `unshare`; no image registry, when the base is a directory made by debootstrap. A container is
stood in for by a PID and mount namespace with the image as its root, so that the daemon really is PID 1. Not a pytest
module: it takes minutes and changes a container storage.
"""

import argparse
import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.docs import Page

Found = TypeVar("Found")

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE = "localhost/headrace"
BASE = "localhost/headrace-base:check"
HOME = "/var/lib/headrace"
LIMIT = 120.0
POOL = "my-pool"

FLOW = """\
import subprocess, time
from prefect import flow

@flow(log_prints=True)
def container_flow(seconds: float = 0) -> None:
    # Both lose their parent at once: one ends by itself during the run, the other only when it is made to.
    subprocess.run(["sh", "-c", "setsid sleep 1 & setsid sleep 600 &"], check=True)
    time.sleep(seconds)
    print("done")

if __name__ == "__main__":
    source = container_flow.from_source(source=".", entrypoint="container_flow.py:container_flow")
    source.deploy(name="check", work_pool_name="my-pool", print_next_steps=False)
"""


@dataclass(frozen=True, slots=True)
class Buildah:
    """The buildah command with its storage."""

    storage: Path

    def __call__(self, *argv: str) -> str:
        """Run it; what it printed. Its messages go to this script's standard error."""
        options = ["--storage-driver", "vfs", "--root", str(self.storage / "root")]
        command = ["buildah", *options, "--runroot", str(self.storage / "run"), *argv]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    def import_directory(self, rootfs: Path) -> None:
        """Make the base image from a root file system."""
        container = self("from", "scratch")
        try:
            subprocess.run(["cp", "-a", f"{rootfs}/.", self("mount", container)], check=True)
            self("commit", "--quiet", container, BASE)
        finally:
            self("rm", container)

    def build(self, arguments: argparse.Namespace) -> None:
        """Build the image with each command of the page; `docker` is the format that has health checks."""
        given = {"pip_conf": arguments.pip_conf, "pip_ca": arguments.pip_ca}
        secrets = [f"--secret=id={name},src={path}" for name, path in given.items() if path is not None]
        base = ["--isolation", "chroot", "--format", "docker", "--build-arg", f"BASE_IMAGE={arguments.base}"]
        for words in typed("docker", "build"):
            print("$", shlex.join(words))
            # The page's secrets are files of its reader's.
            rest = [word for word in words[2:] if word != "--secret" and not word.startswith("id=")]
            assert rest.pop() == "."
            print(self("bud", *base, *secrets, *rest, str(REPOSITORY))[-200:])

    @contextmanager
    def mounted(self) -> Generator[Path]:
        """A container's root file system, for as long as the context lasts."""
        container = self("from", IMAGE)
        try:
            yield Path(self("mount", container))
        finally:
            self("rm", container)


@dataclass(frozen=True, slots=True)
class Container:
    """The image's configuration, and a root file system to run it in."""

    root: Path
    config: dict[str, Any]

    def start(
        self, *argv: str, environment: Mapping[str, str] = MappingProxyType({}), log: Path | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start a program as PID 1 of a new PID namespace, as the image's user; the network is the host's.

        What it writes to standard error goes into `log`, if there is one.
        """
        variables = [
            *self.config["Env"],
            f"HOME={HOME}",
            *(f"{name}={value}" for name, value in environment.items()),
        ]
        unshare = ["unshare", "--pid", "--fork", f"--mount-proc={self.root / 'proc'}"]
        chroot = ["chroot", f"--userspec={self.config['User']}", str(self.root)]
        inside = ["sh", "-c", f"cd {HOME} && exec {shlex.join(argv)}"]
        with log.open("ab") if log is not None else nullcontext() as stderr:
            return subprocess.Popen(
                [*unshare, *chroot, "env", "-i", *variables, *inside], stdin=subprocess.DEVNULL, stderr=stderr
            )

    def run(self, *argv: str, environment: Mapping[str, str] = MappingProxyType({})) -> int:
        """Run a program to its end; its exit code."""
        return self.start(*argv, environment=environment).wait(LIMIT)


def typed(*beginning: str) -> list[list[str]]:
    """The commands of docs/docker.md that begin so."""
    page = Page(REPOSITORY / "docs/docker.md")
    return [words for words in page.commands() if words[: len(beginning)] == list(beginning)]


def main() -> None:
    """Entry point; any failure is an exception."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", default=BASE, help="base image, in the storage or on a registry")
    parser.add_argument("--base-rootfs", type=Path, help="directory to import as the base image first")
    parser.add_argument("--storage", type=Path, help="buildah storage to use and keep (default: temporary)")
    parser.add_argument("--pip-conf", type=Path, help="pip configuration for the build")
    parser.add_argument("--pip-ca", type=Path, help="certificates, seen by the build as /run/secrets/pip_ca")
    arguments = parser.parse_args()
    storage: Path = arguments.storage or Path(tempfile.mkdtemp(prefix="headrace-image-"))
    buildah = Buildah(storage)
    try:
        if arguments.base_rootfs is not None:
            buildah.import_directory(arguments.base_rootfs)
        buildah.build(arguments)
        config = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]
        print(buildah("images"))
        with buildah.mounted() as root:
            check(Container(root, config))
    finally:
        if arguments.storage is None:
            shutil.rmtree(storage)
    print("\nThe image is as docs/docker.md says.")


def check(container: Container) -> None:
    """Everything that docs/docker.md promises, in order."""
    expect(
        "the image has an unprivileged user", holds=container.config["User"] not in {"", "0", "root", "0:0"}
    )
    expect("the stop signal is SIGTERM", holds=container.config["StopSignal"] == "SIGTERM")
    expect("the entry point is in exec form", holds=container.config["Entrypoint"] == ["headrace"])
    expect("APT_PACKAGES are there", holds=container.run("git", "--version") == 0)
    expect("headrace --version runs", holds=container.run("headrace", "--version") == 0)
    expect(
        "the user is not root",
        holds=container.run("python", "-c", "import os, sys; sys.exit(os.getuid() == 0)") == 0,
    )
    stale = "python -v -c 'import prefect.flow_engine, worker.cli' 2>&1 | grep 'bytecode is stale'"
    expect("nothing is compiled anew at every start", holds=container.run("sh", "-c", stale) == 1)

    port, health_port = free_port(), free_port()
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        "PREFECT_API_URL": api,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_WORKER_WEBSERVER_PORT": str(health_port),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    probe = container.config["Healthcheck"]["Test"]
    expect("the health check is in exec form", holds=probe[0] == "CMD")
    (container.root / HOME.strip("/") / "container_flow.py").write_text(FLOW)

    server_argv = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    with (
        httpx.Client(base_url=api, timeout=30, trust_env=False) as http,
        killed_afterwards(container.start(*server_argv, environment=environment)),
    ):
        wait_until("the server answers", lambda: answers(http))
        expect(
            "the health check fails without a daemon",
            holds=container.run(*probe[1:], environment=environment) != 0,
        )
        (run,) = typed("docker", "run")
        options, argv = run[: run.index("headrace")], run[run.index("headrace") + 1 :]
        told = dict(option.split("=", 1) for flag, option in pairwise(options) if flag == "-e")
        expect("`docker run` gives the server's address", holds=told.keys() == {"PREFECT_API_URL"})
        expect("and the pool", holds=argv[argv.index("--pool") + 1] == POOL)
        daemon_argv = (*container.config["Entrypoint"], *argv)
        log = container.root / "daemon.log"
        with killed_afterwards(container.start(*daemon_argv, log=log, environment=environment)) as unshare:
            daemon = wait_until("the daemon runs", lambda: headrace_under(unshare.pid))
            expect("the daemon is PID 1", holds=pid_inside(daemon) == 1)
            expect(
                "and not root", holds=daemon.uids().real == int(container.config["User"].partition(":")[0])
            )
            wait_until("the daemon is online", lambda: is_online(http))
            expect("the health check succeeds", holds=container.run(*probe[1:], environment=environment) == 0)
            expect(
                "the flow is deployed",
                holds=container.run("python", "container_flow.py", environment=environment) == 0,
            )
            check_orphans(http, daemon)
            expect(
                "it was started warm",
                holds=[one["start_method"] for one in told_of(log, "launched")] == ["warm"],
            )
            lost = create_run(http, seconds=600)
            wait_until("a flow is running", lambda: state_of(http, lost) == "RUNNING")
        check_state(container)
        with killed_afterwards(container.start(*daemon_argv, log=log, environment=environment)) as unshare:
            daemon = wait_until("the next container's daemon runs", lambda: headrace_under(unshare.pid))
            wait_until(
                "the run that ended with the last container is Crashed",
                lambda: state_of(http, lost) == "CRASHED",
            )
            check_drain(http, daemon, unshare)


def told_of(log: Path, event: str) -> list[dict[str, Any]]:
    """The daemon's events of this name about flow runs."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == f"flow_run.{event}"]


def check_state(container: Container) -> None:
    """The journal is where the volume is to be, and nobody else's to read."""
    (setting,) = (one for one in container.config["Env"] if one.startswith("HEADRACE_STATE_DIR="))
    directory = container.root / setting.partition("=")[2].strip("/")
    (journal,) = directory.glob("*/journal.db")
    expect("the journal is in the state directory", holds=journal.stat().st_size > 0)
    expect("which only its user can read", holds=directory.stat().st_mode & 0o077 == 0)


def check_orphans(http: httpx.Client, daemon: psutil.Process) -> None:
    """A flow's orphans become the daemon's children, end with the run, and leave no zombie."""
    run_id = create_run(http, seconds=20)
    wait_until("both orphans are the daemon's own", lambda: len(sleepers(daemon)) == 2)
    wait_until("the one that ends by itself is reaped", lambda: len(sleepers(daemon)) == 1)
    expect("and the flow still runs", holds=state_of(http, run_id) == "RUNNING")
    wait_until("a flow run is Completed", lambda: state_of(http, run_id) == "COMPLETED")
    wait_until("nothing is left of the run, not even a zombie", lambda: not flows_of(daemon))


def check_drain(http: httpx.Client, daemon: psutil.Process, unshare: "subprocess.Popen[bytes]") -> None:
    """SIGTERM reaches PID 1, lets the running flow finish, and ends in exit code 0."""
    run_id = create_run(http, seconds=5)
    wait_until("a flow is running", lambda: state_of(http, run_id) == "RUNNING")
    daemon.send_signal(signal.SIGTERM)
    expect("the daemon ends with exit code 0", holds=unshare.wait(LIMIT) == 0)
    expect("the running flow was finished first", holds=state_of(http, run_id) == "COMPLETED")


@contextmanager
def killed_afterwards(process: "subprocess.Popen[bytes]") -> Generator["subprocess.Popen[bytes]"]:
    """Lend a namespace's process; at the end it and everything in the namespace are gone."""
    try:
        yield process
    finally:
        # The namespace ends with its PID 1. `--kill-child` would not do: a change of user clears what it sets.
        with suppress(psutil.NoSuchProcess):
            for init in psutil.Process(process.pid).children():
                init.kill()
        process.wait(LIMIT)


def create_run(http: httpx.Client, *, seconds: float) -> str:
    """A flow run that takes this long; its id."""
    deployment = http.get("/deployments/name/container-flow/check").raise_for_status().json()["id"]
    body = {"parameters": {"seconds": seconds}, "state": {"type": "SCHEDULED"}}
    path = f"/deployments/{deployment}/create_flow_run"
    response = http.post(path, json=body)
    while response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        # A server on SQLite says so while another writer has the database.
        time.sleep(0.25)
        response = http.post(path, json=body)
    return str(response.raise_for_status().json()["id"])


def state_of(http: httpx.Client, run_id: str) -> str:
    """The type of a run's state."""
    return str(http.get(f"/flow_runs/{run_id}").raise_for_status().json()["state_type"])


def answers(http: httpx.Client) -> bool:
    """Whether the server does."""
    try:
        return http.get("/health").is_success
    except httpx.TransportError:
        return False


def is_online(http: httpx.Client) -> bool:
    """Whether the pool has a worker."""
    response = http.post(f"/work_pools/{POOL}/workers/filter", json={})
    return response.is_success and any(worker["status"] == "ONLINE" for worker in response.json())


def headrace_under(unshare_pid: int) -> psutil.Process | None:
    """The process that `unshare` forked, once it has become the daemon."""
    for child in psutil.Process(unshare_pid).children():
        # Before it, the command that changes root and user names the same path among its arguments.
        if any(part.endswith("/headrace") for part in child.cmdline()[1:2]):
            return child
    return None


def pid_inside(process: psutil.Process) -> int:
    """Its PID in the innermost PID namespace."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[-1]) for line in status.splitlines() if line.startswith("NSpid:"))


def sleepers(daemon: psutil.Process) -> list[psutil.Process]:
    """The flow's orphans, dead or alive, that the daemon is the parent of."""
    found: list[psutil.Process] = []
    for child in daemon.children():
        with suppress(psutil.NoSuchProcess):
            if child.name() == "sleep":
                found.append(child)
    return found


def flows_of(daemon: psutil.Process) -> list[psutil.Process]:
    """The daemon's descendants but for its fork server, dead or alive."""
    found: list[psutil.Process] = []
    for child in daemon.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE or "forkserver_main" not in child.cmdline():
                found.append(child)
    return found


def expect(what: str, *, holds: bool) -> None:
    """Say that something holds, or end."""
    print(f"{'ok  ' if holds else 'FAIL'} {what}", flush=True)
    if not holds:
        sys.exit(1)


def wait_until(what: str, condition: Callable[[], Found | None]) -> Found:
    """Say when something holds, and give it; end when it takes too long."""
    deadline = time.monotonic() + LIMIT
    while not (found := condition()):
        if time.monotonic() > deadline:
            expect(what, holds=False)
        time.sleep(0.05)
    expect(what, holds=True)
    return found


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    main()

"""Install the daemon under a real systemd as docs/operating-service.md says, and show what the unit promises.

Needs root, systemd-nspawn and a root file system with systemd in it, which is left as it was; no container engine and no
virtual machine. The network is the host's, so the Prefect server runs outside. Not a pytest module: it takes minutes and
boots a system.
"""

import argparse
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.api import PrefectApi
from tests.support.docs import ROOT, Page
from tests.support.server import PrefectServer, running_server
from tests.support.services import Service, spawn
from tests.support.wait import wait_for

POOL = "my-pool"
UNIT = f"headrace@{POOL}"
CHECKOUT = "/checkout"
OUT = "/var/lib/headrace/out"
FLOWS = {"prefect.deployments.steps.set_working_directory": {"directory": f"{CHECKOUT}/tests/support/flows"}}
# So short that it shows: without the daemon's own words to systemd, a drain would be cut off and a hang be missed.
IMPATIENT = "[Service]\nTimeoutStopSec=5\nWatchdogSec=5\nRestartSec=1\n"
INSTALL_TIMEOUT = 400.0


@dataclass(frozen=True, slots=True)
class Machine:
    """A booted system."""

    init: int

    def type(self, line: str, *, check: bool = True) -> str:
        """Type a line in a root shell in the checkout there; what it printed."""
        enter = ["nsenter", "--target", str(self.init), "--mount", "--uts", "--ipc", "--pid", "--cgroup"]
        done = subprocess.run(
            [
                *enter,
                "env",
                "-i",
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/root",
                "bash",
                "-c",
                f"cd {CHECKOUT} && {line}",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{line}: exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.journal()}"
            )
        return done.stdout.strip()

    def show(self, name: str, unit: str = UNIT) -> str:
        """A property of the unit, as systemd tells it."""
        return self.type(f"systemctl show --value --property {name} {unit}")

    def journal(self) -> str:
        """What the unit wrote, systemd's lines about it included."""
        return self.type(f"journalctl --no-pager -o cat -u {UNIT} | tail -n 40", check=False)

    def wait_for(self, name: str, value: str, unit: str = UNIT, *, timeout: float = 60.0) -> None:
        """Wait until a property of the unit matches a pattern."""
        wait_for(
            lambda: re.fullmatch(value, self.show(name, unit)) is not None,
            timeout=timeout,
            interval=0.2,
            description=lambda: f"{name} {value!r} of {unit}: {self.show(name, unit)!r}\n{self.journal()}",
        )


def main() -> None:
    """Entry point; any failure is an exception."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--rootfs",
        type=Path,
        required=True,
        help="a root file system with systemd, sudo, python3-venv and jq",
    )
    parser.add_argument("--pip-conf", type=Path, help="pip configuration for the installation")
    parser.add_argument("--pip-ca", type=Path, help="certificates, seen there as /run/secrets/pip_ca")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="headrace-systemd-"))
    mark = uuid.uuid4().hex
    try:
        with (
            running_server(directory / "server", mark=mark) as server,
            server.api() as api,
            booted(arguments, directory) as machine,
        ):
            print(machine.type("systemctl --version | head -n 1"))
            install(machine, server)
            check(machine, api)
    except BaseException:
        print(
            (directory / "console").read_text(errors="replace")[-3000:]
            if (directory / "console").exists()
            else ""
        )
        raise
    finally:
        shutil.rmtree(directory)
    print("\nThe unit is as docs/operating-service.md says.")


@contextmanager
def booted(arguments: argparse.Namespace, directory: Path) -> Generator[Machine]:
    """Boot the system, with this checkout in it, and power it off at the end. What it writes is kept in memory."""
    binds = [f"--bind-ro={ROOT}:{CHECKOUT}"]
    for path, place in ((arguments.pip_conf, "/etc/pip.conf"), (arguments.pip_ca, "/run/secrets/pip_ca")):
        if path is not None:
            binds.append(f"--bind-ro={path.resolve()}:{place}")
    service: Service = spawn(
        [
            *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot", "--volatile=overlay"),
            *(
                f"--directory={arguments.rootfs}",
                f"--machine=headrace-{uuid.uuid4().hex[:8]}",
                "--console=pipe",
                *binds,
            ),
        ],
        name="systemd",
        role="systemd",
        directory=directory,
        environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "0"},
    )
    try:
        children = Path(f"/proc/{service.pid}/task/{service.pid}/children")
        machine = Machine(
            wait_for(lambda: int((children.read_text().split() or ["0"])[0]), description="an init")
        )
        wait_for(
            lambda: machine.type("systemctl is-system-running", check=False) in {"running", "degraded"},
            interval=0.5,
            description=lambda: f"a system that has booted\n{service.transcript()}",
        )
        yield machine
    finally:
        # What systemd calls a wish to halt.
        service.signal(signal.SIGTERM)
        service.wait_exit()
        service.end()


def install(machine: Machine, server: PrefectServer) -> None:
    """Type what the page has under "systemd", line by line; only the server's address is another."""
    page = Page(ROOT / "docs" / "operating-service.md").text.partition("\n## systemd\n")[2]
    (block,) = re.findall(r"```sh\n(.*?)```", page.partition("\n## ")[0], re.DOTALL)
    for line in block.splitlines():
        print(f"$ {line}")
        machine.type(line.replace("http://127.0.0.1:4200/api", server.api_url))


def check(machine: Machine, api: PrefectApi) -> None:
    """Everything the page says of the unit, in order."""
    print("status:", machine.show("StatusText"))
    expect(
        "`systemctl enable --now` returns when the daemon serves",
        holds=machine.show("ActiveState") == "active",
    )
    expect("and the server has it online", holds=[one["status"] for one in api.workers(POOL)] == ["ONLINE"])
    expect("it is not root", holds=machine.type(f"stat -c %U /proc/{machine.show('MainPID')}") == "headrace")
    machine.type(f"install -d -o headrace {OUT}")
    deployment = api.create_deployment(
        pool=POOL, entrypoint="probe.py:waits_for_file", pull_steps=[FLOWS], parameters={"out": OUT}
    )

    machine.type("mkdir -p /etc/systemd/system/headrace@.service.d")
    machine.type(
        f"printf %s {shlex.quote(IMPATIENT)} > /etc/systemd/system/headrace@.service.d/impatient.conf"
    )
    machine.type(f"systemctl daemon-reload && systemctl restart {UNIT}")

    run, gate = waiting(machine, api, deployment)
    machine.wait_for("StatusText", "Serving work pool .* 1 run in flight.*")
    machine.type(f"systemctl stop --no-block {UNIT}")
    machine.wait_for("StatusText", "Draining work pool .* 1 run in flight.*")
    # Longer than TimeoutStopSec, on the clock of systemd.
    machine.type("sleep 12")
    expect("a drain outlasts TimeoutStopSec", holds=machine.show("ActiveState") == "deactivating")
    expect("and its flow runs on", holds=api.flow_run(run)["state_type"] == "RUNNING")
    machine.type(f"touch {gate}")
    machine.wait_for("ActiveState", "inactive")
    expect("it ends well", holds=machine.show("Result") == "success")
    expect("after its flow", holds=api.flow_run(run)["state_type"] == "COMPLETED")

    machine.type(f"echo HEADRACE_DETACH_ON_STOP=true > /etc/headrace/{POOL}.env && systemctl start {UNIT}")
    run, gate = waiting(machine, api, deployment)
    before = machine.show("MainPID")
    machine.type(f"systemctl restart {UNIT}")
    expect("a restart leaves the flow running", holds=api.flow_run(run)["state_type"] == "RUNNING")
    expect("and is one", holds=machine.show("MainPID") != before)
    adopted(machine, api, run, gate, "the next daemon")

    for number, what in (("KILL", "killed"), ("STOP", "hanging")):
        run, gate = waiting(machine, api, deployment)
        restarts = int(machine.show("NRestarts"))
        machine.type(f"systemctl kill --kill-whom=main --signal={number} {UNIT}")
        machine.wait_for("NRestarts", str(restarts + 1))
        machine.wait_for("ActiveState", "active")
        adopted(machine, api, run, gate, f"the one after a {what} daemon")

    (told,) = (code for code in Page(ROOT / "docs/logs.md").code() if code.startswith("journalctl"))
    warnings = machine.type(told.replace("headrace@nightly", UNIT)).count('"level": "warning"')
    print(f"$ {told}: {warnings} warnings")
    everything = machine.type(told.replace("headrace@nightly", UNIT).replace('"warning"', '"info"'))
    expect("the page's journalctl line reads the log", holds="flow_run.adopted" in everything)

    api.create_pool("others", kind="docker")
    machine.type("systemctl start headrace@others", check=False)
    machine.wait_for("ActiveState", "failed", "headrace@others")
    expect("exit code 4 is not tried again", holds=machine.show("NRestarts", "headrace@others") == "0")
    expect("and is what it ended with", holds=machine.show("ExecMainStatus", "headrace@others") == "4")
    machine.type(f"systemctl stop {UNIT}")
    left = machine.type("find /proc -maxdepth 1 -name '[0-9]*' -user headrace")
    expect(f"no process is left {left}", holds=not left)


def waiting(machine: Machine, api: PrefectApi, deployment: str) -> tuple[str, str]:
    """A run that waits for a file; its id, and that file."""
    gate = f"{OUT}/gate-{uuid.uuid4().hex[:8]}"
    run = api.create_flow_run(deployment, parameters={"out": OUT, "gate": gate})
    api.wait_for_state(run, "RUNNING")
    # The engine says so before the flow's first line.
    wait_for(
        lambda: machine.type(f"ls {OUT} | grep {run}", check=False), description="the flow's first words"
    )
    return run, gate


def adopted(machine: Machine, api: PrefectApi, run: str, gate: str, by: str) -> None:
    """Let the run end; it has run once, and the daemon that is there now saw to it."""
    wait_for(
        lambda: f"{run}" in machine.type(f"journalctl -o cat -u {UNIT} | grep flow_run.adopted", check=False),
        description=lambda: f"the adoption of {run}\n{machine.journal()}",
    )
    machine.type(f"touch {gate}")
    api.wait_for_state(run, "COMPLETED")
    once = machine.type(f"ls {OUT} | grep -c {run}.finished") == "1"
    expect(
        f"{by} adopts the flow, which ends once", holds=once and api.state_names(run).count("Running") == 1
    )


def expect(what: str, *, holds: bool) -> None:
    """Say that something holds, or end."""
    if not holds:
        raise AssertionError(what)
    print("ok  ", what, flush=True)


if __name__ == "__main__":
    main()

"""The ready-made files: what they name exists, and their times fit each other.

They run on systemd, Docker, Kubernetes and Grafana, which the tests do not have; everything is checked that can be
without them.
"""

import base64
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from tests.unit.test_metrics import SEEN
from worker.cli import command_line
from worker.exposition import families
from worker.health import BEAT, LONGEST_SILENCE
from worker.observers import EXTENSION
from worker.runs.base_job_template import DEFAULT_BASE_JOB_TEMPLATE
from worker.settings_catalogue import CATALOGUE

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "examples/systemd/headrace@.service"
COMPOSE = ROOT / "examples/compose.yaml"
KUBERNETES = ROOT / "examples/kubernetes/headrace.yaml"
DASHBOARD = ROOT / "examples/grafana/headrace.json"
PATHS = {"/health", "/livez", "/readyz", "/metrics"}
# Half a minute each: for flows to end after SIGTERM, and to be reported.
AFTER_DRAIN = 60.0
Json = dict[str, Any]


def setting(name: str, value: str) -> Any:
    """The value as the daemon would read it; raises when there is no such setting, or it cannot have this value."""
    return CATALOGUE.by_name[name].shape.parse(value)


def check_settings(environment: Json) -> None:
    for name, value in environment.items():
        if name.startswith(("PREFECT_", "HEADRACE_")):
            setting(name, str(value))


def start_arguments(words: list[str]) -> Any:
    """What the command line of a daemon means; an unknown flag ends the test (SystemExit)."""
    arguments = command_line().parse_args(words)
    assert arguments.command == "start"
    return arguments


def enough(grace: float, environment: Json) -> bool:
    """Whether a drain to its end, and the daemon's own end, fit into the time before SIGKILL."""
    return grace >= setting("HEADRACE_DRAIN_TIMEOUT", environment["HEADRACE_DRAIN_TIMEOUT"]) + AFTER_DRAIN


# --- systemd


def directives() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_starts_a_daemon_with_flags_that_exist() -> None:
    (command,) = directives()["ExecStart"]
    program, *words = shlex.split(command)
    assert program == "/opt/headrace/bin/headrace"
    assert start_arguments(words).pool == "%i"


def test_flows_survive_what_the_unit_does_to_the_daemon() -> None:
    unit = {name: values[-1] for name, values in directives().items()}
    assert unit["Type"] == "notify"
    assert unit["KillMode"] == "process"
    assert unit["OOMPolicy"] == "continue"
    assert "PrivateTmp" not in unit
    # The loop speaks every five seconds, the watchdog waits for several of them; so do start and stop.
    assert int(unit["WatchdogSec"]) >= 3 * BEAT
    assert min(int(unit["TimeoutStopSec"]), int(unit["TimeoutStartSec"])) >= 3 * BEAT
    assert EXTENSION >= 3 * BEAT


def test_the_units_settings_exist() -> None:
    environment = dict(line.split("=", 1) for line in directives()["Environment"])
    check_settings(environment)
    assert environment["HEADRACE_STATE_DIR"] == f"%S/{directives()['StateDirectory'][0]}"


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed here")
    text = UNIT.read_text()
    # The program need not be installed where the unit is checked.
    copy = tmp_path / "headrace@.service"
    copy.write_text(text.replace("/opt/headrace/bin/headrace", "/bin/true"))
    instance = tmp_path / "headrace@my-pool.service"
    done = subprocess.run([analyze, "verify", instance], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    # It does find something, when there is something to be found.
    copy.write_text(copy.read_text().replace("KillMode=process", "KillMode=proces"))
    done = subprocess.run([analyze, "verify", instance], capture_output=True, text=True, check=False)
    assert "kill mode" in done.stderr


# --- Compose


def compose() -> Json:
    return cast("Json", yaml.safe_load(COMPOSE.read_text()))


def daemons() -> dict[str, Json]:
    return {name: one for name, one in compose()["services"].items() if one.get("image") == "headrace"}


def test_two_daemons_share_a_pool_under_names_of_their_own() -> None:
    started = {name: start_arguments(shlex.split(one["command"])) for name, one in daemons().items()}
    assert len(started) == 2
    assert len({one.pool for one in started.values()}) == 1
    assert {name: one.name for name, one in started.items()} == {name: name for name in started}
    assert all(one.with_healthcheck for one in started.values())
    volumes = [volume.split(":")[0] for one in daemons().values() for volume in one["volumes"]]
    assert len(set(volumes)) == 2
    assert set(volumes) <= compose()["volumes"].keys()


def test_compose_gives_a_drain_the_time_it_takes() -> None:
    for one in daemons().values():
        check_settings(one["environment"])
        grace = re.fullmatch(r"(\d+)m", one["stop_grace_period"])
        assert grace is not None
        assert enough(60 * int(grace[1]), one["environment"])


def test_compose_asks_for_health_where_it_is_served() -> None:
    for one in daemons().values():
        (url,) = re.findall(r"http://127.0.0.1:(\d+)(/\w+)", " ".join(one["healthcheck"]["test"]))
        assert url == (one["environment"]["PREFECT_WORKER_WEBSERVER_PORT"], "/livez")


def test_compose_starts_what_is_waited_for() -> None:
    services = compose()["services"]
    for one in services.values():
        for name, wanted in one.get("depends_on", {}).items():
            assert wanted == {"condition": "service_healthy"}
            assert "healthcheck" in services[name]
    assert services["database"]["image"].startswith("postgres:")
    assert services["server"]["image"].startswith("prefecthq/prefect:3.8.8")


# --- Kubernetes


def manifests() -> dict[str, Json]:
    return {one["kind"]: one for one in yaml.safe_load_all(KUBERNETES.read_text())}


def pod() -> Json:
    return cast("Json", manifests()["StatefulSet"]["spec"]["template"]["spec"])


def test_each_pod_has_a_name_and_a_disk_that_outlive_it() -> None:
    (container,) = pod()["containers"]
    arguments = start_arguments(container["args"])
    assert arguments.name == "$(POD_NAME)"
    assert arguments.with_healthcheck
    claims = [one["metadata"]["name"] for one in manifests()["StatefulSet"]["spec"]["volumeClaimTemplates"]]
    mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert mounted == dict.fromkeys(claims, "/var/lib/headrace/state")
    image = (ROOT / "Dockerfile").read_text()
    assert "HEADRACE_STATE_DIR=/var/lib/headrace/state" in image
    assert f"USER {pod()['securityContext']['runAsUser']}:{pod()['securityContext']['runAsGroup']}" in image


def test_kubernetes_gives_a_drain_the_time_it_takes() -> None:
    (container,) = pod()["containers"]
    environment = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    check_settings(environment)
    assert enough(pod()["terminationGracePeriodSeconds"], environment)


def test_probes_ask_for_what_is_served_where_it_is_served() -> None:
    (container,) = pod()["containers"]
    environment = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    (port,) = container["ports"]
    assert str(port["containerPort"]) == environment["PREFECT_WORKER_WEBSERVER_PORT"]
    assert environment["PREFECT_WORKER_WEBSERVER_HOST"] == "0.0.0.0"
    probes = {kind: container[kind]["httpGet"] for kind in ("livenessProbe", "readinessProbe")}
    assert probes == {
        "livenessProbe": {"path": "/livez", "port": port["name"]},
        "readinessProbe": {"path": "/readyz", "port": port["name"]},
    }
    # A daemon is restarted after its loop has hung for longer than it takes to be sure of it, and for no blink.
    liveness = container["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= LONGEST_SILENCE


def test_the_pods_labels_are_those_that_are_looked_for() -> None:
    stateful, service = manifests()["StatefulSet"]["spec"], manifests()["Service"]
    labels = stateful["template"]["metadata"]["labels"]
    assert stateful["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    assert stateful["serviceName"] == service["metadata"]["name"]
    assert stateful["template"]["metadata"]["annotations"]["prometheus.io/path"] == "/metrics"


def missing(wanted: Any, found: Any, path: str = "") -> list[str]:
    """Where something of the one value is not in the other."""
    match wanted, found:
        case dict(), dict():
            pairs = cast("Json", wanted), cast("Json", found)
            return [
                gap
                for key, value in pairs[0].items()
                for gap in missing(value, pairs[1].get(key), f"{path}.{key}")
            ]
        case list(), list():
            # The index is the key; what is not there is None.
            places = enumerate(cast("list[Any]", wanted)), enumerate(cast("list[Any]", found))
            return missing(dict(places[0]), dict(places[1]), path)
        case _:
            return [] if wanted == found else [path]


def test_kubernetes_knows_every_field(tmp_path: Path) -> None:
    """kubectl's own types leave out what they do not know, so nothing may be missing when they have read the file."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed here")

    def understood(*words: str) -> Json:
        done = subprocess.run(
            [kubectl, *words, "--output=json"],
            env={"HOME": str(tmp_path)},
            check=True,
            capture_output=True,
            text=True,
        )
        return cast("Json", json.loads(done.stdout))

    # Without a cluster: "local" changes what is printed, and only that.
    ways = {"StatefulSet": ("env", "ADDED=1"), "Service": ("selector", "app.kubernetes.io/name=headrace")}

    def unknown(manifest: Json) -> list[str]:
        file = tmp_path / "manifest.json"
        file.write_text(json.dumps(manifest))
        thing, *change = ways[manifest["kind"]]
        return missing(manifest, understood("set", thing, "--local", f"--filename={file}", *change))

    assert ways.keys() == manifests().keys()
    assert [gap for manifest in manifests().values() for gap in unknown(manifest)] == []
    misspelt = manifests()["StatefulSet"]
    misspelt["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["periodSecond"] = 20
    assert unknown(misspelt) == [".spec.template.spec.containers.0.livenessProbe.periodSecond"]
    # The command of its first lines makes the secret that it names.
    (create,) = re.findall(r"^#\s+kubectl (create secret .*)$", KUBERNETES.read_text(), re.MULTILINE)
    secret = understood(*shlex.split(create), "--dry-run=client")
    (container,) = pod()["containers"]
    assert [one["secretRef"]["name"] for one in container["envFrom"]] == [secret["metadata"]["name"]]
    check_settings({name: base64.b64decode(value).decode() for name, value in secret["data"].items()})


# --- the image


def test_the_image_asks_whether_the_daemon_lives() -> None:
    """An engine that restarts what is unhealthy must not restart a daemon because the server is away."""
    (check,) = re.findall(r"HEALTHCHECK.*\n\s+CMD (.*)", (ROOT / "Dockerfile").read_text())
    assert "'/livez'" in json.loads(check)[-1]


# --- Grafana and the document


def sample_names() -> set[str]:
    return {sample.name for family in families(SEEN) for sample in family.samples} | {
        "process_resident_memory_bytes"
    }


def expressions() -> list[str]:
    dashboard = cast("Json", json.loads(DASHBOARD.read_text()))
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_the_dashboard_asks_for_metrics_and_labels_that_are_served() -> None:
    text = "\n".join(expressions())
    assert set(re.findall(r"\b(?:headrace|process)_\w+", text)) <= sample_names()
    labels = {label for family in families(SEEN) for sample in family.samples for label in sample.labels}
    grouped = {name.strip() for names in re.findall(r"\bby \(([^)]*)\)", text) for name in names.split(",")}
    assert grouped <= labels
    assert all(expression.count("(") == expression.count(")") for expression in expressions())


def test_the_dashboard_shows_every_metric_that_says_how_runs_fare() -> None:
    text = "\n".join(expressions())
    served = {family.name for family in families(SEEN)}
    # What these tell, others on the dashboard tell as well.
    left_out = {
        "headrace",
        "headrace_draining",
        "headrace_slots_free",
        "headrace_server_reachable",
        "headrace_api_requests",
    }
    assert {name for name in served - left_out if name not in text} == set()


def test_panels_do_not_lie_on_each_other() -> None:
    dashboard = cast("Json", json.loads(DASHBOARD.read_text()))
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_yaml_in_the_document_is_yaml() -> None:
    text = (ROOT / "docs/operating-service.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    assert all(isinstance(yaml.safe_load(block), dict) for block in blocks)
    assert set(re.findall(r"`(/\w+)`", text)) >= PATHS


def test_the_template_is_the_one_that_pools_are_given() -> None:
    template = (ROOT / "examples/job-variables/template.json").read_text(encoding="utf-8")
    assert json.loads(template) == DEFAULT_BASE_JOB_TEMPLATE

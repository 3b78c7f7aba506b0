"""What stock Prefect resolves and what we resolve, from the same files and the same environment.

Prefect reads its settings while it is imported. One driver process imports it and forks for each situation;
the fork imports the modules that hold settings (`prefect.settings.*`, `prefect.context`) afresh, in the
directory and under the environment of the situation.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from worker.settings import Settings, SettingsError, load_settings
from worker.settings_catalogue import CATALOGUE, OWN_PREFIX, Definition
from worker.settings_values import Kind

DRIVER = r"""
import gc, json, os, sys, warnings

warnings.simplefilter("ignore")
import prefect.context
import prefect.settings

gc.freeze()

def forget():
    for name in [*sys.modules]:
        if name == "prefect.context" or name.split(".")[:2] == ["prefect", "settings"]:
            del sys.modules[name]

def reveal(value):
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value

def resolve():
    from prefect.settings import get_current_settings
    s = get_current_settings()
    api, client, worker, to_api = s.api, s.client, s.worker, s.logging.to_api
    return {"environment": s.to_environment_variables(exclude_unset=True), "values": {
        "url": api.url, "key": reveal(api.key), "auth_string": reveal(api.auth_string),
        "tls_insecure_skip_verify": api.tls_insecure_skip_verify, "ssl_cert_file": api.ssl_cert_file,
        "enable_http2": api.enable_http2, "request_timeout": api.request_timeout,
        "custom_headers": client.custom_headers, "retry_extra_codes": sorted(client.retry_extra_codes),
        "retry_jitter_factor": client.retry_jitter_factor, "max_retries": client.max_retries,
        "cloud_api_url": s.cloud.api_url, "is_cloud": s.connected_to_cloud,
        "heartbeat_seconds": worker.heartbeat_seconds, "query_seconds": worker.query_seconds,
        "prefetch_seconds": worker.prefetch_seconds, "webserver_host": worker.webserver.host,
        "webserver_port": worker.webserver.port, "debug_mode": worker.debug_mode,
        "cancellation_poll_seconds": worker.cancellation_poll_seconds,
        "level": "DEBUG" if worker.debug_mode else s.logging.level,
        "to_api_enabled": to_api.enabled, "to_api_max_log_size": to_api.max_log_size,
        "to_api_batch_interval": to_api.batch_interval, "home": str(s.home)}}

def models():
    import inspect
    from prefect.settings.base import PrefectBaseSettings
    from prefect.settings.models.root import Settings
    found = {}
    def walk(model, path):
        for name, field in model.model_fields.items():
            if inspect.isclass(field.annotation) and issubclass(field.annotation, PrefectBaseSettings):
                walk(field.annotation, (*path, name))
                continue
            choices = getattr(field.validation_alias, "choices", None)
            names = [c.upper() for c in choices if isinstance(c, str)] if choices else [
                model.model_config["env_prefix"] + name.upper()]
            found[".".join((*path, name))] = {
                "names": names, "annotation": str(field.annotation),
                "bounds": [[rule, getattr(m, rule)] for m in field.metadata for rule in ("ge", "gt")
                           if isinstance(getattr(m, rule, None), (int, float))]}
    walk(Settings, ())
    return found

def child(situation, answer):
    os.environ.clear()
    os.environ.update(situation["environ"])
    os.chdir(situation["cwd"])
    sys.argv = situation["argv"]
    gc.disable()
    forget()
    try:
        result = models() if situation["models"] else resolve()
    except BaseException as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    with open(answer, "w") as file:
        json.dump(result, file, default=str)

situations, answers = json.load(sys.stdin), sys.argv[1]
running = 0
for name, situation in situations.items():
    if running == (os.cpu_count() or 1):
        os.wait()
        running -= 1
    running += 1
    if os.fork() == 0:
        try:
            child(situation, os.path.join(answers, name))
        finally:
            sys.stderr.flush()
            os._exit(0)
while running:
    os.wait()
    running -= 1
"""

PROFILES = """
active = "staging"
[profiles.staging]
PREFECT_API_URL = "http://profile/api"
PREFECT_API_KEY = "profile-key"
[profiles.other]
PREFECT_API_URL = "http://other/api"
PREFECT_API_ENABLE_HTTP2 = true
PREFECT_WORKER_QUERY_SECONDS = 3
PREFECT_CLIENT_MAX_RETRIES = "7"
"""
HOME_PROFILES = "home/.prefect/profiles.toml"
EVERY_LAYER = {
    HOME_PROFILES: """
        active = "p"
        [profiles.p]
        PREFECT_API_URL = "http://profile/api"
        PREFECT_API_KEY = "profile"
        PREFECT_API_AUTH_STRING = "profile"
        PREFECT_WORKER_QUERY_SECONDS = "1"
        PREFECT_WORKER_HEARTBEAT_SECONDS = "1"
    """,
    "cwd/pyproject.toml": """
        [tool.prefect.api]
        url = "http://pyproject/api"
        key = "pyproject"
        auth_string = "pyproject"
        [tool.prefect.worker]
        query_seconds = 2
    """,
    "cwd/prefect.toml": '[api]\nurl = "http://toml/api"\nkey = "toml"\nauth_string = "toml"\n',
    "cwd/.env": "PREFECT_API_URL=http://dotenv/api\nPREFECT_API_KEY=dotenv\n",
}


@dataclass(frozen=True)
class Situation:
    """`@` in the environment and in files stands for the directory that holds `cwd` and `home`."""

    environ: Mapping[str, str] = field(default_factory=dict[str, str])
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    profile: str | None = None


SITUATIONS: dict[str, Situation] = {
    "nothing": Situation(),
    "environment": Situation(
        {
            "PREFECT_API_URL": "http://env/api",
            "PREFECT_API_AUTH_STRING": "user:pass:word",
            "PREFECT_API_TLS_INSECURE_SKIP_VERIFY": "yes",
            "PREFECT_API_SSL_CERT_FILE": "/ca.pem",
            "PREFECT_API_REQUEST_TIMEOUT": " 30 ",
            "PREFECT_WORKER_WEBSERVER_PORT": "9090",
            "PREFECT_WORKER_QUERY_SECONDS": "0.5",
            "PREFECT_LOGGING_LEVEL": "warning",
            "PREFECT_LOGGING_TO_API_ENABLED": "off",
            "PREFECT__FLOW_RUN_ID": "x",
            "PREFECT_UNHEARD_OF": "x",
        }
    ),
    "dotenv": Situation(
        {"HOST": "h"},
        {
            "cwd/.env": "PORT=1\nexport PREFECT_API_URL='http://${HOST}:1/api'\nPREFECT_API_KEY=\"a${PORT}${NONE:-z}\" #\n"
            "prefect_worker_debug_mode=1\nkey=not-ours\nPREFECT_PROFILE=other\nPREFECT_API_AUTH_STRING\n",
            HOME_PROFILES: PROFILES,
        },
    ),
    "prefect_toml": Situation(
        files={
            "cwd/prefect.toml": """
            silence_api_url_misconfiguration = true
            unheard_of = 1
            [api]
            url = "http://toml/api"
            enable_http2 = true
            request_timeout = 90
            [client]
            retry_extra_codes = [500, 404]
            [client.custom_headers]
            X-Team = "data"
            [worker]
            query_seconds = "90"
            prefetch_seconds = 0.5
            [worker.webserver]
            host = "127.0.0.1"
            [logging.to_api]
            max_log_size = 1000
            batch_interval = 1
            """
        }
    ),
    "pyproject": Situation(
        files={"cwd/pyproject.toml": '[tool.prefect]\nhome = "~/x//y"\n[tool.prefect.api]\nkey = "k"\n'}
    ),
    "profile": Situation(files={HOME_PROFILES: PROFILES}),
    "every_layer": Situation({"PREFECT_API_URL": "http://env/api"}, EVERY_LAYER),
    "profile_by_variable": Situation({"PREFECT_PROFILE": "other"}, {HOME_PROFILES: PROFILES}),
    "profile_by_flag": Situation(
        {"PREFECT_PROFILE": "staging", "PREFECT_CLIENT_MAX_RETRIES": "1"},
        {HOME_PROFILES: PROFILES},
        profile="other",
    ),
    "unknown_profile": Situation({"PREFECT_PROFILE": "nope"}, {HOME_PROFILES: PROFILES}),
    "empty_profile_variable": Situation({"PREFECT_PROFILE": ""}, {HOME_PROFILES: PROFILES}),
    "bundled_profile": Situation({"PREFECT_PROFILE": "local"}),
    "bundled_profile_hidden_by_file": Situation({"PREFECT_PROFILE": "local"}, {HOME_PROFILES: PROFILES}),
    "home_without_profiles": Situation(
        {"PREFECT_PROFILE": "local", "PREFECT_HOME": "@/h"}, {HOME_PROFILES: PROFILES}
    ),
    "home": Situation({"PREFECT_HOME": "@/h"}, {"h/profiles.toml": PROFILES}),
    "home_only_in_dotenv": Situation(
        files={
            "cwd/.env": "PREFECT_HOME=@/h\n",
            "h/profiles.toml": PROFILES,
            HOME_PROFILES: EVERY_LAYER[HOME_PROFILES],
        }
    ),
    "home_in_profile": Situation(
        files={
            HOME_PROFILES: PROFILES.replace(
                "[profiles.other]", 'PREFECT_HOME = "/elsewhere"\n[profiles.other]'
            )
        }
    ),
    "empty_home": Situation({"PREFECT_HOME": ""}, {HOME_PROFILES: PROFILES}),
    "profiles_path_environment": Situation(
        {"PREFECT_PROFILES_PATH": "@/a.toml"},
        {"a.toml": PROFILES, "cwd/.env": "PREFECT_PROFILES_PATH=@/none.toml\n", HOME_PROFILES: ""},
    ),
    "profiles_path_dotenv": Situation(
        {"PREFECT_HOME": "@/h"},
        {
            "a.toml": PROFILES,
            "cwd/.env": "PREFECT_PROFILES_PATH=@/a.toml\n",
            "cwd/prefect.toml": 'profiles_path = "x"',
        },
    ),
    "profiles_path_toml": Situation(
        files={
            "cwd/a.toml": PROFILES,
            "cwd/prefect.toml": 'profiles_path = "a.toml"',
            "cwd/pyproject.toml": '[tool.prefect]\nprofiles_path = "x"',
        }
    ),
    "profiles_path_pyproject": Situation(
        files={"cwd/a.toml": PROFILES, "cwd/pyproject.toml": '[tool.prefect]\nprofiles_path = "a.toml"'}
    ),
    "profiles_path_other_case": Situation({"prefect_profiles_path": "@/a.toml"}, {"a.toml": PROFILES}),
    "profiles_path_template": Situation(
        {"PREFECT_HOME": "@/h", "PREFECT_PROFILES_PATH": "$PREFECT_HOME/a.toml"}, {"h/a.toml": PROFILES}
    ),
    "profiles_path_missing": Situation({"PREFECT_PROFILES_PATH": "@/none.toml"}, {HOME_PROFILES: PROFILES}),
    "empty_hides": Situation(
        {
            "PREFECT_API_KEY": "",
            "PREFECT_CLIENT_RETRY_EXTRA_CODES": "",
            "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "",
        },
        {
            "cwd/prefect.toml": '[client]\nretry_extra_codes = [500]\n[api]\nurl = ""\n',
            HOME_PROFILES: PROFILES,
        },
    ),
    "empty_in_dotenv_hides": Situation(files={"cwd/.env": "PREFECT_API_URL=\n", HOME_PROFILES: PROFILES}),
    "other_case": Situation(
        {"prefect_api_url": "http://lower/api", "Prefect_Api_Key": "k"}, {HOME_PROFILES: PROFILES}
    ),
    "both_cases": Situation({"PREFECT_API_URL": "http://upper/api", "prefect_api_url": "http://lower/api"}),
    "lower_case_in_profile": Situation(
        files={HOME_PROFILES: PROFILES.replace("PREFECT_API_URL", "prefect_api_url")}
    ),
    "headers": Situation({"PREFECT_CLIENT_CUSTOM_HEADERS": '{"X-B": "2", "Authorization": "Bearer t"}'}),
    "headers_in_profile": Situation(
        files={
            HOME_PROFILES: 'active = "p"\n[profiles.p]\nPREFECT_CLIENT_CUSTOM_HEADERS = \'{"X-B": "2"}\'\n'
            "PREFECT_CLIENT_RETRY_EXTRA_CODES = '500, 404'\nPREFECT_LOGGING_EXTRA_LOGGERS = ['b', 'a']\n"
        }
    ),
    "lists": Situation(
        {
            "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500, 404,599",
            "PREFECT_LOGGING_EXTRA_LOGGERS": "y,x",
            "PREFECT_PLUGINS_ALLOW": '["b", "a"]',
            "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "10, 2",
            "PREFECT_FLOWS_DEFAULT_RETRY_DELAY_SECONDS": "[1, 20.5]",
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "flow_runs,events",
        }
    ),
    "single_items": Situation(
        {
            "PREFECT_CLIENT_RETRY_EXTRA_CODES": "404",
            "PREFECT_LOGGING_EXTRA_LOGGERS": "x",
            "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "10",
            "PREFECT_FLOWS_DEFAULT_RETRY_DELAY_SECONDS": "7",
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "True",
            "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "20",
            "PREFECT_SERVER_SERVICES_DB_VACUUM_EVENT_RETENTION_OVERRIDES": '{"a": 7200, "b": "P1D"}',
        }
    ),
    "legacy_beats_lower_layers": Situation(
        {"PREFECT_RUNNER_HEARTBEAT_FREQUENCY": "45"},
        {
            "cwd/.env": "PREFECT_FLOWS_HEARTBEAT_FREQUENCY=60",
            "cwd/prefect.toml": "[flows]\nheartbeat_frequency = 90",
        },
    ),
    "legacy_yields_in_one_layer": Situation(
        {"PREFECT_RUNNER_HEARTBEAT_FREQUENCY": "45", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60"},
        {
            HOME_PROFILES: 'active="p"\n[profiles.p]\nPREFECT_LOGGING_SETTINGS_PATH="/old"\nPREFECT_LOGGING_CONFIG_PATH="/new"'
        },
    ),
    "legacy_in_profile": Situation(
        files={
            HOME_PROFILES: 'active="p"\n[profiles.p]\nPREFECT_RUNNER_HEARTBEAT_FREQUENCY="45"\n'
            'PREFECT_LOGGING_SETTINGS_PATH="./a//b"\nPREFECT_SERVER_ALLOW_EPHEMERAL_MODE=false\n',
            "cwd/pyproject.toml": "[tool.prefect.flows]\nheartbeat_frequency = 60\n",
        }
    ),
    "plugins_before_they_moved": Situation(
        files={
            "cwd/prefect.toml": "[experiments.plugins]\nenabled = true\nstrict = true\n[plugins]\nsafe_mode = true\n",
            HOME_PROFILES: 'active="p"\n[profiles.p]\nPREFECT_PLUGINS_ENABLED="false"',
        }
    ),
    "debug_mode": Situation({"PREFECT_DEBUG_MODE": "1", "PREFECT_LOGGING_LEVEL": "error"}),
    "worker_debug_mode": Situation({"PREFECT_WORKER_DEBUG_MODE": "1", "PREFECT_LOGGING_LEVEL": "error"}),
    "test_mode": Situation({"PREFECT_TEST_MODE": "1"}, {HOME_PROFILES: PROFILES}),
    "cloud": Situation({"PREFECT_API_URL": "https://api.prefect.cloud/api/accounts/a/workspaces/w"}),
    "other_cloud": Situation(
        {"PREFECT_API_URL": "https://eu/api/x", "PREFECT_CLOUD_API_URL": "https://eu/api"},
        {"cwd/prefect.toml": "[cloud]\nmax_log_size = 10\n[logging.to_api]\nmax_log_size = 20"},
    ),
    "boolean_for_a_number": Situation(files={"cwd/prefect.toml": "[client]\nmax_retries = true"}),
}

# Both refuse; ours names these.
REFUSED: dict[str, tuple[Situation, tuple[str, ...]]] = {
    "bad_prefect_toml": (Situation(files={"cwd/prefect.toml": "[api\n"}), ("prefect.toml", "line 1")),
    "bad_pyproject": (Situation(files={"cwd/pyproject.toml": "a = \n"}), ("pyproject.toml", "line 1")),
    "bad_profiles": (Situation(files={HOME_PROFILES: "x\n"}), (".prefect/profiles.toml", "line 1")),
    "section_is_a_value": (
        Situation(files={"cwd/prefect.toml": 'api = "x"'}),
        ("'api'", "./prefect.toml", "table"),
    ),
    "section_is_a_list": (Situation(files={"cwd/prefect.toml": '[[api]]\nurl = "x"'}), ("'api'", "table")),
    "tool_prefect_is_a_value": (
        Situation(files={"cwd/pyproject.toml": "[tool]\nprefect = 3"}),
        ("'prefect'", "./pyproject.toml"),
    ),
    "profile_is_a_value": (
        Situation(files={HOME_PROFILES: 'active = "p"\nprofiles = {p = 3}'}),
        ("'p'", "profiles.toml"),
    ),
    "bad_int": (
        Situation({"PREFECT_WORKER_WEBSERVER_PORT": "eighty"}),
        ("PREFECT_WORKER_WEBSERVER_PORT", "environment", "whole number"),
    ),
    "bad_float": (
        Situation(files={"cwd/.env": "PREFECT_API_REQUEST_TIMEOUT=1m"}),
        ("PREFECT_API_REQUEST_TIMEOUT", "./.env", "number"),
    ),
    "bad_bool": (
        Situation(files={HOME_PROFILES: 'active="p"\n[profiles.p]\nPREFECT_API_ENABLE_HTTP2="maybe"'}),
        ("PREFECT_API_ENABLE_HTTP2", "profile 'p'", "true or false"),
    ),
    "bad_level": (Situation({"PREFECT_LOGGING_LEVEL": "LOUD"}), ("PREFECT_LOGGING_LEVEL", "DEBUG, INFO")),
    "bad_headers": (
        Situation({"PREFECT_CLIENT_CUSTOM_HEADERS": "X: y"}),
        ("PREFECT_CLIENT_CUSTOM_HEADERS", "JSON object"),
    ),
    "header_not_text": (
        Situation({"PREFECT_CLIENT_CUSTOM_HEADERS": '{"a": 1}'}),
        ("JSON object of strings",),
    ),
    "bad_code": (
        Situation({"PREFECT_CLIENT_RETRY_EXTRA_CODES": "404,99"}),
        ("PREFECT_CLIENT_RETRY_EXTRA_CODES", "100 to 599"),
    ),
    "below_bound": (
        Situation({"PREFECT_RUNNER_HEARTBEAT_FREQUENCY": "5"}),
        ("as PREFECT_RUNNER_HEARTBEAT_FREQUENCY", "at least 30"),
    ),
    "number_for_text": (
        Situation(files={"cwd/prefect.toml": "[api]\nurl = 5"}),
        ("PREFECT_API_URL", "./prefect.toml", "text"),
    ),
    "empty_number": (
        Situation({"PREFECT_API_REQUEST_TIMEOUT": ""}, {"cwd/prefect.toml": "[api]\nrequest_timeout = 5"}),
        ("PREFECT_API_REQUEST_TIMEOUT", "empty"),
    ),
    "empty_bool": (Situation({"PREFECT_API_ENABLE_HTTP2": ""}), ("PREFECT_API_ENABLE_HTTP2", "empty")),
    "empty_headers": (
        Situation({"PREFECT_CLIENT_CUSTOM_HEADERS": ""}),
        ("PREFECT_CLIENT_CUSTOM_HEADERS", "empty"),
    ),
    "empty_profiles_path": (Situation({"PREFECT_PROFILES_PATH": ""}), ("PREFECT_PROFILES_PATH", "empty")),
    "log_above_batch": (
        Situation({"PREFECT_LOGGING_TO_API_MAX_LOG_SIZE": "5000000"}),
        ("PREFECT_LOGGING_TO_API_MAX_LOG_SIZE", "PREFECT_LOGGING_TO_API_BATCH_SIZE"),
    ),
}

SAMPLES: dict[Kind, Any] = {
    Kind.ANY: "any",
    Kind.BOOL: True,
    Kind.CODES: [500, 404],
    Kind.DELAY: [1, 2.5],
    Kind.DELAYS: [3, 4.5],
    Kind.DURATION: "P2D",
    Kind.DURATIONS: {"a": 7200},
    Kind.FILE: "/a//b",
    Kind.FLOAT: 31,
    Kind.HEADERS: {"X-Team": "data"},
    Kind.INT: 31,
    Kind.LEVEL: "warning",
    Kind.PATH: "/a//b",
    Kind.SECONDS: 7200,
    Kind.SECRET: "secret",
    Kind.TEXT: "text",
    Kind.VACUUM: ["events", "flow_runs"],
    Kind.WORDS: ["b", "a"],
}
# Prefect looks further than at these alone: test modes hide the profile, debug modes the levels, and a
# profiles file must be one. We ask of a URL that it is one.
EXCEPTIONS: dict[str, Any] = {
    "debug_mode": False,
    "testing.test_mode": False,
    "testing.unit_test_mode": False,
    "profiles_path": "/none/profiles.toml",
    "api.url": "http://text/api",
}
PREFECTS = [
    definition for definition in CATALOGUE.by_path.values() if not definition.name.startswith(OWN_PREFIX)
]


def sample(definition: Definition) -> Any:
    if definition.path in EXCEPTIONS:
        return EXCEPTIONS[definition.path]
    return definition.shape.choices[0] if definition.shape.choices else SAMPLES[definition.shape.kind]


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def everything_in_toml() -> str:
    """Every setting at its place; JSON is TOML here except for tables."""
    return "\n".join(f"{definition.path} = {toml_value(sample(definition))}" for definition in PREFECTS)


def toml_value(value: Any) -> str:
    if not isinstance(value, dict):
        return json.dumps(value)
    items = cast("dict[str, Any]", value).items()
    return f"{{{', '.join(f'{key} = {json.dumps(item)}' for key, item in items)}}}"


def everything_in_environment(name: Callable[[Definition], str]) -> dict[str, str]:
    return {name(definition): as_text(sample(definition)) for definition in PREFECTS}


ALL_AT_ONCE: dict[str, Situation] = {
    "everything_in_toml": Situation(files={"cwd/prefect.toml": everything_in_toml()}),
    "everything_in_environment": Situation(everything_in_environment(lambda definition: definition.name)),
    "everything_by_legacy_names": Situation(
        everything_in_environment(lambda definition: (definition.legacy or (definition.name,))[-1])
    ),
}
ACCEPTED = SITUATIONS | ALL_AT_ONCE


def environ_of(situation: Situation, root: Path) -> dict[str, str]:
    return {"HOME": str(root / "home")} | {
        name: text.replace("@", str(root)) for name, text in situation.environ.items()
    }


def lay_out(situation: Situation, root: Path) -> None:
    for directory in ("cwd", "home"):
        (root / directory).mkdir(parents=True)
    for name, text in situation.files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text.replace("@", str(root)))


@pytest.fixture(scope="module")
def directory() -> Any:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture(scope="module")
def prefect(directory: Path) -> Mapping[str, Any]:
    """What Prefect makes of every situation, and its models under the name `models`."""
    asked: dict[str, Any] = {}
    situations = (
        ACCEPTED | {name: situation for name, (situation, _) in REFUSED.items()} | {"models": Situation()}
    )
    for name, situation in situations.items():
        root = directory / name
        lay_out(situation, root)
        asked[name] = {
            "environ": environ_of(situation, root),
            "cwd": str(root / "cwd"),
            "argv": ["/usr/bin/prefect", "--profile", situation.profile]
            if situation.profile
            else ["/usr/bin/prefect"],
            "models": name == "models",
        }
    answers = directory / "answers"
    answers.mkdir()
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER, str(answers)],
        input=json.dumps(asked),
        text=True,
        check=False,
        cwd=answers,
        env={"HOME": str(answers)},
        capture_output=True,
    )
    assert driver.returncode == 0, driver.stderr
    return {name: json.loads((answers / name).read_text()) for name in asked}


def ours(situation: Situation, root: Path) -> Settings:
    return load_settings(environ=environ_of(situation, root), cwd=root / "cwd", profile=situation.profile)


def values_of(settings: Settings) -> dict[str, Any]:
    api, worker, logging = settings.api, settings.worker, settings.logging
    return {
        "url": api.url,
        "key": api.key and api.key.get_secret_value(),
        "auth_string": api.auth_string and api.auth_string.get_secret_value(),
        "tls_insecure_skip_verify": api.tls_insecure_skip_verify,
        "ssl_cert_file": api.ssl_cert_file,
        "enable_http2": api.enable_http2,
        "request_timeout": api.request_timeout,
        "custom_headers": api.custom_headers,
        "retry_extra_codes": sorted(api.retry_extra_codes),
        "retry_jitter_factor": api.retry_jitter_factor,
        "max_retries": api.max_retries,
        "cloud_api_url": api.cloud_api_url,
        "is_cloud": api.is_cloud,
        "heartbeat_seconds": worker.heartbeat_seconds,
        "query_seconds": worker.query_seconds,
        "prefetch_seconds": worker.prefetch_seconds,
        "webserver_host": worker.webserver_host,
        "webserver_port": worker.webserver_port,
        "debug_mode": worker.debug_mode,
        "cancellation_poll_seconds": worker.cancellation_poll_seconds,
        "level": logging.level,
        "to_api_enabled": logging.to_api_enabled,
        "to_api_max_log_size": logging.to_api_max_log_size,
        "to_api_batch_interval": logging.to_api_batch_interval,
        "home": str(settings.home),
    }


@pytest.mark.parametrize("name", ACCEPTED)
def test_same_values_and_same_exported_environment(
    name: str, prefect: Mapping[str, Any], directory: Path
) -> None:
    settings = ours(ACCEPTED[name], directory / name)
    stock = prefect[name]
    assert "error" not in stock, stock
    # Prefect keeps "" where a layer hides a text below it; we say None. And its health is open to every network.
    different = {"": None, "0.0.0.0": "127.0.0.1"}
    assert values_of(settings) == {
        key: different.get(value, value) if isinstance(value, str) else value
        for key, value in stock["values"].items()
    }
    assert dict(settings.child_environment) == stock["environment"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_prefect_refuses_we_refuse_by_name(
    name: str, prefect: Mapping[str, Any], directory: Path
) -> None:
    situation, named = REFUSED[name]
    assert "error" in prefect[name], prefect[name]
    with pytest.raises(SettingsError) as refusal:
        ours(situation, directory / name)
    assert [text for text in named if text not in str(refusal.value)] == [], refusal.value


def test_every_setting_of_prefect_is_in_the_catalogue_under_its_names(prefect: Mapping[str, Any]) -> None:
    assert {
        path: [definition.name, *definition.legacy]
        for path, definition in CATALOGUE.by_path.items()
        if not definition.name.startswith(OWN_PREFIX)
    } == {path: model["names"] for path, model in prefect["models"].items()}


def test_every_lower_bound_of_a_number_is_in_the_catalogue(prefect: Mapping[str, Any]) -> None:
    assert {
        definition.path: [["ge" if definition.shape.bound.inclusive else "gt", definition.shape.bound.limit]]
        for definition in PREFECTS
        if definition.shape.bound is not None
    } == {path: model["bounds"] for path, model in prefect["models"].items() if model["bounds"]}


def test_every_secret_of_prefect_is_one_here(prefect: Mapping[str, Any]) -> None:
    assert {definition.path for definition in PREFECTS if definition.shape.kind is Kind.SECRET} == {
        path for path, model in prefect["models"].items() if "Secret" in model["annotation"]
    }

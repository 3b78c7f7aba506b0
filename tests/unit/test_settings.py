"""Precedence, the lookup of profiles, and what a user reads when a value is wrong.

That the results equal Prefect's is shown in tests/parity; here is what Prefect has no word on.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from worker.settings import Settings, SettingsError, load_settings
from worker.settings_catalogue import CATALOGUE, OWN_PREFIX, Definition
from worker.settings_sources import BUNDLED_PROFILES
from worker.settings_values import Kind, Shape

SECRET = "s3cr3t-value"
LAYERS = ("flag", "environment", "dotenv", "prefect.toml", "pyproject", "profile")


class Machine:
    """A home and a working directory."""

    def __init__(self, root: Path) -> None:
        self.cwd = root / "cwd"
        self.home = root / "home"
        self.cwd.mkdir()
        (self.home / ".prefect").mkdir(parents=True)

    def profiles(self, text: str) -> Path:
        path = self.home / ".prefect" / "profiles.toml"
        path.write_text(text)
        return path

    def write(self, name: str, text: str) -> None:
        (self.cwd / name).write_text(text)

    def load(
        self,
        environ: Mapping[str, str] | None = None,
        *,
        profile: str | None = None,
        flags: Mapping[str, object] | None = None,
    ) -> Settings:
        return load_settings(
            environ={"HOME": str(self.home), **(environ or {})}, cwd=self.cwd, profile=profile, flags=flags
        )

    def refusal(self, environ: Mapping[str, str] | None = None, **how: Any) -> str:
        with pytest.raises(SettingsError) as refusal:
            self.load(environ, **how)
        assert refusal.value.__cause__ is None  # what a library says may hold the value
        return str(refusal.value)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def set_layers(machine: Machine, layers: tuple[str, ...]) -> tuple[dict[str, str], dict[str, object]]:
    """Give PREFECT_WORKER_QUERY_SECONDS the number of the layer, in each of `layers`."""
    number = {layer: LAYERS.index(layer) + 1 for layer in layers}
    if "profile" in layers:
        machine.profiles(
            f'active = "p"\n[profiles.p]\nPREFECT_WORKER_QUERY_SECONDS = "{number["profile"]}"\n'
        )
    if "pyproject" in layers:
        machine.write("pyproject.toml", f"[tool.prefect.worker]\nquery_seconds = {number['pyproject']}\n")
    if "prefect.toml" in layers:
        machine.write("prefect.toml", f"[worker]\nquery_seconds = {number['prefect.toml']}\n")
    if "dotenv" in layers:
        machine.write(".env", f"PREFECT_WORKER_QUERY_SECONDS={number['dotenv']}\n")
    environ = {"PREFECT_WORKER_QUERY_SECONDS": str(number["environment"])} if "environment" in layers else {}
    return environ, {"PREFECT_WORKER_QUERY_SECONDS": number.get("flag")}


@pytest.mark.parametrize("strongest", LAYERS)
def test_each_layer_wins_over_all_below_it(machine: Machine, strongest: str) -> None:
    environ, flags = set_layers(machine, LAYERS[LAYERS.index(strongest) :])
    settings = machine.load(environ, flags=flags)
    assert settings.worker.query_seconds == LAYERS.index(strongest) + 1


def test_layers_merge_setting_by_setting_and_say_where_each_comes_from(machine: Machine) -> None:
    path = machine.profiles('active = "staging"\n[profiles.staging]\nPREFECT_API_URL = "http://h/api"\n')
    machine.write(".env", f"PREFECT_API_KEY={SECRET}\n")
    machine.write("prefect.toml", "[worker]\nquery_seconds = 3\n")
    machine.write(
        "pyproject.toml", '[tool.headrace]\nlog_format = "json"\n[tool.prefect.api]\nenable_http2 = true\n'
    )
    settings = machine.load(
        {"PREFECT_RUNNER_HEARTBEAT_FREQUENCY": "60"},
        flags={"HEADRACE_PYTHON": "/py", "HEADRACE_LOG_LEVEL": None},
    )
    assert settings.profile == "staging"
    assert settings.warnings == ()
    assert settings.sources == {
        "PREFECT_API_URL": f"profile 'staging' ({path})",
        "PREFECT_API_KEY": "./.env",
        "PREFECT_WORKER_QUERY_SECONDS": "./prefect.toml",
        "HEADRACE_LOG_FORMAT": "./pyproject.toml",
        "PREFECT_API_ENABLE_HTTP2": "./pyproject.toml",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "environment, as PREFECT_RUNNER_HEARTBEAT_FREQUENCY",
        "HEADRACE_PYTHON": "command line",
    }


def test_defaults_are_those_of_prefect_and_ours(machine: Machine) -> None:
    settings = machine.load()
    assert settings.api.url is None
    assert not settings.api.is_cloud
    assert (settings.worker.heartbeat_seconds, settings.worker.query_seconds) == (30, 10)
    assert settings.headrace.job_variables == "layered"
    assert (settings.headrace.cancel_poll_seconds, settings.headrace.kill_grace_seconds) == (2, 30)
    assert settings.headrace.state_dir == machine.home / ".local/state/headrace"
    assert settings.home == machine.home / ".prefect"


def test_ours_come_from_every_file_but_the_profile(machine: Machine) -> None:
    machine.profiles('active = "p"\n[profiles.p]\nHEADRACE_PYTHON = "/profile"\n')
    machine.write("pyproject.toml", '[tool.headrace]\nkill_grace_seconds = 5\nlog_level = "debug"\n')
    machine.write("prefect.toml", '[headrace]\nlog_level = "warning"\njob_variables = "stock"\n')
    machine.write(".env", "HEADRACE_JOB_VARIABLES=\n")
    settings = machine.load({"HEADRACE_STATE_DIR": "state", "PREFECT_DEBUG_MODE": "1"})
    assert settings.headrace.python is None
    assert settings.headrace.kill_grace_seconds == 5
    assert settings.headrace.job_variables == "layered", "an empty value means the default"
    assert settings.headrace.state_dir == machine.cwd / "state"
    assert settings.logging.level == "WARNING", "ours wins over Prefect's debug mode"
    assert not any(name.startswith(OWN_PREFIX) for name in settings.child_environment)
    assert [warning for warning in settings.warnings if "'HEADRACE_PYTHON'" in warning]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_STATE_HOME": "/xdg"}, "/xdg/headrace"),
        ({"XDG_STATE_HOME": "relative"}, "@/.local/state/headrace"),
        ({"XDG_STATE_HOME": "/xdg", "HEADRACE_STATE_DIR": "~/s"}, "@/s"),
    ],
)
def test_state_directory(machine: Machine, environ: dict[str, str], expected: str) -> None:
    assert str(machine.load(environ).headrace.state_dir) == expected.replace("@", str(machine.home))


def test_a_flag_does_not_reach_flow_processes(machine: Machine) -> None:
    settings = machine.load(
        {"PREFECT_WORKER_PREFETCH_SECONDS": "3"},
        flags={"PREFECT_WORKER_PREFETCH_SECONDS": 7, "PREFECT_WORKER_QUERY_SECONDS": 1.5},
    )
    assert (settings.worker.prefetch_seconds, settings.worker.query_seconds) == (7, 1.5)
    assert settings.child_environment["PREFECT_WORKER_PREFETCH_SECONDS"] == "3.0"
    assert "PREFECT_WORKER_QUERY_SECONDS" not in settings.child_environment


def test_a_flag_that_is_no_setting_is_a_mistake_in_the_program(machine: Machine) -> None:
    with pytest.raises(ValueError, match="PREFECT_WORKER_QUERRY"):
        machine.load(flags={"PREFECT_WORKER_QUERRY": 1})


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("0.5", 0.5), (90, 90.0), (0.5, 0.5), ("1e2", 100.0)]
)
def test_durations(machine: Machine, text: object, seconds: float) -> None:
    machine.write("prefect.toml", f"[worker]\nheartbeat_seconds = {json.dumps(text)}\n")
    assert machine.load().worker.heartbeat_seconds == seconds
    assert machine.load({"PREFECT_WORKER_QUERY_SECONDS": str(text)}).worker.query_seconds == seconds


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PREFECT_WORKER_QUERY_SECONDS", "soon", "a number"),
        ("PREFECT_WORKER_QUERY_SECONDS", "-1", "of at least 0"),
        ("PREFECT_WORKER_QUERY_SECONDS", "nan", "of at least 0"),
        ("PREFECT_WORKER_HEARTBEAT_SECONDS", "inf", "of at least 0"),
        ("PREFECT_API_REQUEST_TIMEOUT", "0", "above 0"),
        ("PREFECT_WORKER_WEBSERVER_PORT", "65536", "a port"),
        ("PREFECT_WORKER_WEBSERVER_PORT", "8080.5", "a whole number"),
        ("PREFECT_CLIENT_MAX_RETRIES", "-1", "of at least 0"),
        ("PREFECT_API_URL", "localhost:4200/api", "http://127.0.0.1:4200/api"),
        ("PREFECT_API_URL", "ftp://h/api", "http://127.0.0.1:4200/api"),
        ("PREFECT_API_URL", "http://h:port/api", "http://127.0.0.1:4200/api"),
        ("PREFECT_API_KEY", f"{SECRET}\nX: y", "without line breaks"),
        ("PREFECT_CLIENT_CUSTOM_HEADERS", json.dumps({"X Y": SECRET}), "'X Y'"),
        ("PREFECT_CLIENT_CUSTOM_HEADERS", json.dumps({"X": f"{SECRET}\r\n"}), "'X'"),
        ("PREFECT_CLIENT_CUSTOM_HEADERS", f"X: {SECRET}", "a JSON object of strings"),
        ("PREFECT_LOGGING_TO_API_BATCH_SIZE", "1", "PREFECT_LOGGING_TO_API_MAX_LOG_SIZE"),
        ("HEADRACE_JOB_VARIABLES", "prefect", "'layered' or 'stock'"),
        ("HEADRACE_LOG_FORMAT", "xml", "'auto' or 'console' or 'json'"),
        ("HEADRACE_CANCEL_POLL_SECONDS", "0", "above 0"),
        ("HEADRACE_KILL_GRACE_SECONDS", "-1", "of at least 0"),
    ],
)
def test_a_refused_value_is_named_with_its_source_and_never_shown(
    machine: Machine, name: str, value: str, says: str
) -> None:
    from_environment = machine.refusal({name: value})
    assert name in from_environment
    assert "(environment)" in from_environment
    assert says in from_environment
    assert value not in from_environment.replace(says, "")
    assert SECRET not in from_environment
    assert "(command line)" in machine.refusal(flags={name: value})


def test_secrets_are_in_no_text_but_in_the_environment_of_flows(machine: Machine) -> None:
    machine.write("prefect.toml", f'[client.custom_headers]\nAuthorization = "{SECRET}"\n')
    settings = machine.load({"PREFECT_API_KEY": SECRET, "PREFECT_API_AUTH_STRING": SECRET})
    assert SECRET not in f"{settings!r} {settings}"
    assert "PREFECT_API_KEY" in repr(settings.child_environment)
    assert settings.child_environment["PREFECT_API_KEY"] == SECRET
    assert dict(settings.child_environment)["PREFECT_CLIENT_CUSTOM_HEADERS"] == json.dumps(
        {"Authorization": SECRET}
    )


@pytest.mark.parametrize("name", ["prefect.toml", "pyproject.toml", ".env"])
def test_a_file_that_cannot_be_read_is_named(machine: Machine, name: str) -> None:
    (machine.cwd / name).write_bytes(b"a = '\xff'\n")
    assert str(machine.cwd / name) in machine.refusal()


def test_a_line_of_dotenv_that_cannot_be_parsed_is_reported(machine: Machine) -> None:
    machine.write(".env", f"PREFECT_API_URL=http://h/api\n{SECRET} no assignment\n")
    settings = machine.load()
    assert settings.api.url == "http://h/api"
    assert settings.warnings == (f"{machine.cwd / '.env'} line 2 cannot be parsed and is ignored.",)


def test_an_unknown_profile_on_the_command_line_is_refused(machine: Machine) -> None:
    path = machine.profiles("[profiles.a]\n[profiles.b]\n")
    refusal = machine.refusal(profile="c")
    assert f"'c' is not in {path}, which has: a, b" in refusal


def test_an_unknown_profile_by_other_means_is_prefects_default_with_a_warning(machine: Machine) -> None:
    machine.profiles('active = "gone"\n[profiles.a]\n')
    for environ in ({}, {"PREFECT_PROFILE": "nope"}):
        settings = machine.load(environ)
        assert settings.profile == "ephemeral"
        assert "is not in" in settings.warnings[0]


def test_the_environment_wins_over_the_profile_of_the_command_line(machine: Machine) -> None:
    machine.profiles(
        'active = "a"\n[profiles.a]\n[profiles.b]\nPREFECT_API_URL = "http://b/api"\nPREFECT_API_KEY = "b"\n'
    )
    settings = machine.load({"PREFECT_API_URL": "http://env/api"}, profile="b")
    assert settings.api.url == "http://env/api"
    assert settings.api.key is not None
    assert settings.profile == "b"


def test_prefects_own_profiles_serve_where_there_is_no_file(machine: Machine) -> None:
    settings = machine.load(profile="local")
    assert settings.api.url == BUNDLED_PROFILES["local"]["PREFECT_API_URL"]


def test_a_profiles_file_that_is_named_and_missing_is_reported(machine: Machine) -> None:
    settings = machine.load({"PREFECT_PROFILES_PATH": "/none/profiles.toml"})
    assert "/none/profiles.toml" in settings.warnings[0]


def test_what_nobody_reads_is_reported(machine: Machine) -> None:
    machine.profiles('active = "p"\n[profiles.p]\nPREFECT_API_ULR = "http://h/api"\n')
    machine.write(
        "prefect.toml", "[api]\nulr = 1\n[headrace]\npyhton = 2\n[experiments.plugins]\nstrict = true\n"
    )
    machine.write(".env", "HEADRACE_PYHTON=x\nOTHER=y\n")
    warnings = machine.load({"HEADRACE_KILL": "x", "PREFECT_UNHEARD_OF": "x"}).warnings
    named = ["HEADRACE_KILL ", "HEADRACE_PYHTON ", "'api.ulr'", "'headrace.pyhton'", "'PREFECT_API_ULR'"]
    assert [any(name in warning for warning in warnings) for name in named] == [True] * len(warnings)


def test_the_certificates_of_the_environment_are_the_default(machine: Machine) -> None:
    assert machine.load({"SSL_CERT_FILE": "/ca.pem"}).api.ssl_cert_file == "/ca.pem"
    both = machine.load({"SSL_CERT_FILE": "/ca.pem", "PREFECT_API_SSL_CERT_FILE": ""})
    assert both.api.ssl_cert_file is None


def test_no_home_directory_matters_only_where_it_is_needed(tmp_path: Path) -> None:
    environ = {"PREFECT_HOME": "/p", "HEADRACE_STATE_DIR": "/s"}
    assert load_settings(environ=environ, cwd=tmp_path).home == Path("/p")
    with pytest.raises(SettingsError, match="set HOME"):
        load_settings(environ={"PREFECT_HOME": "~no-such-user/p"}, cwd=tmp_path)


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_a_parser_and_says_what_it_accepts(kind: Kind) -> None:
    shape = Shape(kind)
    assert shape.accepts
    if kind is not Kind.ANY:
        with pytest.raises(ValueError, match=r".*"):
            shape.parse(object())


@hypothesis_settings(deadline=None)
@given(st.sampled_from(list(CATALOGUE.by_name.values())), st.text(max_size=12))
def test_any_text_is_read_or_refused_and_what_was_read_can_be_exported_and_read_again(
    definition: Definition, text: str
) -> None:
    shape = definition.shape
    try:
        value = shape.parse(text)
    except ValueError:
        return
    exported = shape.to_text(value)
    # Prefect joins lists with commas, which these kinds read differently from the JSON they came from.
    if exported is not None and shape.kind not in {Kind.DELAY, Kind.WORDS, Kind.VACUUM}:
        assert shape.to_text(shape.parse(exported)) == exported


def test_how_runs_are_started_and_how_many(machine: Machine) -> None:
    default = machine.load().headrace
    assert (default.start_method, default.preload, default.max_starting) == ("warm", (), None)
    assert default.min_free_memory == 256 * 1024**2
    given = machine.load(
        {
            "HEADRACE_START_METHOD": "cold",
            "HEADRACE_PRELOAD": "pandas, numpy",
            "HEADRACE_MAX_STARTING": "3",
            "HEADRACE_MIN_FREE_MEMORY": "1GiB",
        }
    ).headrace
    assert (given.start_method, given.preload, given.max_starting) == ("cold", ("numpy", "pandas"), 3)
    assert given.min_free_memory == 1024**3
    flags = machine.load(flags={"HEADRACE_PRELOAD": "a,b", "HEADRACE_MIN_FREE_MEMORY": "0"}).headrace
    assert (flags.preload, flags.min_free_memory) == (("a", "b"), 0)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HEADRACE_START_METHOD", "hot", "warm"),
        ("HEADRACE_MAX_STARTING", "0", "at least 1"),
        ("HEADRACE_MIN_FREE_MEMORY", "lots", "a number of bytes"),
    ],
)
def test_how_runs_cannot_be_started(machine: Machine, name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        machine.load({name: value})

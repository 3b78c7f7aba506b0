"""Where settings come from: the layers of PROTOCOL 1.7, read and merged per setting.

Owns finding and reading the environment, `./.env`, `./prefect.toml`, `./pyproject.toml` and the profile, and
their precedence. Does not judge values: it hands on what each layer says, with the name of the layer.

Ours (`HEADRACE_*`) come from the same layers, from the table `[headrace]` of prefect.toml and
`[tool.headrace]` of pyproject.toml, but not from a profile: `prefect` itself complains about names in a
profile that it does not know.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Final, cast

from worker.settings_catalogue import CATALOGUE, OWN_PREFIX, OWN_SECTION

__all__ = ["Collected", "Entry", "SettingsError", "collect", "expand_user"]

DOTENV: Final = "./.env"
PREFECT_TOML: Final = "./prefect.toml"
PYPROJECT: Final = "./pyproject.toml"
DEFAULT_PROFILE: Final = "ephemeral"
# What Prefect ships as its own profiles.toml, used where the user has none.
BUNDLED_PROFILES: Final[Mapping[str, Mapping[str, object]]] = {
    "ephemeral": {"PREFECT_SERVER_EPHEMERAL_ENABLED": "true"},
    "local": {"PREFECT_API_URL": "http://127.0.0.1:4200/api"},
    "test": {
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///:memory:",
    },
    "cloud": {},
}
# Any of these makes Prefect ignore the user's profiles.
TEST_MODES: Final = (
    "PREFECT_TEST_MODE",
    "PREFECT_UNIT_TEST_MODE",
    "PREFECT_TESTING_TEST_MODE",
    "PREFECT_TESTING_UNIT_TEST_MODE",
)


class SettingsError(Exception):
    """A setting, or a file of settings, is unusable. The text is one sentence with the fix, no secrets."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one layer says about one setting."""

    raw: object = field(repr=False)
    source: str


@dataclass(frozen=True, slots=True)
class Collected:
    """The merged layers, keyed by the variable of each setting."""

    entries: Mapping[str, Entry]
    profile: str | None
    """The profile in force; None where Prefect's test mode ignores profiles."""
    warnings: tuple[str, ...]
    """What was ignored, one sentence each."""


@dataclass(frozen=True, slots=True)
class _Layer:
    entries: Mapping[str, Entry]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of the working directory, parsed."""

    dotenv: Mapping[str, str]
    dotenv_warnings: tuple[str, ...]
    prefect: Mapping[str, object]
    tool: Mapping[str, object]
    """The `[tool]` of pyproject.toml."""

    @property
    def tool_prefect(self) -> Mapping[str, object]:
        return _table(self.tool, "prefect", PYPROJECT)


def collect(*, environ: Mapping[str, str], cwd: Path, profile: str | None) -> Collected:
    """Read every layer and let the strongest win, setting by setting.

    Raises SettingsError for a file that cannot be read and for a `profile` that does not exist.
    """
    pyproject = _read_toml(cwd / "pyproject.toml")
    dotenv, dotenv_warnings = _read_dotenv(cwd / ".env", environ)
    files = _Files(
        dotenv=dotenv,
        dotenv_warnings=dotenv_warnings,
        prefect=_read_toml(cwd / "prefect.toml"),
        tool=_table(pyproject, "tool", PYPROJECT),
    )
    name, profile_layer = None, _Layer({})
    if not any(environ.get(variable) for variable in TEST_MODES):
        name, profile_layer = _active_profile(_Profiles.find(environ, files, cwd), environ, profile)
    own = _table(files.tool, OWN_SECTION, PYPROJECT)
    layers = (
        _variables(environ, "environment"),
        _variables(files.dotenv, DOTENV),
        _Layer({}, files.dotenv_warnings),
        _toml_layer(files.prefect, PREFECT_TOML),
        _toml_layer({**files.tool_prefect, OWN_SECTION: own}, PYPROJECT),
        profile_layer,
        _toml_layer(_plugins_before_they_moved(files.prefect), PREFECT_TOML),
        _toml_layer(_plugins_before_they_moved(files.tool_prefect), PYPROJECT),
    )
    merged: dict[str, Entry] = {}
    for layer in reversed(layers):
        merged |= layer.entries
    return Collected(
        entries=merged, profile=name, warnings=tuple(text for layer in layers for text in layer.warnings)
    )


def expand_user(path: Path, environ: Mapping[str, str]) -> Path:
    """`path` with a leading `~` replaced, by HOME of `environ` if it is set. Raises SettingsError."""
    if path.parts[:1] == ("~",) and environ.get("HOME"):
        return Path(environ["HOME"], *path.parts[1:])
    try:
        return path.expanduser()
    except RuntimeError:
        raise SettingsError(
            f"The home directory in {str(path)!r} cannot be found; set HOME, or PREFECT_HOME and"
            " HEADRACE_STATE_DIR to absolute paths."
        ) from None


def _variables(variables: Mapping[str, str], source: str) -> _Layer:
    """The settings among environment variables, whose names may be in any case."""
    named: dict[str, object] = {variable.upper(): value for variable, value in variables.items()}
    return _Layer(
        _named(named, source),
        tuple(
            f"{name} ({source}) is not a setting of headrace and is ignored."
            for name in named
            if name.startswith(OWN_PREFIX) and name not in CATALOGUE.by_name
        ),
    )


def _named(named: Mapping[str, object], source: str) -> dict[str, Entry]:
    """The settings among upper-case names. A legacy name yields to the one that replaced it."""
    legacy = {
        new: Entry(named[old], f"{source}, as {old}") for old, new in CATALOGUE.legacy.items() if old in named
    }
    return legacy | {name: Entry(named[name], source) for name in CATALOGUE.by_name if name in named}


def _read_text(path: Path) -> str | None:
    """The text of a file; None if there is none."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}; correct its permissions.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not UTF-8 text; save it as UTF-8.") from None


def _read_dotenv(path: Path, environ: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The variables of a .env file, `${NAME}` replaced, as python-dotenv reads it for Prefect."""
    text = _read_text(path)
    if text is None:
        return {}, ()
    from dotenv.parser import parse_stream  # noqa: PLC0415 - few directories have such a file, and every start looks
    from dotenv.variables import parse_variables  # noqa: PLC0415 - same

    values: dict[str, str] = {}
    warnings: list[str] = []
    for binding in parse_stream(StringIO(text)):
        if binding.error:
            warnings.append(f"{path} line {binding.original.line} cannot be parsed and is ignored.")
        elif binding.key is not None and binding.value is not None:
            known = {**environ, **values}
            values[binding.key] = "".join(atom.resolve(known) for atom in parse_variables(binding.value))
    return values, tuple(warnings)


def _read_toml(path: Path) -> Mapping[str, object]:
    text = _read_text(path)
    if text is None:
        return {}
    import tomllib  # noqa: PLC0415 - as for .env files

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}; correct it.") from None


def _table(parent: Mapping[str, object], key: str, file: str) -> Mapping[str, object]:
    value = parent.get(key, {})
    if not isinstance(value, dict):
        raise SettingsError(f"{key!r} in {file} must be a table; correct it.")
    return cast("dict[str, object]", value)


def _toml_layer(tree: Mapping[str, object], source: str) -> _Layer:
    entries: dict[str, Entry] = {}
    unknown: list[str] = []
    for path, value in _leaves(tree, "", source):
        if path in CATALOGUE.by_path:
            entries[CATALOGUE.by_path[path].name] = Entry(value, source)
        elif path != "experiments.plugins":
            unknown.append(f"{path!r} in {source} is not a setting and is ignored.")
    return _Layer(entries, tuple(unknown))


def _leaves(table: Mapping[str, object], prefix: str, source: str) -> Iterator[tuple[str, object]]:
    """Every value outside the sections, with its dotted path."""
    for key, value in table.items():
        path = f"{prefix}{key}"
        if path in CATALOGUE.sections:
            yield from _leaves(_table(table, key, source), f"{path}.", source)
        else:
            yield path, value


def _plugins_before_they_moved(tree: Mapping[str, object]) -> Mapping[str, object]:
    """Prefect's weakest layer: `[plugins]` under its former name, `[experiments.plugins]`."""
    experiments = tree.get("experiments")
    if not isinstance(experiments, dict):
        return {}
    return {"plugins": cast("dict[str, object]", experiments).get("plugins", {})}


@dataclass(frozen=True, slots=True)
class _Profiles:
    """A profiles file: where it is, what it holds."""

    where: str
    content: Mapping[str, object]
    warnings: tuple[str, ...] = ()

    @classmethod
    def find(cls, environ: Mapping[str, str], files: _Files, cwd: Path) -> "_Profiles":
        """By the look-up of PROTOCOL 1.7; a file that is named and missing counts as empty."""
        for named in (
            environ.get("PREFECT_PROFILES_PATH"),
            files.dotenv.get("PREFECT_PROFILES_PATH"),
            files.prefect.get("profiles_path"),
            files.tool_prefect.get("profiles_path"),
        ):
            if isinstance(named, str) and named:
                path = cwd / named
                missing = (f"The profiles file {path} (PREFECT_PROFILES_PATH) does not exist.",)
                return cls(str(path), _read_toml(path), () if path.exists() else missing)
        if home := environ.get("PREFECT_HOME"):
            path = cwd / home / "profiles.toml"
            return cls(str(path), _read_toml(path))
        path = expand_user(Path("~", ".prefect", "profiles.toml"), environ)
        if _read_text(path) is not None:
            return cls(str(path), _read_toml(path))
        return cls("Prefect's own profiles", {"active": DEFAULT_PROFILE, "profiles": BUNDLED_PROFILES})


def _active_profile(profiles: _Profiles, environ: Mapping[str, str], asked: str | None) -> tuple[str, _Layer]:
    """The profile in force. Raises SettingsError if the one `asked` for on the command line is missing."""
    tables = _table(profiles.content, "profiles", profiles.where)
    wanted = asked or environ.get("PREFECT_PROFILE") or profiles.content.get("active")
    if isinstance(wanted, str) and wanted in tables:
        source = f"profile {wanted!r} ({profiles.where})"
        return wanted, _profile_layer(_table(tables, wanted, profiles.where), source)
    missing = f"Profile {wanted!r} is not in {profiles.where}, which has: {', '.join(tables) or 'none'};"
    if asked:
        raise SettingsError(f"{missing} name one of those, or create it with `prefect profile create`.")
    source = f"profile {DEFAULT_PROFILE!r} (Prefect's own)"
    return DEFAULT_PROFILE, _Layer(
        _named(BUNDLED_PROFILES[DEFAULT_PROFILE], source),
        (*profiles.warnings, *([f"{missing} Prefect's default profile is used."] if wanted else [])),
    )


def _profile_layer(table: Mapping[str, object], source: str) -> _Layer:
    entries = {
        name: entry for name, entry in _named(table, source).items() if not name.startswith(OWN_PREFIX)
    }
    return _Layer(
        entries,
        tuple(
            f"{name!r} in {source} is not a setting of Prefect and is ignored."
            for name in table
            if name not in entries and name not in CATALOGUE.legacy
        ),
    )

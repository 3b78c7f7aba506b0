"""What a flow sees when it is started warm is what it sees when it is started cold, but for a short list.

The list is `tests/support/start_methods_differences.py`. A second cold run shows that nothing else differs by itself, and
a cold run with another variable shows that the comparison notices.
"""

from collections.abc import Mapping
from itertools import combinations

import pytest

from tests.support.api import Json, PrefectApi
from tests.support.daemons import StartWorker
from tests.support.start_methods import Pair, Place, Run, Scenario, run_side_by_side
from tests.support.start_methods_differences import (
    DIFFERENCES,
    NEVER_SHARED,
    SHARED,
    Difference,
    Shared,
    difference,
    unexplained,
)

pytestmark = pytest.mark.timeout(1200)


def configure_project(run: Run) -> None:
    """The files in its working directory by which a project configures Prefect."""
    (run.project / "prefect.toml").write_text('[logging]\nlevel = "DEBUG"\n[api]\nrequest_timeout = 41.0\n')
    (run.project / ".env").write_text("PREFECT_RESULTS_PERSIST_BY_DEFAULT=true\nNOT_PREFECTS=1\n")


def make_home(run: Run) -> None:
    """Another Prefect home with a profile of its own."""
    home = run.side.shared / "another-home"
    home.mkdir(exist_ok=True)
    (home / "profiles.toml").write_text(
        'active = "mine"\n[profiles.mine]\nPREFECT_CLIENT_MAX_RETRIES = "7"\n[profiles.other]\nPREFECT_LOGGING_LEVEL = "ERROR"\n'
    )


SCENARIOS = (
    Scenario(name="plain", entrypoint="seen.py:seen"),
    Scenario(name="plain again", entrypoint="seen.py:seen"),
    Scenario(name="async", entrypoint="seen.py:seen_async"),
    Scenario(name="in a task", entrypoint="seen.py:seen_in_a_task"),
    Scenario(
        name="variables",
        entrypoint="seen.py:seen",
        variables={
            "env": {
                "TZ": "America/St_Johns",
                "PREFECT_LOGGING_LEVEL": "DEBUG",
                "PREFECT_API_REQUEST_TIMEOUT": "43",
                "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
                "PREFECT_LOGGING_EXTRA_LOGGERS": "urllib3,mine",
                "PREFECT_API_KEY": "not-a-real-key-5512",
                "TMPDIR": "<PROJECT>",
                "MINE": "a value\nof two lines = 'quoted'",
                "EMPTY": "",
            }
        },
    ),
    Scenario(
        name="another Prefect home",
        entrypoint="seen.py:seen",
        prepare=make_home,
        variables={"env": {"PREFECT_HOME": "<SHARED>/another-home"}},
    ),
    Scenario(
        name="another profile",
        entrypoint="seen.py:seen",
        prepare=make_home,
        variables={
            "env": {
                "PREFECT_PROFILES_PATH": "<SHARED>/another-home/profiles.toml",
                "PREFECT_PROFILE": "other",
            }
        },
    ),
    Scenario(
        name="read once",
        entrypoint="seen.py:seen",
        variables={
            "env": {
                "LANG": "C",
                "HOME": "/nonexistent",
                "PYTHONPATH": "<PROJECT>/package",
                "PYTHONOPTIMIZE": "1",
                "PYTHONHASHSEED": "5",
            }
        },
        cold_because="HOME",
    ),
    Scenario(
        name="configured directory",
        entrypoint="seen.py:seen",
        prepare=configure_project,
        place=Place.WORKING_DIRECTORY,
    ),
    Scenario(name="copied", entrypoint="seen.py:seen", place=Place.COPIED),
)
NAMES = tuple(scenario.name for scenario in SCENARIOS)
# Prefect's threads that end when they have had nothing to do for a while.
COME_AND_GO = {"EventsWorkerThread", "AnyIO worker thread"}
MOMENTS = ("imported", "body")


@pytest.fixture(scope="module")
def pair(api: PrefectApi, module_daemon: StartWorker, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """All scenarios' runs under both methods."""
    return run_side_by_side(
        SCENARIOS, api=api, start=module_daemon, directory=tmp_path_factory.mktemp("start-methods")
    )


def seen(run: Run, moment: str) -> Json:
    """What the run saw at that moment, without what names it."""
    assert run.state()["type"] == "COMPLETED", run.story()
    facts: Json = run.fact(moment)["facts"]
    process: Json = facts["process"]
    process["parent"] = "the daemon" if process["parent"] == run.side.worker.pid else "another process"
    # Prefect's threads open and close files and connections: what kinds there are is left to compare.
    others = [entry for entry in facts["descriptors"]["others"] if '"target": "/' not in entry]
    facts["descriptors"]["others"] = sorted(set(others))
    threads = facts["concurrency"]["threads"]
    facts["concurrency"]["threads"] = [name for name in threads if name not in COME_AND_GO]
    # Prefect makes this list from a set.
    logging_values = facts["settings"]["values"]["logging"]
    logging_values["extra_loggers"] = sorted(logging_values["extra_loggers"] or ())
    return run.neutral(facts)


@pytest.mark.parametrize("name", NAMES)
def test_it_was_started_as_it_should_be(name: str, pair: Pair) -> None:
    warm, cold = pair.both(name)
    assert cold.launched()["start_method"] == "cold"
    reason = warm.launched()["cold_because"]
    if warm.scenario.cold_because is None:
        assert (warm.launched()["start_method"], reason) == ("warm", None)
    else:
        assert warm.launched()["start_method"] == "cold"
        assert warm.scenario.cold_because in reason


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_flow_sees_the_same(name: str, moment: str, pair: Pair) -> None:
    if name == "in a task" and moment == "imported":
        pytest.skip("a task has only the one moment")
    warm, cold = pair.both(name)
    found = unexplained(difference(seen(warm, moment), seen(cold, moment)))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("listed", DIFFERENCES, ids=lambda listed: listed.facts)
def test_what_is_listed_does_differ(listed: Difference, pair: Pair) -> None:
    """Or it is out of date, and the documentation with it."""
    assert any(
        listed.explains(*found)
        for name in ("plain", "configured directory")
        for moment in MOMENTS
        for found in difference(*(seen(run, moment) for run in pair.both(name)))
    )


@pytest.mark.parametrize("moment", MOMENTS)
def test_two_cold_starts_see_the_same_without_any_list(moment: str, pair: Pair) -> None:
    once, again = (seen(pair.cold[name], moment) for name in ("plain", "plain again"))
    found = unexplained(difference(once, again), allowed=())
    assert not found, "\n".join(found)


@pytest.mark.parametrize("moment", MOMENTS)
def test_two_warm_starts_see_the_same_without_any_list(moment: str, pair: Pair) -> None:
    once, again = (seen(pair.warm[name], moment) for name in ("plain", "plain again"))
    found = unexplained(difference(once, again), allowed=())
    assert not found, "\n".join(found)


def test_the_comparison_notices(pair: Pair) -> None:
    """Other variables of the same way of starting are told apart at every place where they show."""
    plain, other = (seen(pair.cold[name], "body") for name in ("plain", "variables"))
    found = {path for path, _, _ in difference(plain, other)}
    assert found >= {
        "environment/TZ",
        "environment/MINE",
        "first_environment/MINE",
        "world/time",
        "world/local_time",
        "world/tempfile",
        "settings/values/api/request_timeout",
        "settings/values/api/key",
        "logging/loggers/prefect/level",
        "logging/loggers/mine/level",
    }
    assert not any(path.startswith(("signals/", "main/", "streams/")) for path in found), found


@pytest.mark.parametrize("method", ["warm", "cold"])
def test_a_process_is_found_by_its_runs_mark(method: str, pair: Pair) -> None:
    """In the process table, which shows the first environment of a process and not what became of it."""
    for run in (pair.warm if method == "warm" else pair.cold).values():
        facts = run.fact("body")["facts"]
        mark = facts["first_environment"]["HEADRACE_EXECUTION_ID"]
        assert mark == facts["environment"]["HEADRACE_EXECUTION_ID"]


@pytest.mark.parametrize("fact", ["pid", *NEVER_SHARED])
def test_no_two_processes_have_it_in_common(fact: str, pair: Pair) -> None:
    """Whoever started them: two runs of one fork server have nothing random, no name and no secret in common."""
    values = [one[fact] for one in own_facts(pair.warm) + own_facts(pair.cold)]
    assert len(set(values)) == len(values) > len(NAMES)


def test_no_two_processes_have_a_connection_in_common(pair: Pair) -> None:
    """Sockets and pipes by inode: none was inherited from the fork server, where all would have it."""
    for one, other in combinations([set(facts["sockets"]) for facts in own_facts(pair.warm)], 2):
        assert not one & other


@pytest.mark.parametrize("shared", SHARED, ids=lambda shared: shared.fact)
def test_what_forked_processes_share_is_documented(shared: Shared, pair: Pair) -> None:
    warm = {one[shared.fact] for one in own_facts(pair.warm)}
    cold = [one[shared.fact] for one in own_facts(pair.cold)]
    assert len(warm) == 1
    assert len(set(cold)) == len(cold)


def own_facts(runs: Mapping[str, Run]) -> list[Json]:
    """What each process has that no other has, of those that were started with the side's own method."""
    return [run.fact("body")["own"] for run in runs.values() if run.scenario.cold_because is None]

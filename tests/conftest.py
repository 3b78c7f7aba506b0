"""Fixtures of every tier: a real Prefect server, daemons and stock workers on it, and the leak check.

Unit tests use none of the services; `tests/unit/conftest.py` forbids them the network.
"""

import signal
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support import leaks, services
from tests.support.api import PrefectApi
from tests.support.daemons import ROLE_DAEMON, ROLE_STOCK, StartWorker, worker_factory
from tests.support.server import PrefectServer, running_server, snapshot

TIERS_WITH_PROCESSES = ("server", "parity", "faults", "ui")
TESTS = Path(__file__).parent


def pytest_configure() -> None:
    """A shell has what it runs in the background ignore SIGINT, and so would all that a test starts to interrupt it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test the marker of its tier's directory, and put the quick ones last.

    Files are handed out in this order: what takes minutes begins early, and the small ones fill the rest of the time.
    """
    for item in items:
        if (tier := _tier(item)) in TIERS_WITH_PROCESSES:
            item.add_marker(tier)
    items.sort(key=lambda item: _tier(item) not in TIERS_WITH_PROCESSES)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the running daemons printed beside the failure they may have caused."""
    report = yield
    if report.failed and _tier(item) in TIERS_WITH_PROCESSES:
        for service in services.running:
            report.sections.append((f"{service.role} {service.name}", service.transcript()))
    return report


def _tier(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).parts[0]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def session_mark() -> str:
    """Carried in the environment of every process this session starts."""
    return uuid.uuid4().hex


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, session_mark: str) -> Iterator[None]:
    """After each test that may start processes: no process, run directory or descriptor of it is left."""
    if _tier(request.node) not in TIERS_WITH_PROCESSES:
        yield
        return
    before = leaks.open_descriptors()
    yield
    leaks.wait_for_no_leaks(mark=session_mark, descriptors_before=before)


@pytest.fixture(scope="session")
def prefect_server(
    tmp_path_factory: pytest.TempPathFactory, session_mark: str, migrated_database: Path
) -> Iterator[PrefectServer]:
    """The one server of the session, with default settings."""
    with running_server(tmp_path_factory.mktemp("server"), mark=session_mark) as server:
        snapshot(server, migrated_database)
        yield server


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's database right after its migrations; `prefect_server` leaves it here."""
    return tmp_path_factory.mktemp("database") / "migrated.db"


@pytest.fixture
def start_prefect_server(
    tmp_path_factory: pytest.TempPathFactory,
    session_mark: str,
    prefect_server: PrefectServer,
    migrated_database: Path,
) -> Callable[..., AbstractContextManager[PrefectServer]]:
    """A server of the test's own: `with start_prefect_server(PREFECT_SERVER_…="…") as server`.

    Settings are environment variables of the server; `port` chooses its port.
    """

    def start(*, port: int | None = None, **settings: str) -> AbstractContextManager[PrefectServer]:
        directory = tmp_path_factory.mktemp("special-server")
        return running_server(
            directory, mark=session_mark, port=port, settings=settings, database=migrated_database
        )

    return start


@pytest.fixture(scope="session")
def api(prefect_server: PrefectServer) -> Iterator[PrefectApi]:
    """The tests' own eyes on the session's server."""
    with prefect_server.api() as client:
        yield client


@pytest.fixture
def daemon(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartWorker]:
    """Start our daemon: `daemon(pool=…)`; ended with the test."""
    directory = tmp_path_factory.mktemp("daemon")
    with worker_factory(prefect_server, directory, role=ROLE_DAEMON) as start:
        yield start


@pytest.fixture(scope="module")
def module_daemon(
    prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartWorker]:
    """Start our daemon for all tests of a module."""
    directory = tmp_path_factory.mktemp("daemons")
    with worker_factory(prefect_server, directory, role=ROLE_DAEMON) as start:
        yield start


@pytest.fixture
def stock_worker(
    prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartWorker]:
    """Start `prefect worker start --type process`; ended with the test."""
    directory = tmp_path_factory.mktemp("stock")
    with worker_factory(prefect_server, directory, role=ROLE_STOCK) as start:
        yield start


@pytest.fixture(scope="module")
def module_stock_worker(
    prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartWorker]:
    """Start Prefect's own worker for all tests of a module."""
    directory = tmp_path_factory.mktemp("stocks")
    with worker_factory(prefect_server, directory, role=ROLE_STOCK) as start:
        yield start

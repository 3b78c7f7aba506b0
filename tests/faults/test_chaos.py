"""The short chaos run: daemons and flows killed at random, the server restarted, runs cancelled, nothing lost.

The same driver as `python -m tests.chaos`, where long runs are made. The seed changes with every session, as
pytest-randomly's does from which it comes: a chaos run that is always the same one soon shows nothing new.
"""

import random
from pathlib import Path

import pytest

from tests.chaos import report
from tests.chaos.__main__ import run_chaos
from tests.chaos.plan import Options

pytestmark = pytest.mark.thorough

# About a minute on two idle cores; a machine ten times slower must get through, too.
TIMEOUT = 1200


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.usefixtures("prefect_server")  # it makes the migrated database
def test_nothing_is_lost_in_chaos(tmp_path: Path, session_mark: str, migrated_database: Path) -> None:
    options = Options(runs=25, kills=8, engine_share=0.12, seed=random.randrange(2**32))
    evidence, violations = run_chaos(
        options, directory=tmp_path / "chaos", mark=session_mark, say=print, database=migrated_database
    )
    print(report.table(report.figures(evidence, options, violations)))
    assert not violations, f"with seed {options.seed}:\n{report.complaints(evidence, violations)}"

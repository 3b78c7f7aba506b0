"""`python -m tests.chaos --runs N --kills K`: one chaos run, its figures, its violations; exit code 1 if there are any.

Owns the command line and the directory everything lives in, which is kept when something is wrong.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from random import SystemRandom

from tests.chaos import report
from tests.chaos.driver import started
from tests.chaos.evidence import Evidence, gather
from tests.chaos.plan import Options
from tests.chaos.verdict import Violation, judge


def run_chaos(
    options: Options,
    *,
    directory: Path,
    mark: str,
    say: Callable[[str], None],
    database: Path | None = None,
) -> tuple[Evidence, list[Violation]]:
    """One chaos run from beginning to end; nothing of it is running afterwards.

    `directory` is empty or new, `mark` is carried by every process, `database` is a migrated one to begin with.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with started(options, directory=directory, mark=mark, say=say, database=database) as driver:
        driver.run()
        evidence = gather(driver)
    return evidence, judge(evidence.runs, evidence.remains, strangers=evidence.strangers)


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.runs < 1 or arguments.kills < 0 or arguments.daemons < 1 or arguments.limit < 1:
        parser.error("there must be a run, a daemon and a slot at least, and no fewer than 0 kills")
    if not 0 <= arguments.engine_share <= 1:
        parser.error(f"--engine-share {arguments.engine_share} is not between 0 and 1")
    # Whoever ends this wants everything ended that it has started.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    options = Options(
        runs=arguments.runs,
        kills=arguments.kills,
        daemons=arguments.daemons,
        limit=arguments.limit,
        seed=SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed,
        engine_share=arguments.engine_share,
        patience=arguments.patience,
    )
    directory = Path(tempfile.mkdtemp(prefix="headrace-chaos-"))
    print(f"{options}\nin {directory}", flush=True)
    evidence, violations = run_chaos(
        options, directory=directory, mark=uuid.uuid4().hex, say=lambda line: print(line, flush=True)
    )
    text = report.table(report.figures(evidence, options, violations))
    if violations:
        text += f"\n\n{report.complaints(evidence, violations)}"
    print(f"\n{text}", flush=True)
    if arguments.report is not None:
        arguments.report.write_text(f"{text}\n")
    if violations:
        print(f"\n{len(violations)} violations; the logs are kept in {directory}", file=sys.stderr)
        return 1
    shutil.rmtree(directory)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=int, required=True, metavar="N", help="flow runs to create")
    parser.add_argument(
        "--kills", type=int, required=True, metavar="K", help="SIGKILLs and SIGTERMs of daemons and flows"
    )
    parser.add_argument("--daemons", type=int, default=3, metavar="N")
    parser.add_argument("--limit", type=int, default=4, metavar="N", help="runs at a time of each daemon")
    parser.add_argument("--seed", type=int, metavar="S", help="of the plan (default: another one each time)")
    parser.add_argument(
        "--engine-share", type=float, default=0.25, metavar="F", help="of runs that have a real engine"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=150.0,
        metavar="S",
        help="seconds in which nothing moves before the waiting ends",
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write what is printed at the end here too"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""A flow inside a package, for entrypoints that name a module instead of a file."""

import os
import sys

import look
import notes
from prefect import flow

IMPORTED_AS = __name__
MAIN = ("name", "file", "package", "spec", "loader", "is_the_globals_of_main")


@flow
def seen_in_package(out: str) -> str:
    notes.note(
        out,
        "body",
        name=IMPORTED_AS,
        package=__package__,
        file=os.path.relpath(__file__),
        cwd=os.getcwd(),
        main={name: fact for name, fact in look.main_module().items() if name in MAIN},
        path=sys.path,
        is_in_modules=IMPORTED_AS in sys.modules,
        look=look.__file__,
    )
    return "seen"

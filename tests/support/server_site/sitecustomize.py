"""Imported at start by the interpreter of the tests' Prefect servers: cyclic garbage goes in a thread of its own.

A Prefect server on SQLite can stand still for a minute. When the garbage collector happens to run in the
event loop's thread and frees a database cursor, that waits for SQLite's mutex of the connection; the thread
that holds the mutex waits for a lock of the database, up to the server's busy timeout of 60 s; and the
transaction that holds the lock waits for the event loop. A collector in another thread waits alone.
"""

import gc
import threading

INTERVAL = 5.0


def collect_for_ever(stopped: threading.Event) -> None:
    while not stopped.wait(INTERVAL):
        gc.collect()


gc.disable()
threading.Thread(target=collect_for_ever, args=(threading.Event(),), name="garbage", daemon=True).start()

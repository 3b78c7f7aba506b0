"""The commands' own client of the server: it gives up, where the daemon's waits."""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from worker import log
from worker.api.client import PrefectClient
from worker.api.errors import ApiError, Misconfigured, Unauthorized
from worker.commands.session import EXIT_CREDENTIALS, CommandError
from worker.configuration import secrets_of
from worker.settings import Settings


@asynccontextmanager
async def connected(settings: Settings) -> AsyncGenerator[PrefectClient]:
    """A client in no worker's name; only its warnings are shown.

    Raises CommandError for what no call can succeed with, and for what a call inside raises.
    """
    log.configure(
        chosen_format="console",
        level="warning",
        redactor=log.Redactor(secrets_of(settings)),
        stream=sys.stderr,
    )
    if not settings.api.url:
        raise CommandError(
            "PREFECT_API_URL is not set: the address of the server's API, such as http://127.0.0.1:4200/api, in the"
            " environment or the active profile"
        )
    try:
        async with PrefectClient(settings=settings.api, worker_name=None, random=random.random) as client:
            yield client
    except Unauthorized as error:
        raise CommandError(
            f"the server refused our credentials: {error}", exit_code=EXIT_CREDENTIALS
        ) from error
    except Misconfigured as error:
        raise CommandError(str(error)) from error
    except ApiError as error:
        raise CommandError(
            f"the server did not do it: {error}; `headrace doctor` tells what is wrong"
        ) from error

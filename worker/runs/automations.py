"""Flow runs that automations create: finding the event that triggered one, and what its templates look at.

A self-hosted server renders an automation's parameters but hands its job variables on as they are written, so
this side renders them (PROTOCOL 5.5, DESIGN part 5). Owns the search for the triggering event, which may not be
persisted yet, and the context of the templates, as far as it can be had truthfully afterwards. What a template
is and what it renders to is `automation_templates.py`; the objects are `automation_objects.py`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from uuid import UUID

from worker.api.errors import NotFound
from worker.api.models import FlowRun
from worker.api.records import ServerEvent
from worker.runs.automation_context import Action, action_of, template_context
from worker.runs.automation_errors import AutomationTemplateError
from worker.runs.automation_templates import (
    VARIABLES_NAME,
    References,
    needs_rendering,
    references,
    render,
)

__all__ = [
    "CREATED_BY",
    "EVENT_WAIT",
    "AutomationTemplateError",
    "EventSource",
    "TemplateSource",
    "needs_rendering",
    "rendered_job_variables",
]

CREATED_BY = "AUTOMATION"
"""`created_by.type` of a flow run that an automation's action created (PROTOCOL 5.5)."""

EVENT_WAIT = 30.0
"""Seconds to wait for an event to be persisted; the server takes up to about 5 (PROTOCOL 2.10)."""

_FIRST_DELAY = 0.25
_LONGEST_DELAY = 2.0

# The server's default reaches back half a year and not into the future, but a sender chooses `occurred` freely.
_ANY_TIME = {"since": "1970-01-01T00:00:00Z", "until": "9999-01-01T00:00:00Z"}
_MOST_EVENTS = 50

_ACTION_TRIGGERED = "prefect.automation.action.triggered"

Found = TypeVar("Found")


class EventSource(Protocol):
    """Reads persisted events (`POST /events/filter`); waits out an unreachable server by itself."""

    async def filter_events(self, event_filter: Mapping[str, Any], limit: int, /) -> Sequence[ServerEvent]:
        """At most `limit` events that match."""
        ...


class TemplateSource(EventSource, Protocol):
    """Reads what templates name besides events; both methods raise `worker.api.errors.NotFound`."""

    async def read_object(self, *segments: str) -> Mapping[str, Any]:
        """The JSON of `GET /<segments joined by slashes>`."""
        ...

    async def read_variable(self, name: str, /) -> Any:
        """The value of a workspace variable."""
        ...


async def rendered_job_variables(
    flow_run: FlowRun,
    source: TemplateSource,
    *,
    sleep: Callable[[float], Awaitable[None]],
    deadline: float = EVENT_WAIT,
) -> dict[str, Any]:
    """The job variables of an automation's run with all templates rendered.

    Reads only what the templates name. `deadline` bounds, in seconds, the waiting for each event that is not
    persisted yet; the time of the requests themselves is not counted, so an outage of the server is not taken
    for a missing event. Raises AutomationTemplateError, and whatever `source` raises for an unreachable server.
    """
    job_variables = flow_run.job_variables
    needed = references(job_variables)
    reader = _Reader(source=source, sleep=sleep, deadline=deadline)
    variables = await reader.variables(needed)
    context: dict[str, Any] = {VARIABLES_NAME: variables}
    if needed.names - {VARIABLES_NAME}:
        context |= await template_context(needed.names, await reader.action(flow_run), reader)
    return render(job_variables, context, variables)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads for one rendering."""

    source: TemplateSource
    sleep: Callable[[float], Awaitable[None]]
    deadline: float

    async def variables(self, needed: References) -> dict[str, Any]:
        """The workspace variables the templates name, as far as they exist."""
        found: dict[str, Any] = {}
        for name in sorted(needed.variables):
            try:
                found[name] = await self.source.read_variable(name)
            except NotFound:
                continue
        return found

    async def action(self, flow_run: FlowRun) -> Action:
        """What created `flow_run`."""

        async def look() -> Action | None:
            about_run = {"any_resource": {"id": [f"prefect.flow-run.{flow_run.id}"]}}
            named = {"event": {"name": [_ACTION_TRIGGERED]}, "occurred": _ANY_TIME}
            return action_of(flow_run, await self.source.filter_events({**about_run, **named}, _MOST_EVENTS))

        return await self._until(look, "the event saying which automation's action created this run")

    async def event(self, event_id: UUID, what: str) -> ServerEvent:
        """The event with that id."""

        async def look() -> ServerEvent | None:
            by_id = {"id": {"id": [str(event_id)]}, "occurred": _ANY_TIME}
            return next(iter(await self.source.filter_events(by_id, 1)), None)

        return await self._until(look, f"{what} {event_id}")

    async def object(self, kind: str, /, *segments: str) -> Mapping[str, Any]:
        """An object of the API, which must still exist."""
        try:
            return await self.source.read_object(*segments)
        except NotFound as error:
            raise AutomationTemplateError(
                f"the job variables name {kind}, but the {kind.replace('_', ' ')} at /{'/'.join(segments)} does not exist any more"
            ) from error

    async def _until(self, look: Callable[[], Awaitable[Found | None]], what: str) -> Found:
        waited, delay = 0.0, _FIRST_DELAY
        while (found := await look()) is None:
            if waited >= self.deadline:
                raise AutomationTemplateError(
                    f"the job variables are templates over the event that triggered this run's automation, but "
                    f"{what} is not on the server after waiting {waited:g} s; it may have outlived the server's "
                    "retention of events"
                )
            pause = min(delay, self.deadline - waited)
            await self.sleep(pause)
            waited, delay = waited + pause, min(2 * delay, _LONGEST_DELAY)
        return found

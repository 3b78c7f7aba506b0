"""The events that Prefect's worker emits, so that the worker's page and the run's page look as ever.

Names, resources and relations are PROTOCOL 2.10; sending is the outbox's work.
"""

from dataclasses import dataclass
from uuid import UUID

from worker.api.models import Deployment, Flow, FlowRun, WorkPool
from worker.runs.outbox import Outbox


@dataclass(frozen=True, slots=True)
class Subject:
    """What a run's events relate to."""

    flow_run: FlowRun
    flow: Flow | None
    deployment: Deployment | None
    work_pool: WorkPool


class WorkerEvents:
    """Emits the worker's events in its own name; one for the daemon's life."""

    def __init__(self, *, outbox: Outbox, worker_name: str, version: str) -> None:
        self._outbox = outbox
        self._resource = {
            "prefect.resource.id": f"prefect.worker.process.{slug(worker_name)}",
            "prefect.resource.name": worker_name,
            "prefect.version": version,
            "prefect.worker-type": "process",
        }
        self._started: UUID | None = None

    def started(self, pool: WorkPool) -> None:
        """The worker is online."""
        self._started = self._outbox.emit(
            "prefect.worker.started", resource=self._resource, related=[_pool(pool)]
        )

    def stopped(self, pool: WorkPool) -> None:
        """The worker has ended its work."""
        self._outbox.emit(
            "prefect.worker.stopped", resource=self._resource, related=[_pool(pool)], follows=self._started
        )

    def submitted(self, subject: Subject) -> UUID:
        """A run's process is about to start; the id is for the event that follows."""
        return self._outbox.emit(
            "prefect.worker.submitted-flow-run", resource=self._resource, related=related_resources(subject)
        )

    def executed(
        self, subject: Subject, *, pid: int, status_code: int | None, submitted: UUID | None
    ) -> None:
        """A run's process has ended."""
        related = related_resources(subject)
        for resource in related:
            if resource["prefect.resource.role"] == "flow-run":
                resource["prefect.infrastructure.identifier"] = str(pid)
                resource["prefect.infrastructure.status-code"] = str(status_code)
        self._outbox.emit(
            "prefect.worker.executed-flow-run", resource=self._resource, related=related, follows=submitted
        )


def related_resources(subject: Subject) -> list[dict[str, str]]:
    """Deployment, flow, flow run, tags and work pool, in the order of Prefect's worker."""
    related: list[dict[str, str]] = []
    tags = set(subject.flow_run.tags)
    if subject.deployment is not None:
        related.append(_related("deployment", subject.deployment.id, subject.deployment.name))
        tags.update(subject.deployment.tags)
    if subject.flow is not None:
        related.append(_related("flow", subject.flow.id, subject.flow.name))
        tags.update(subject.flow.tags)
    related.append(_related("flow-run", subject.flow_run.id, subject.flow_run.name))
    related.extend(
        {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in sorted(tags)
    )
    related.append(_pool(subject.work_pool))
    return related


def _pool(pool: WorkPool) -> dict[str, str]:
    return _related("work-pool", pool.id, pool.name)


def _related(kind: str, object_id: UUID, name: str) -> dict[str, str]:
    return {
        "prefect.resource.id": f"prefect.{kind}.{object_id}",
        "prefect.resource.role": kind,
        "prefect.resource.name": name,
    }


def slug(name: str) -> str:
    """Lower-case letters, digits and dashes, as resource ids carry names."""
    dashed = "".join(char if char.isascii() and char.isalnum() else "-" for char in name.lower())
    return "-".join(part for part in dashed.split("-") if part)

"""Automations: job variables of a run-deployment action that are Jinja over the event that fired it.

A self-hosted server hands them on as they are (PROTOCOL 5.5), so the daemon renders them.
"""

import uuid
from contextlib import suppress
from dataclasses import dataclass

import pytest

from tests.support.api import Json, PrefectApi
from tests.support.daemons import Worker
from tests.support.project import Project
from tests.support.wait import wait_for

pytestmark = pytest.mark.thorough

FIRINGS = 6


@dataclass(frozen=True, slots=True)
class Automation:
    """An automation that starts a deployment when its own event occurs."""

    api: PrefectApi
    automation_id: str
    deployment_id: str
    event: str

    def fire(self, *, resource: dict[str, str], payload: Json) -> None:
        self.api.emit(self.event, resource=resource, payload=payload)

    def run(self, *, payload: Json) -> str:
        """Fire it and wait for the run that it starts; its id.

        A server takes a moment to know a new automation, and loses the events of that moment: then once more.
        """
        for _ in range(FIRINGS):
            self.fire(
                resource={"prefect.resource.id": "e2e.thing.1", "prefect.resource.name": "thing"},
                payload=payload,
            )
            with suppress(AssertionError):
                return wait_for(
                    lambda: self.api.runs_of_deployment(self.deployment_id),
                    timeout=15,
                    interval=0.3,
                    description="the automation's run",
                )[0]["id"]
        raise AssertionError(f"{FIRINGS} events have not made the automation start its run")


def automate(
    project: Project, name: str, *, variables: Json, deployment_env: Json | None = None
) -> Automation:
    api = project.api
    deployment_id = project.deploy(name=name, job_variables={"env": deployment_env or {}})
    event = f"e2e.{uuid.uuid4().hex[:8]}"
    body: Json = {
        "name": name,
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "expect": [event],
            "threshold": 1,
            "within": 0,
        },
        "actions": [
            {
                "type": "run-deployment",
                "source": "selected",
                "deployment_id": deployment_id,
                "job_variables": variables,
            }
        ],
    }
    automation_id = api.post("/automations/", body)["id"]
    return Automation(api=api, automation_id=automation_id, deployment_id=deployment_id, event=event)


@pytest.fixture(scope="module")
def automations(module_project: Project, worker: Worker) -> dict[str, Automation]:
    """Both automations."""
    made = {
        "renders": automate(
            module_project,
            "renders",
            variables={
                "env": {
                    "FROM_PAYLOAD": "{{ event.payload.value }}",
                    "FROM_RESOURCE": "{{ event.resource['prefect.resource.id'] }}",
                    "SENTENCE": "{{ event.payload.value | upper }} by {{ automation.name }}",
                    "PLAIN": "{{ name }} stays",
                }
            },
            deployment_env={"FROM_PAYLOAD": "deployment", "ONLY_DEPLOYMENT": "yes"},
        ),
        "cannot": automate(
            module_project, "cannot", variables={"env": {"BROKEN": "{{ event.payload.value / 0 }}"}}
        ),
    }
    wait_for(
        lambda: len(module_project.api.post("/automations/filter", {"limit": 50})) >= len(made),
        description="the automations",
    )
    return made


def test_a_template_is_rendered_over_the_event(
    module_project: Project, automations: dict[str, Automation]
) -> None:
    run_id = automations["renders"].run(payload={"value": "from the event"})
    environment = module_project.seen(run_id)["env"]
    expected = {
        "FROM_PAYLOAD": "from the event",
        "FROM_RESOURCE": "e2e.thing.1",
        "SENTENCE": "FROM THE EVENT by renders",
        "PLAIN": "{{ name }} stays",
        "ONLY_DEPLOYMENT": "yes",
    }
    assert {name: environment.get(name) for name in expected} == expected
    assert module_project.api.flow_run(run_id)["created_by"]["type"] == "AUTOMATION"


def test_a_template_that_cannot_be_rendered_crashes_its_run_with_the_reason(
    api: PrefectApi, module_project: Project, automations: dict[str, Automation]
) -> None:
    run_id = automations["cannot"].run(payload={"value": 1})
    message = api.wait_for_state(run_id, "CRASHED")["state"]["message"]
    assert message.startswith("Failed to submit flow run to infrastructure: ")
    assert "BROKEN" in message
    assert "division" in message
    assert not module_project.facts(run_id, "seen")

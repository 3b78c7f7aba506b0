"""What a flow run is made of: deployments, flows, blocks, variables and other objects, read one at a time.

Owns paths and answers. It writes none of them; putting their values into a run is `worker.runs`.
"""

from typing import Any, Unpack
from uuid import UUID

from worker.api.connection import path
from worker.api.endpoints import Endpoints
from worker.api.models import Deployment, Flow
from worker.api.transport import Patience

_SECRETS = {"include_secrets": "true"}


class DefinitionEndpoints(Endpoints):
    """The calls about what a run is made of; `NotFound` if the object was deleted."""

    async def read_deployment(self, deployment_id: UUID, **patience: Unpack[Patience]) -> Deployment:
        """One deployment; `NotFound` if it was deleted."""
        operation = f"read deployment {deployment_id}"
        return self._read(
            Deployment,
            await self._get(path("deployments", str(deployment_id)), operation, patience),
            operation,
        )

    async def read_deployment_by_name(
        self, flow_name: str, name: str, **patience: Unpack[Patience]
    ) -> Deployment:
        """One deployment by its flow's name and its own (PROTOCOL 2.4)."""
        operation = f"read deployment '{flow_name}/{name}'"
        answer = await self._get(path("deployments", "name", flow_name, name), operation, patience)
        return self._read(Deployment, answer, operation)

    async def deployment_names(self, **patience: Unpack[Patience]) -> list[str]:
        """`flow/deployment` of the deployments on the first page of all; enough to guess what was meant."""
        operation = "list deployments"
        answer = await self._post(path("deployments", "filter"), operation, {"sort": "NAME_ASC"}, patience)
        deployments = self._read_each(Deployment, self._list(answer, operation), operation)
        ids = sorted({str(one.flow_id) for one in deployments if one.flow_id is not None})
        body = {"flows": {"id": {"any_": ids}}}
        answer = await self._post(path("flows", "filter"), "list flows", body, patience)
        flows = self._read_each(Flow, self._list(answer, "list flows"), "list flows")
        return [f"{flow.name}/{one.name}" for one in deployments for flow in flows if flow.id == one.flow_id]

    async def read_flow(self, flow_id: UUID, **patience: Unpack[Patience]) -> Flow:
        """One flow."""
        operation = f"read flow {flow_id}"
        return self._read(Flow, await self._get(path("flows", str(flow_id)), operation, patience), operation)

    async def read_block_document(
        self, block_document_id: UUID, **patience: Unpack[Patience]
    ) -> dict[str, Any]:
        """One block document as the server gives it, secrets in the clear."""
        operation = f"read block document {block_document_id}"
        return self._object(
            await self._get(path("block_documents", str(block_document_id)), operation, patience, _SECRETS),
            operation,
        )

    async def read_block_document_by_name(
        self, type_slug: str, name: str, **patience: Unpack[Patience]
    ) -> dict[str, Any]:
        """One block document by type and name, secrets in the clear; `NotFound` if either is wrong."""
        operation = f"read block document {type_slug}/{name}"
        where = path("block_types", "slug", type_slug, "block_documents", "name", name)
        return self._object(await self._get(where, operation, patience, _SECRETS), operation)

    async def read_variable(self, name: str, **patience: Unpack[Patience]) -> Any:
        """The value of a variable, any JSON; `NotFound` if there is none of that name."""
        operation = f"read variable {name!r}"
        variable = self._object(
            await self._get(path("variables", "name", name), operation, patience), operation
        )
        return variable.get("value")

    async def read_object(self, *segments: str, **patience: Unpack[Patience]) -> dict[str, Any]:
        """Any one object as the server gives it, by the segments of its path; `NotFound` if there is none."""
        operation = f"read {'/'.join(segments)}"
        return self._object(await self._get(path(*segments), operation, patience), operation)

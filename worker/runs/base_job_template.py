"""The `process` template a worker writes into a pool that has none.

Owns that data only. Keys, titles, types and defaults are those of Prefect 3.8.8 (PROTOCOL 2.1a),
because the UI builds its forms from them; the descriptions are this project's. `python` is this project's own:
Prefect's worker takes a template that has it, and does not look at it.
"""

from __future__ import annotations

from typing import Any, Final

DEFAULT_BASE_JOB_TEMPLATE: Final[dict[str, Any]] = {
    "job_configuration": {
        "command": "{{ command }}",
        "env": "{{ env }}",
        "labels": "{{ labels }}",
        "name": "{{ name }}",
        "python": "{{ python }}",
        "stream_output": "{{ stream_output }}",
        "working_dir": "{{ working_dir }}",
    },
    "variables": {
        "type": "object",
        "properties": {
            "name": {
                "title": "Name",
                "description": "A name for the process, for display only; {{ ctx.flow_run.name }} and the like are filled in.",
                "anyOf": [{"type": "string"}, {"type": "null"}],
                "default": None,
            },
            "env": {
                "title": "Environment Variables",
                "description": "Variables for the flow run's environment; null leaves one out.",
                "type": "object",
                "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
            "labels": {
                "title": "Labels",
                "description": "Labels given to the flow run's process.",
                "type": "object",
                "additionalProperties": {"type": "string"},
            },
            "command": {
                "title": "Command",
                "description": "What to run instead of Prefect's flow engine. Normally empty.",
                "anyOf": [{"type": "string"}, {"type": "null"}],
                "default": None,
            },
            "python": {
                "title": "Python",
                "description": "The interpreter the flow runs in, or its virtual environment, on the worker's machine. When empty, the worker's choice. Only headrace looks at it.",
                "anyOf": [{"type": "string"}, {"type": "null"}],
                "default": None,
            },
            "stream_output": {
                "title": "Stream Output",
                "description": "Whether the worker prints the output of the flow run as its own.",
                "type": "boolean",
                "default": True,
            },
            "working_dir": {
                "title": "Working Directory",
                "description": "The directory the flow run starts in. When empty, a fresh one that is removed afterwards.",
                "anyOf": [{"type": "string", "format": "path"}, {"type": "null"}],
                "default": None,
            },
        },
    },
}

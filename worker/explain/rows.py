"""The keys of a launch, each with its final value and where that came from.

What the job variables amount to is told by `runs.job_variables`; here that is put together with the other
layers of the environment, which can win over a job variable or be won over. Owns no output and hides
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.runs.job_variables import JobConfiguration, Layer, Provenance
from worker.runs.launch_spec import EnvironmentLayer, EnvironmentLayers


@dataclass(frozen=True, slots=True)
class Row:
    """One key. `layer` set its value, `overrode` are those that had set it too, weakest first.

    `value` None: not set. `on` is the layer that gave an undeclared variable, `filled_by` names what filled
    the placeholders, or the file or profile of a setting. `nulled` is the layer whose null took the job's
    value away, so that a weaker one shows through.
    """

    key: str
    value: Any
    layer: str
    on: str | None = None
    overrode: tuple[str, ...] = ()
    filled_by: tuple[str, ...] = ()
    nulled: str | None = None

    def provenance(self) -> dict[str, Any]:
        """The form that `--json` prints; the same as of a job variable."""
        return {
            "layer": self.layer,
            **({"on": self.on} if self.on is not None else {}),
            "overrode": list(self.overrode),
            "filled_by": list(self.filled_by),
            **({"nulled": self.nulled} if self.nulled is not None else {}),
        }


def job_rows(job: JobConfiguration) -> Iterator[Row]:
    """What is not environment."""
    values: dict[str, Any] = {
        "command": job.command,
        "python": job.python,
        "working_dir": job.working_dir,
        "stream_output": job.stream_output,
        "name": job.name,
    }
    for key, value in values.items():
        yield _row(key, value, job.provenance[key])


def label_rows(job: JobConfiguration) -> Iterator[Row]:
    """The labels."""
    for name, value in job.labels.items():
        yield _row(f"labels.{name}", value, job.provenance[f"labels.{name}"])


def environment_rows(
    job: JobConfiguration, layers: EnvironmentLayers, sources: Mapping[str, str], *, everything: bool
) -> Iterator[Row]:
    """The environment: the variables that the job sets, or, with `everything`, all of them.

    `sources` says where each setting comes from.
    """
    for name in job.env:
        yield _variable(name, job, layers, sources)
    if everything:
        others = {name for _, variables in layers for name in variables} - job.env.keys()
        for name in sorted(others):
            yield _variable(name, job, layers, sources)


def _variable(name: str, job: JobConfiguration, layers: EnvironmentLayers, sources: Mapping[str, str]) -> Row:
    key = f"env.{name}"
    of_job = job.provenance.get(key)
    setters = [(layer, variables[name]) for layer, variables in layers if name in variables]
    nulled = _words(of_job) if of_job is not None and job.env[name] is None else None
    if not setters:  # a null, and nothing below it
        found = of_job or Provenance(Layer.WORKER_DEFAULT)
        return _row(key, None, found)
    winner, value = setters[-1]
    overrode = [words for layer, _ in setters[:-1] for words in _overridden(layer, of_job)]
    if winner is EnvironmentLayer.JOB and of_job is not None:
        row = _row(key, value, of_job)
        return Row(
            key, value, row.layer, on=row.on, overrode=(*overrode, *row.overrode), filled_by=row.filled_by
        )
    source = sources.get(name) if winner is EnvironmentLayer.SETTINGS else None
    return Row(
        key,
        value,
        winner.value,
        overrode=tuple(overrode),
        filled_by=(source,) if source else (),
        nulled=nulled,
    )


def _overridden(layer: EnvironmentLayer, of_job: Provenance | None) -> Sequence[str]:
    if layer is EnvironmentLayer.JOB and of_job is not None:
        return (*(below.value for below in of_job.overrode), _words(of_job))
    return (layer.value,)


def _words(provenance: Provenance) -> str:
    return (provenance.on or provenance.layer).value


def _row(key: str, value: Any, provenance: Provenance) -> Row:
    return Row(
        key,
        value,
        provenance.layer.value,
        on=provenance.on.value if provenance.on is not None else None,
        overrode=tuple(layer.value for layer in provenance.overrode),
        filled_by=provenance.filled_by,
    )

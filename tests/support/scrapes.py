"""Metrics as they were served, read by Prometheus's own parsers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from prometheus_client import parser as text_format
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
_Parser = Callable[[str], Iterable[Metric]]


@dataclass(frozen=True, slots=True)
class Scraped:
    """One scrape: its families by name, in the order served."""

    families: Mapping[str, Metric]

    @classmethod
    def openmetrics(cls, text: str) -> "Scraped":
        return cls._of(openmetrics, text)

    @classmethod
    def text(cls, text: str) -> "Scraped":
        return cls._of(text_format, text)

    @classmethod
    def _of(cls, module: object, text: str) -> "Scraped":
        parse = cast("_Parser", vars(module)["text_string_to_metric_families"])
        return cls({family.name: family for family in parse(text)})

    def value(self, sample: str, **labels: str) -> float:
        """The value of the one sample of this name with these labels."""
        (found,) = [
            one.value
            for family in self.families.values()
            for one in family.samples
            if one.name == sample and labels.items() <= one.labels.items()
        ]
        return found

    def by(self, label: str, sample: str) -> dict[str, float]:
        """The values of all samples of this name by the value of one of their labels."""
        return {
            one.labels[label]: one.value
            for family in self.families.values()
            for one in family.samples
            if one.name == sample
        }

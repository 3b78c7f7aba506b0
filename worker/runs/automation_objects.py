"""The objects a template of an automation looks at: events, flow runs, deployments and so on.

Owns turning the server's JSON into values that read in a template as the server's own do: dates, ids,
durations and enums have their type, resources answer by label, everything else is the JSON itself (compared
field by field with Prefect's models in the parity tests). Knows neither jinja2 nor where the JSON comes from.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Self, cast
from uuid import UUID

Json = Mapping[str, Any]


class TemplateFailure(Exception):
    """The template cannot be rendered; the message is the reason, in a clause."""


class NotProvided(TemplateFailure):
    """A template asks for something that cannot be had truthfully; the message says what and why."""


class EnumText(str):
    """A member of one of the server's enums: equal to its value, printed with the enum's name."""

    __slots__ = ("_enum",)
    _enum: str

    def __new__(cls, enum: str, value: str) -> Self:
        """`value` as a member of `enum`."""
        text = super().__new__(cls, value)
        text._enum = enum
        return text

    @property
    def value(self) -> str:
        """The plain value."""
        return str.__str__(self)

    @property
    def name(self) -> str:
        """The member's name, which is its value in all of the server's enums used here."""
        return str.__str__(self)

    def __str__(self) -> str:
        return f"{self._enum}.{self.value}"


class Record:
    """One of the server's objects: its fields are attributes.

    `withheld` fields exist on the server but cannot be had here as they are there; naming one raises NotProvided. Any other
    unknown attribute is undefined, as it is on the server.
    """

    def __init__(
        self, kind: str, fields: Mapping[str, Any], *, json: Any = None, withheld: Iterable[str] = ()
    ) -> None:
        self._kind = kind
        self._fields = dict(fields)
        self._json = json
        self._withheld = frozenset(withheld)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._fields:
            return self._fields[name]
        if name in self._withheld:
            raise NotProvided(f"{self._kind}.{name} cannot be known here")
        raise AttributeError(name)

    def __str__(self) -> str:
        raise NotProvided(f"it prints a whole {self._kind}; name one of its fields, or use the filter tojson")

    def __repr__(self) -> str:
        return f"<{self._kind}>"


class Labels:
    """Dotted labels as a tree: `labels.prefect.resource.name`. Prints the label that ends here."""

    def __init__(self, labels: Mapping[str, str], value: str = "") -> None:
        self._labels = dict(labels)
        self._value = value
        heads: dict[str, str] = {}
        branches: dict[str, dict[str, str]] = {}
        for name, text in labels.items():
            head, _, tail = name.partition(".")
            if tail:
                branches.setdefault(head, {})[tail] = text
            else:
                heads[head] = text
        self._children = {
            head: Labels(branches.get(head, {}), heads.get(head, "")) for head in {**branches, **heads}
        }

    def __getattr__(self, name: str) -> "Labels":
        if name.startswith("_") or name not in self._children:
            raise AttributeError(name)
        return self._children[name]

    def __getitem__(self, name: str) -> str:
        return self._labels[name]

    def __iter__(self) -> Any:
        return iter(self._labels.items())

    def __len__(self) -> int:
        return len(self._labels)

    def __str__(self) -> str:
        return self._value


class Resource:
    """What an event is about, or is related to: labels, of which some have a name of their own."""

    __iter__ = None

    def __init__(self, kind: str, labels: Mapping[str, str]) -> None:
        self._kind = kind
        self._labels = dict(labels)

    @property
    def id(self) -> str:
        """The label `prefect.resource.id`."""
        return self._labels["prefect.resource.id"]

    @property
    def name(self) -> str | None:
        """The label `prefect.resource.name`."""
        return self._labels.get("prefect.resource.name")

    @property
    def labels(self) -> Labels:
        """The labels as a tree."""
        return Labels(self._labels)

    @property
    def root(self) -> dict[str, str]:
        """The labels as a dict."""
        return dict(self._labels)

    def __getattr__(self, name: str) -> str:
        # Only a related resource has a role.
        if name == "role" and "prefect.resource.role" in self.__dict__.get("_labels", {}):
            return self._labels["prefect.resource.role"]
        raise AttributeError(name)

    def __getitem__(self, label: str) -> str:
        return self._labels[label]

    def __contains__(self, label: object) -> bool:
        return label in self._labels

    def keys(self) -> Iterable[str]:
        """The names of the labels."""
        return self._labels.keys()

    def items(self) -> Iterable[tuple[str, str]]:
        """The labels as pairs."""
        return self._labels.items()

    def get(self, label: str, default: str | None = None) -> str | None:
        """The label's value, or the default."""
        return self._labels.get(label, default)

    def __str__(self) -> str:
        return f"root={self._labels!r}"

    def __repr__(self) -> str:
        return f"{self._kind}(root={self._labels!r})"


def event_object(raw: Json) -> Record:
    """A received event from the JSON of `/events/filter`."""
    resource = Resource("Resource", raw["resource"])
    related = [Resource("RelatedResource", labels) for labels in raw.get("related") or ()]
    roles: dict[str, list[Resource]] = {}
    for other in related:
        roles.setdefault(other["prefect.resource.role"], []).append(other)
    return Record(
        "event",
        {
            "id": identity(raw["id"]),
            "event": raw["event"],
            "occurred": moment(raw["occurred"]),
            "received": moment(raw.get("received")),
            "follows": identity(raw.get("follows")),
            "payload": raw.get("payload") or {},
            "resource": resource,
            "related": related,
            "involved_resources": [resource, *related],
            "resource_in_role": {role: others[0] for role, others in roles.items()},
            "resources_in_role": roles,
            "find_resource_label": _label_finder(resource, related),
        },
        json=dict(raw),
        withheld=("url", "size_bytes"),
    )


def _label_finder(resource: Resource, related: Sequence[Resource]) -> Callable[[str], str | None]:
    """The server's `find_resource_label`: a label of the resource, or `related:<role>:<label>`."""

    def find(label: str) -> str | None:
        before, _, name = label.rpartition(":")
        directive, _, role = before.partition(":")
        if directive != "related":
            return resource.get(label)
        found = next((other for other in related if other["prefect.resource.role"] == role), None)
        return found.get(name) if found is not None else None

    return find


def to_json(value: Any) -> Any:
    """The value with every object of this module replaced by its JSON, for the filter `tojson`."""
    match value:
        case Record():
            record = vars(value)  # its own names are hidden from templates, and so from here
            if record["_json"] is None:
                raise NotProvided(f"a whole {record['_kind']} cannot be known here; name one of its fields")
            return record["_json"]
        case Resource():
            return value.root
        case dict():
            return {key: to_json(item) for key, item in cast("dict[Any, Any]", value).items()}
        case list():
            return [to_json(item) for item in cast("list[Any]", value)]
        case tuple():
            return tuple(to_json(item) for item in cast("tuple[Any, ...]", value))
        case _:
            return value


def identity(value: str | None) -> UUID | None:
    """An id of the server's JSON."""
    return UUID(value) if value is not None else None


def moment(value: str | None) -> datetime | None:
    """A point in time of the server's JSON."""
    return datetime.fromisoformat(value) if value is not None else None

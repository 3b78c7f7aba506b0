from typing import Any

import pytest

from worker.runs.placeholders import (
    MISSING,
    Filling,
    Kind,
    Path,
    Placeholder,
    fill,
    find,
    find_everywhere,
    lookup,
    split_path,
    whole,
)

VALUES: dict[str, Any] = {
    "s": "text",
    "n": None,
    "b": True,
    "f": 1.0,
    "my-var": "hyphen",
    "cfg": {"a": {"b": [10, {"c": "deep"}]}, "1": "one", "": "empty"},
    "again": "{{ s }}",
}
PROCESS_ENV = {"HOME": "/home/me", "EMPTY": "", "A.B": "dotted"}


def filled(template: Any) -> tuple[Any, list[tuple[Path, Filling]]]:
    records: list[tuple[Path, Filling]] = []

    def record(path: Path, filling: Filling) -> None:
        records.append((path, filling))

    return fill(template, values=VALUES, process_env=PROCESS_ENV, record=record), records


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("{{ a }}", ["a"]),
        ("{{a}}{{ a }}", ["a", "a"]),
        ("{{ a }}{{ a }}", ["a"]),
        ("{{ \t\n\u00a0a   }}", ["a"]),
        ("{{{ a }}}", ["a"]),
        ("{{ z }} {{ a }}", ["z", "a"]),
        ("{{ a b }} {{ a|b }} {{}} {{ a+b }} { { a } }", []),
        ("{{ é_日.本[0]-$x }}", ["é_日.本[0]-$x"]),
        ("{{ a }", []),
        ("{{ {{ a }}", ["a"]),
    ],
)
def test_grammar(text: str, names: list[str]) -> None:
    assert [placeholder.name for placeholder in find(text)] == names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("env", Kind.TEMPLATE_VARIABLE),
        ("prefect", Kind.TEMPLATE_VARIABLE),
        ("prefect.blocks", Kind.TEMPLATE_VARIABLE),
        ("prefect.blocks.", Kind.BLOCK),
        ("prefect.variables.x.y", Kind.VARIABLE),
        ("$HOME", Kind.ENVIRONMENT),
        ("a.$HOME", Kind.TEMPLATE_VARIABLE),
    ],
)
def test_kind_is_told_by_the_prefix(name: str, kind: Kind) -> None:
    assert Placeholder(f"{{{{ {name} }}}}", name).kind is kind


def test_a_placeholder_with_anything_beside_it_is_not_whole() -> None:
    for text in (" {{ s }}", "{{ s }}\n", "{{ s }}{{ s }}"):
        assert whole(text, find(text), Kind.TEMPLATE_VARIABLE) is None
    assert whole("{{ s }}", find("{{ s }}"), Kind.BLOCK) is None
    assert whole("{{ s }}", find("{{ s }}"), Kind.TEMPLATE_VARIABLE) == Placeholder("{{ s }}", "s")


def test_find_everywhere_searches_values_and_never_keys() -> None:
    found = find_everywhere({"{{ key }}": ["{{ a }}", {"x": "{{ b }}"}, 1, None]})
    assert [placeholder.name for placeholder in found] == ["a", "b"]


@pytest.mark.parametrize(
    ("path", "segments"),
    [
        ("a", ["a"]),
        ("a.b[0].c", ["a", "b", "0", "c"]),
        (".env", ["", "env"]),
        ("a[b", ["a", "b"]),
        ("a]", ["a"]),
    ],
)
def test_split_path(path: str, segments: list[str]) -> None:
    assert split_path(path) == segments


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("cfg.a.b[1].c", "deep"),
        ("cfg.a.b.0", 10),
        ("cfg.a.b[-1].c", "deep"),
        ("s[0]", "t"),
        ("n", None),
        ("cfg.", "empty"),
        ("cfg.1", MISSING),
        ("cfg.a.b[2]", MISSING),
        ("cfg.a.b.x", MISSING),
        ("s.x", MISSING),
        ("n.x", MISSING),
        ("nope.a", MISSING),
        ("cfg.a.b[99999999999999999999]", MISSING),
    ],
)
def test_lookup(path: str, value: Any) -> None:
    assert lookup(VALUES, path) == value


@pytest.mark.parametrize(
    ("template", "result"),
    [
        ("{{ cfg.a }}", {"b": [10, {"c": "deep"}]}),
        ("{{ b }} {{ n }} {{ f }}", "True None 1.0"),
        ("{{ n }}", None),
        ("{{ nope }}", MISSING),
        ("a-{{ nope }}-b", "a--b"),
        ("{{ s }}/{{s}}", "text/text"),
        ("{{ again }}", "{{ s }}"),
        ("{{ my-var }}", "hyphen"),
        ("{{ $HOME }}", "/home/me"),
        ("{{ $$HOME }}", "/home/me"),
        ("{{ $A.B }}", "dotted"),
        ("{{ $EMPTY }}", ""),
        ("{{ $NOPE }}", ""),
        ("p:{{ $HOME }}", "p:/home/me"),
        ("{{ prefect.blocks.secret.tok }}", "{{ prefect.blocks.secret.tok }}"),
        ("{{ prefect.variables.v }}{{ s }}", "{{ prefect.variables.v }}text"),
        ({"a": "{{ nope }}", "b": ["{{ nope }}", "{{ s }}", 1]}, {"b": ["text", 1]}),
        ({"{{ s }}": 1}, {"{{ s }}": 1}),
        (5, 5),
        (None, None),
    ],
)
def test_fill(template: Any, result: Any) -> None:
    assert filled(template)[0] == result


def test_placeholders_are_filled_in_the_order_they_appear() -> None:
    result, _ = filled("{{ again }}{{ s }}")
    assert result == "texttext"
    result, _ = filled("{{ s }}{{ again }}")
    assert result == "text{{ s }}"


def test_every_filling_is_recorded_at_its_place() -> None:
    _, records = filled({"a": "{{ s }}", "b": {"c": ["x", "{{ $HOME }}-{{ nope }}"]}})
    assert records == [
        (("a",), Filling(Kind.TEMPLATE_VARIABLE, "s", found=True, whole=True)),
        (("b", "c", "1"), Filling(Kind.ENVIRONMENT, "HOME", found=True, whole=False)),
        (("b", "c", "1"), Filling(Kind.TEMPLATE_VARIABLE, "nope", found=False, whole=False)),
    ]

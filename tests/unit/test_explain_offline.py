import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from worker.explain.offline import EXIT_OK, EXIT_UNREADABLE, EXIT_UNRESOLVED, explain_file
from worker.runs.job_variables import JobVariablesMode

CORPUS = Path(__file__).parent.parent / "conformance" / "job_variable_cases.json"
SIMPLE = {"deployment_job_variables": {"env": {"A": "1"}}}
BROKEN = {"deployment_job_variables": {"env": None}}


class Explained:
    """What one call printed and returned."""

    def __init__(
        self,
        path: Path | str,
        *,
        mode: str = "layered",
        as_json: bool = True,
        stdin: str = "",
        **environ: str,
    ) -> None:
        out, err = io.StringIO(), io.StringIO()
        self.code = explain_file(
            path=str(path),
            as_json=as_json,
            mode=JobVariablesMode(mode),
            stdout=out,
            environ=environ,
            stdin=io.StringIO(stdin),
            stderr=err,
        )
        self.out, self.err = out.getvalue(), err.getvalue()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_file(content: Any) -> Path:
        path = tmp_path / "input.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write_file


def test_the_file_of_worked_cases_is_itself_an_input() -> None:
    explained = Explained(CORPUS, mode="stock")
    assert explained.code == EXIT_OK
    cases = json.loads(CORPUS.read_text(encoding="utf-8"))["cases"]
    for case, result in zip(cases, explained.json, strict=True):
        if "expected" in case:
            assert {key: result[key] for key in case["expected"]} == case["expected"], case["name"]
            assert set(result) == {*case["expected"], "python", "provenance"}
        else:
            expected = case["expected_error"]
            assert (result["error"]["type"], result["error"]["stage"]) == (
                expected["type"],
                expected["stage"],
            )
            assert set(result) == {"error"}
            assert set(result["error"]) == {"type", "stage", "message"}


def test_an_object_gives_an_object(write: Any) -> None:
    explained = Explained(write({**SIMPLE, "name": "ignored", "note": None, "expected": 5}))
    assert explained.code == EXIT_OK
    assert explained.json == {
        "command": None,
        "env": {"A": "1"},
        "working_dir": None,
        "stream_output": True,
        "python": None,
        "labels": {},
        "name": None,
        "provenance": {
            "command": {"layer": "worker default", "overrode": [], "filled_by": []},
            "env.A": {"layer": "deployment", "overrode": [], "filled_by": []},
            "name": {"layer": "worker default", "overrode": [], "filled_by": []},
            "stream_output": {"layer": "pool default", "overrode": [], "filled_by": []},
            "python": {"layer": "worker default", "overrode": [], "filled_by": []},
            "working_dir": {"layer": "worker default", "overrode": [], "filled_by": []},
        },
    }


@pytest.mark.parametrize(("count", "form"), [(0, list), (1, list), (2, list)])
def test_a_list_gives_a_list(write: Any, count: int, form: type) -> None:
    explained = Explained(write([SIMPLE] * count))
    assert explained.code == EXIT_OK
    assert isinstance(explained.json, form)
    assert len(explained.json) == count


def test_an_unresolvable_object_is_exit_1_and_one_in_a_list_is_not(write: Any) -> None:
    single = Explained(write(BROKEN))
    assert single.code == EXIT_UNRESOLVED
    assert single.json["error"]["type"] == "AttributeError"
    several = Explained(write([SIMPLE, BROKEN, SIMPLE]))
    assert several.code == EXIT_OK
    assert ["error" in result for result in several.json] == [False, True, False]
    assert Explained(write(BROKEN), as_json=False).code == EXIT_UNRESOLVED


def test_notes_only_where_there_are_any(write: Any) -> None:
    path = write({"deployment_job_variables": {"env": {"X": "d"}}, "flow_run_job_variables": {"env.X": "r"}})
    layered = Explained(path).json
    assert layered["env"] == {"X": "r"}
    assert len(layered["notes"]) == 1
    stock = Explained(path, mode="stock").json
    assert stock["env"] == {"X": "d"}
    assert "notes" not in stock


def test_standard_input() -> None:
    assert Explained("-", stdin=json.dumps(SIMPLE)).json["env"] == {"A": "1"}
    failed = Explained("-", stdin="{")
    assert failed.code == EXIT_UNREADABLE
    assert failed.err.startswith("standard input: is not JSON")


def test_context_gives_names_and_environment(write: Any) -> None:
    item = {
        "base_job_template": {
            "job_configuration": {"command": "{{ $ONE }}{{ $TWO }}", "name": "{{ name }}"},
            "variables": {"properties": {"name": {"default": "{{ ctx.flow_run.name }}/{{ ctx.flow.name }}"}}},
        },
        "context": {"flow_run": {"name": "fox"}, "flow": {"name": "etl"}, "process_env": {"TWO": "own"}},
    }
    explained = Explained(write(item), ONE="outer", TWO="outer").json
    assert (explained["command"], explained["name"]) == ("outerown", "fox/etl")


def test_a_context_of_the_file_is_the_default_of_its_cases(write: Any) -> None:
    document = {
        "context": {"flow_run": {"name": "fox"}},
        "cases": [{}, {"context": {"flow_run": {"name": "own"}}}],
    }
    assert [result["name"] for result in Explained(write(document)).json] == ["fox", "own"]


def test_null_fields_are_empty(write: Any) -> None:
    fields = (
        "base_job_template",
        "deployment_job_variables",
        "flow_run_job_variables",
        "blocks",
        "blocks_by_id",
    )
    item = dict.fromkeys([*fields, "variables", "context"])
    assert Explained(write(item)).code == EXIT_OK


def test_the_table_shows_where_each_value_comes_from_and_hides_secrets(write: Any) -> None:
    item = {
        "deployment_job_variables": {
            "env": {"A": "dep", "B": "{{ prefect.blocks.secret.tok }}", "API_TOKEN": "t0ken", "L": "a\nb"}
        },
        "flow_run_job_variables": {"env.A": "cli", "foo": 1},
        "blocks": {"secret/tok": {"value": "s3cr3t"}},
    }
    lines = Explained(write(item), as_json=False).out.splitlines()
    cells = {line.split()[0]: line.split() for line in lines}
    assert cells["KEY"] == ["KEY", "VALUE", "LAYER", "OVERRODE", "FILLED", "BY"]
    assert cells["env.A"] == ["env.A", "cli", "flow", "run", "deployment", "-"]
    assert cells["env.B"] == ["env.B", "(hidden)", "deployment", "-", "block", "secret/tok"]
    assert cells["env.API_TOKEN"][1] == "(hidden)"
    assert cells["env.L"][1] == r"'a\nb'"
    assert sum(line.startswith("note: ") for line in lines) == 2
    assert "s3cr3t" not in "".join(lines)


def test_the_tables_of_a_list_have_headings(write: Any) -> None:
    out = Explained(write([{"name": "first"}, BROKEN]), as_json=False).out
    assert out.startswith("# item 1: first\nKEY")
    assert "\n\n# item 2\ncannot be resolved: AttributeError: env must be an object" in out


def test_any_text_can_be_printed_on_any_stream(tmp_path: Path) -> None:
    path = tmp_path / "input.json"
    path.write_text('{"deployment_job_variables": {"env": {"A": "\\ud800é日"}}}', encoding="utf-8")
    for as_json in (True, False):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        code = explain_file(
            path=str(path), as_json=as_json, mode=JobVariablesMode.LAYERED, stdout=stream, environ={}
        )
        stream.flush()
        assert code == EXIT_OK


NO_OBJECTS: list[tuple[Any, str]] = [
    ("", "is not JSON: Expecting value at line 1 column 1"),
    ('{"a": 1,\n}', "is not JSON: "),
    ("[" * 100_000, "is not usable JSON: it is nested too deeply"),
    ("1" * 5000, "is not usable JSON: a number has too many digits"),
    ({"cases": {}}, "cases must be a list, got object"),
    ("null", "there must be an object or a list of objects in it, got null"),
    ("3", "there must be an object or a list of objects in it, got number"),
]


@pytest.mark.parametrize(("content", "sentence"), NO_OBJECTS)
def test_a_file_without_objects_is_exit_2_and_one_sentence(write: Any, content: Any, sentence: str) -> None:
    path = write(content)
    explained = Explained(path)
    assert explained.code == EXIT_UNREADABLE
    assert explained.out == ""
    assert explained.err.startswith(f"{path}: {sentence}")


SHAPES: list[tuple[Any, str]] = [
    ({"base_job_template": "x"}, "base_job_template must be an object, got string"),
    ({"deployment_job_variables": [1]}, "deployment_job_variables must be an object, got list"),
    ({"flow_run_job_variables": 5}, "flow_run_job_variables must be an object, got number"),
    ({"variables": True}, "variables must be an object, got boolean"),
    ({"blocks": {"secret/tok": "x"}}, "blocks['secret/tok'] must be an object, got string"),
    ({"blocks_by_id": {"i": []}}, "blocks_by_id['i'] must be an object, got list"),
    ({"context": "x"}, "context must be an object, got string"),
    ({"context": {"flow_run": []}}, "context: flow_run must be an object, got list"),
    ({"context": {"process_env": {"A": 1}}}, "context: process_env.A must be a string, got number"),
]


@pytest.mark.parametrize(("content", "sentence"), SHAPES)
def test_a_wrong_shape_is_named_and_costs_the_others_nothing(write: Any, content: Any, sentence: str) -> None:
    alone = Explained(write(content), as_json=True)
    assert alone.code == EXIT_UNRESOLVED
    assert alone.json["error"] == {"type": "InputError", "stage": "input", "message": sentence}
    listed = Explained(write([{}, content, [], {}]), as_json=True)
    assert listed.code == EXIT_OK
    first, second, third, fourth = listed.json
    assert first == fourth
    assert "command" in first
    assert second["error"]["message"] == f"item 2: {sentence}"
    assert third["error"]["message"].startswith("item 3: there must be an object")


def test_an_unreadable_file_is_exit_2(tmp_path: Path) -> None:
    absent = Explained(tmp_path / "absent.json")
    assert absent.code == EXIT_UNREADABLE
    assert absent.err == f"{tmp_path / 'absent.json'}: cannot be read: No such file or directory\n"
    assert Explained(tmp_path).code == EXIT_UNREADABLE
    binary = tmp_path / "binary.json"
    binary.write_bytes(b'{"a": "\xff"}')
    assert Explained(binary).err == f"{binary}: is not UTF-8 text (byte 7)\n"


def test_a_byte_order_mark_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf{}")
    assert Explained(path).code == EXIT_OK


def nested(depth: int) -> str:
    return '{"k":' * depth + "1" + "}" * depth


def test_a_value_nested_too_deeply_to_resolve_is_an_error_of_its_item_alone(write: Any) -> None:
    explained = Explained(
        write(f'[{{"deployment_job_variables": {{"command": {nested(900)}}}}}, {json.dumps(SIMPLE)}]')
    )
    assert explained.code == EXIT_OK
    assert explained.json[0]["error"]["type"] == "RecursionError"
    assert explained.json[1]["env"] == {"A": "1"}


def test_a_name_nested_too_deeply_to_print_is_an_error_too(write: Any) -> None:
    """How deep a document may be read depends on Python's version; either way there is no traceback."""
    context = f'{{"flow_run": {{"parameters": {nested(5000)}}}}}'
    name = '{"name": "{{ ctx.flow_run.parameters }}"}'
    explained = Explained(write(f'[{{"deployment_job_variables": {name}, "context": {context}}}]'))
    assert explained.code == EXIT_UNREADABLE or explained.json[0]["error"]["type"] == "RecursionError"


def test_it_needs_neither_prefect_nor_a_client_to_talk_to_one() -> None:
    code = "import sys, worker.explain.offline; print(sorted({'prefect', 'httpx', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=CORPUS.parents[2]
    )
    assert done.stdout.strip() == "[]"

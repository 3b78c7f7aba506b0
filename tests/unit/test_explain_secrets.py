"""What is hidden, what is masked, and what is shown."""

from typing import Any

import pytest

from worker.explain.secrets import HIDDEN, MASK, Discretion, is_secret
from worker.log import Redactor
from worker.runs.job_variables import Layer, Provenance

DISCREET = Discretion(show=False, redact=Redactor(["known-s3cr3t"]).text)
CANDID = Discretion(show=True, redact=Redactor(["known-s3cr3t"]).text)


@pytest.mark.parametrize(
    ("key", "filled_by", "layer", "secret"),
    [
        ("env.A", (), Layer.DEPLOYMENT, False),
        ("env.A", ("block secret/tok",), Layer.DEPLOYMENT, True),
        ("env.A", (), Layer.BLOCK, True),
        ("env.A", ("variable db_password",), Layer.DEPLOYMENT, True),
        ("env.A", ("worker environment GITHUB_TOKEN",), Layer.POOL_DEFAULT, True),
        ("env.A", ("variable greeting", "worker environment USER"), Layer.POOL_DEFAULT, False),
        ("env.PREFECT_API_KEY", (), Layer.FLOW_RUN, True),
        ("env.PREFECT_API_AUTH_STRING", (), Layer.FLOW_RUN, True),
        ("env.PREFECT_CLIENT_CUSTOM_HEADERS", (), Layer.FLOW_RUN, True),
        ("env.AWS_SECRET_ACCESS_KEY", (), Layer.FLOW_RUN, True),
        ("env.AWS_ACCESS_KEY_ID", (), Layer.FLOW_RUN, False),
        ("env.GITHUB_PAT", (), Layer.FLOW_RUN, True),
        ("env.PGPASSWORD", (), Layer.FLOW_RUN, True),
        ("env.PATH", (), Layer.FLOW_RUN, False),
        ("env.KEYBOARD", (), Layer.FLOW_RUN, False),
        ("env.AUTHOR", (), Layer.FLOW_RUN, False),
    ],
)
def test_what_is_secret(key: str, filled_by: tuple[str, ...], layer: Layer, secret: bool) -> None:
    assert is_secret(key, Provenance(layer, filled_by=filled_by)) is secret


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("plain", "plain"),
        ("a known-s3cr3t b", f"a {MASK} b"),
        ("postgresql://me:pw@db/x", f"postgresql://me:{MASK}@db/x"),
        ("https://token-only@host/x", "https://token-only@host/x"),
        ("host=x password=abc port=1", f"host=x password={MASK} port=1"),
        ("https://h/x?api_key=abc&b=1", f"https://h/x?api_key={MASK}&b=1"),
        ("run --db-password abc --fast", f"run --db-password {MASK} --fast"),
        ("run --token=abc --fast", f"run --token={MASK} --fast"),
        ("a token is needed", "a token is needed"),
    ],
)
def test_what_is_masked_in_a_text(text: str, masked: str) -> None:
    assert DISCREET.text(text) == masked
    assert CANDID.text(text) == text


def test_the_password_of_a_url_may_hold_its_own_marks() -> None:
    assert DISCREET.text("amqp://me:p@s:s@host:1/x") == f"amqp://me:{MASK}@host:1/x"


@pytest.mark.parametrize(
    ("value", "secret", "shown"),
    [
        (None, True, None),
        (True, True, True),
        (42, True, HIDDEN),
        (42, False, 42),
        ("x", True, HIDDEN),
        ({"a": "known-s3cr3t", "password": "x"}, False, {"a": MASK, "password": HIDDEN}),
        (["known-s3cr3t", 1], False, [MASK, 1]),
    ],
)
def test_values(value: Any, secret: bool, shown: Any) -> None:
    assert DISCREET.value(value, secret=secret) == shown
    assert CANDID.value(value, secret=secret) == value


def test_the_word_after_an_option_is_masked() -> None:
    words = ["job", "--password", "abc", "--fast", "-v"]
    assert DISCREET.words(words, secret=False) == ["job", "--password", MASK, "--fast", "-v"]
    assert DISCREET.words(words, secret=True) == [HIDDEN] * 5
    assert CANDID.words(words, secret=False) == words


@pytest.mark.parametrize("secret", ["p&w;d", "it's", "two words", 'quo"ted'])
@pytest.mark.parametrize("option", ["--password", "--api-token", "--secret-key", "-token"])
def test_the_whole_word_after_an_option_is_masked_whatever_is_in_it(option: str, secret: str) -> None:
    assert DISCREET.words(["run", option, secret], secret=False) == ["run", option, MASK]
    assert DISCREET.words(["run", f"{option}={secret}"], secret=False) == ["run", f"{option}={MASK}"]

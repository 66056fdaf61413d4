"""What is said about an input that cannot be taken: the field, a stable code, a sentence, never the input itself."""

import json
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError, model_validator

from posthouse.errors import InvalidInput
from posthouse.model.application import Application
from posthouse.model.fields import Value, field
from posthouse.model.installation import Installation
from posthouse.model.problems import problems_of, read_value
from posthouse.model.server import SERVER_KINDS, SmtpServer

SMTP = {"kind": "smtp", "name": "office", "host": "smtp.example.org"}


def refused(model: Any, shape: Any) -> list[tuple[str, str, str]]:
    with pytest.raises(InvalidInput) as caught:
        read_value(model, shape)
    assert caught.value.__context__ is None
    return [(p.field, p.code, p.message) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("change", "field_name", "code", "sentence"),
    [
        ({"port": 0}, "port", "out-of-range", "Port must be between 1 and 65535."),
        ({"connect_timeout_s": 0}, "connect_timeout_s", "out-of-range",
         "Connect timeout must be more than 0 and at most 600 s."),
        ({"name": ""}, "name", "too-short", "Name must not be empty."),
        ({"name": "x" * 101}, "name", "too-long", "Name may have at most 100 characters."),
        ({"from_filter": ["a.b"] * 1001}, "from_filter", "too-long", "Sends for may have at most 1000 entries."),
        ({"name": "a\nb"}, "name", "not-a-name",
         "A name needs a visible character, and has no line ends or control characters."),
        ({"port": "25"}, "port", "wrong-type", "Enter a whole number."),
        ({"port": 25.5}, "port", "wrong-type", "Enter a whole number."),
        ({"enabled": 1}, "enabled", "wrong-type", "Enter true or false."),
        ({"idle_s": "1"}, "idle_s", "wrong-type", "Enter a number."),
        ({"host": 5}, "host", "wrong-type", "Enter a text."),
        ({"from_filter": "a.b"}, "from_filter", "wrong-type", "Enter a list."),
        ({"from_filter": ["a.b", 7]}, "from_filter.1", "wrong-type", "Enter a text."),
        ({"auth": []}, "auth", "wrong-type", "Enter an object with named fields."),
        ({"auth": {}}, "auth.type", "missing", "This field is needed. Choose one of: none, password."),
        ({"auth": {"type": "oauth"}}, "auth.type", "not-a-choice", "Choose one of: none, password."),
        ({"auth": {"type": "password"}}, "auth.username", "missing", "This field is needed."),
        ({"auth": {"type": "none", "x": 1}}, "auth.x", "unknown-field",
         "There is no such field here. Remove it, or correct its name."),
        ({"utf8_headers": "perhaps"}, "utf8_headers", "not-a-choice", "Choose one of: auto, yes, no."),
        ({"verification": "pinned"}, "pin_sha256", "not-allowed", "This is needed where the certificate is pinned."),
        ({"comments": "\ud800"}, "", "not-json", "This cannot be read as JSON."),
        ({"idle_s": float("nan")}, "", "not-json", "This cannot be read as JSON. Numbers must be finite."),
    ],
)  # fmt: skip
def test_each_fault_reads_plainly(change: dict[str, Any], field_name: str, code: str, sentence: str) -> None:
    assert refused(SERVER_KINDS, {**SMTP, **change}) == [(field_name, code, sentence)]


def test_the_tag_says_which_member_is_meant() -> None:
    sentence = "Choose one of: smtp, capture."
    assert refused(SERVER_KINDS, {}) == [("kind", "missing", sentence)]
    assert refused(SERVER_KINDS, {"kind": "telex"}) == [("kind", "not-a-choice", sentence)]
    assert refused(SERVER_KINDS, {"kind": ["smtp"]}) == [("kind", "not-a-choice", sentence)]


def test_what_is_right_comes_through_typed() -> None:
    value = read_value(SERVER_KINDS, {**SMTP, "connect_timeout_s": 5, "from_filter": ["Example.ORG"]})
    assert isinstance(value, SmtpServer)
    assert (value.connect_timeout_s, value.from_filter) == (5.0, ("example.org",))


def test_a_name_of_a_field_cannot_steer_a_terminal() -> None:
    ((name, code, _),) = refused(Application, {"name": "x", "\x1b[2J\r\nSet-Cookie: \u202e" + "y" * 500: 1})
    assert code == "unknown-field"
    assert name.isprintable()
    assert name.isascii()
    assert len(name) <= 64


class Colour(StrEnum):
    RED = "red"


class Inner(Value):
    """A value inside a list."""

    shade: int = field(label="Shade", help="", section="", ge=1)


class Outer(Value):
    """Two levels, and a validator that names a nested field."""

    colour: Colour = field(Colour.RED, label="Colour", help="", section="")
    inner: tuple[Inner, ...] = field((), label="Inner", help="", section="")

    @model_validator(mode="after")
    def _fits(self) -> "Outer":
        if len(self.inner) > 1:
            raise ValueError("inner.shade: choose one shade only.")
        return self


def test_lists_of_values_are_walked() -> None:
    assert refused(Outer, {"inner": [{"shade": 0}]}) == [("inner.0.shade", "out-of-range", "Shade must be at least 1.")]
    assert refused(Outer, {"inner": [{"shade": 1}, {"shade": 2}]}) == [
        ("inner.shade", "not-allowed", "Choose one shade only.")
    ]


class Plain(BaseModel):
    """A body of the API, without declarations of ours."""

    size: Annotated[int, Field(ge=1, le=9)]
    kind: Literal["a", "b"]


def test_errors_of_plain_models_and_of_the_framework_are_told_alike() -> None:
    with pytest.raises(ValidationError) as caught:
        Plain.model_validate_json('{"size": 10, "kind": "c"}')
    direct = problems_of(caught.value.errors())
    framed = RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in caught.value.errors()])
    assert problems_of(framed.errors()) == direct
    assert [(p.field, p.code, p.message) for p in direct] == [
        ("size", "out-of-range", "This must be at most 9."),
        ("kind", "not-a-choice", "Choose one of: a or b."),
    ]


CANARY = "kanarienvogel"
wild = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.just(CANARY), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*SmtpServer.model_fields, *Installation.model_fields]), wild, max_size=8))
def test_whatever_comes_is_taken_or_refused_and_never_repeated(shape: dict[str, Any]) -> None:
    for model, given_shape in ((SERVER_KINDS, {**SMTP, **shape, "kind": "smtp"}), (Installation, shape)):
        try:
            read_value(model, given_shape)
        except InvalidInput as error:
            assert error.problems
            for problem in error.problems:
                assert problem.message.endswith(".")
                assert CANARY not in json.dumps([problem.code, problem.message])

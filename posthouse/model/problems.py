"""What pydantic says about an input, as our own problems: dotted field names, stable codes, plain sentences.

Every face and job that validates anything comes through here, so that the same fault reads the same everywhere. A
sentence says cause and remedy and never repeats what was entered: an input may be a password in the wrong field.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from posthouse.errors import FieldProblem, InvalidInput
from posthouse.model.fields import IDENTIFIER_PATTERN, NAME_PATTERN, bare_annotation, choices_of, meta_of, union_members

M = TypeVar("M", bound=BaseModel)

# Where a web framework found the input; not part of the field's name.
_PLACES = frozenset({"body", "query", "path", "header", "cookie"})
# A validator of the whole value names the field that it means: "port: is needed where ...".
_NAMED = re.compile(r"([a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*): +(.+)", re.DOTALL)
# An unknown field is named, but its name is the sender's text: short, and nothing that could steer a terminal.
_MAX_PART = 64


def read_value(model: type[M] | Mapping[str, type[M]], shape: Mapping[str, Any], *, tag: str = "kind") -> M:
    """The value of a model behind JSON values, strictly typed: a boolean is no number, a text is no boolean.

    Where `model` is a mapping, `shape[tag]` says which of its models is meant. Raises InvalidInput.
    """
    chosen = model if isinstance(model, type) else member_of(model, shape, tag)
    problems: list[FieldProblem]
    try:
        return chosen.model_validate_json(json.dumps(shape, allow_nan=False), strict=True)
    except ValidationError as error:
        problems = problems_of(error.errors(include_url=False), chosen)
    except (ValueError, TypeError, RecursionError):
        problems = [FieldProblem("", "not-json", "This cannot be read as JSON. Numbers must be finite.")]
    # Outside of the handler: the error of pydantic holds the input, and must not travel along as a context.
    raise InvalidInput(problems)


def member_of(members: Mapping[str, type[M]], shape: Mapping[str, Any], tag: str = "kind") -> type[M]:
    """The member of a tagged union that a shape names. Raises InvalidInput."""
    name = shape.get(tag)
    member = members.get(name) if isinstance(name, str) else None
    if member is None:
        code = "missing" if name is None else "not-a-choice"
        raise InvalidInput.of(tag, code, f"Choose one of: {', '.join(members)}.")
    return member


def problems_of(errors: Iterable[Mapping[str, Any]], model: type[BaseModel] | None = None) -> list[FieldProblem]:
    """What pydantic's `errors()` mean. With `model`, names leave out tags of unions, and limits are told in full."""
    return [_problem(error, model) for error in errors]


def _problem(error: Mapping[str, Any], model: type[BaseModel] | None) -> FieldProblem:
    path, info = _walk(tuple(error.get("loc", ())), model)
    kind = str(error.get("type", ""))
    context = error.get("ctx") or {}
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        path = [*path, str(context.get("discriminator", "")).strip("'")]
    if kind in ("value_error", "assertion_error"):
        return _of_validator(path, str(error.get("msg", "")))
    code, sentence = _sentence(kind, context, info)
    return FieldProblem(_dotted(path), code, sentence)


def _walk(location: Sequence[str | int], model: type[BaseModel] | None) -> tuple[list[str], FieldInfo | None]:
    """The names of the fields on the way, without tags of unions, and the declaration of the last one."""
    if model is None and location and location[0] in _PLACES:
        location = location[1:]
    path: list[str] = []
    info: FieldInfo | None = None
    members: Mapping[str, type[BaseModel]] = {}
    for part in location:
        if part in members:
            model, members = members[str(part)], {}
            continue
        path.append(str(part))
        if isinstance(part, int):
            # The place in a list; what follows is still about the list's entries.
            continue
        info = model.model_fields.get(str(part)) if model is not None else None
        members = union_members(info) if info is not None else {}
        model = _nested(info)
    return path, info


def _nested(info: FieldInfo | None) -> type[BaseModel] | None:
    annotation = bare_annotation(info.annotation) if info is not None else None
    if get_origin(annotation) in (tuple, list):
        annotation = bare_annotation(get_args(annotation)[0])
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _of_validator(path: list[str], message: str) -> FieldProblem:
    """A sentence of one of our own validators; one of a whole value begins with the field that it is about."""
    sentence = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    named = _NAMED.fullmatch(sentence)
    if named:
        rest = named[2]
        sentence = f"This {rest}" if rest.startswith("is ") else rest[:1].upper() + rest[1:]
        path = [*path, named[1]]
    return FieldProblem(_dotted(path), "not-allowed", sentence)


def _dotted(path: Sequence[str]) -> str:
    return ".".join("".join(c if c.isprintable() and c.isascii() else "?" for c in part[:_MAX_PART]) for part in path)


# ---------------------------------------------------------------- sentences


def _sentence(kind: str, context: Mapping[str, Any], info: FieldInfo | None) -> tuple[str, str]:
    for kinds, make in _SENTENCES:
        if kind in kinds:
            return make(context, info)
    return "not-allowed", "This entry cannot be taken. Look up what the field allows."


def _fixed(code: str, sentence: str) -> Callable[[Mapping[str, Any], FieldInfo | None], tuple[str, str]]:
    return lambda _context, _info: (code, sentence)


def _label(info: FieldInfo | None) -> str:
    return info.title if info is not None and info.title else "This"


def _rules(info: FieldInfo | None, context: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The field's limits as declared; what the error itself says counts where nothing is declared."""
    found = {name: context[name] for name in names if context.get(name) is not None}
    for rule in info.metadata if info is not None else ():
        for name in names:
            if getattr(rule, name, None) is not None:
                found[name] = getattr(rule, name)
    return found


def _range(context: Mapping[str, Any], info: FieldInfo | None) -> tuple[str, str]:
    rules = _rules(info, context, ("ge", "gt", "le", "lt"))
    unit = f" {meta_of(info).get('unit')}" if info is not None and meta_of(info).get("unit") else ""
    if "ge" in rules and "le" in rules:
        return "out-of-range", f"{_label(info)} must be between {rules['ge']} and {rules['le']}{unit}."
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    limits = " and ".join(f"{words[name]} {rules[name]}" for name in words if name in rules)
    return "out-of-range", f"{_label(info)} must be {limits}{unit}."


def _length(context: Mapping[str, Any], info: FieldInfo | None) -> tuple[str, str]:
    rules = _rules(info, context, ("min_length", "max_length"))
    is_list = info is not None and get_origin(bare_annotation(info.annotation)) in (tuple, list)
    things = "entries" if is_list else "characters"
    if rules.get("min_length") == 1 and not context.get("max_length"):
        return "too-short", f"{_label(info)} must not be empty."
    if context.get("max_length"):
        return "too-long", f"{_label(info)} may have at most {rules['max_length']} {things}."
    return "too-short", f"{_label(info)} must have at least {rules.get('min_length', 1)} {things}."


def _pattern(context: Mapping[str, Any], _info: FieldInfo | None) -> tuple[str, str]:
    pattern = context.get("pattern")
    if pattern == IDENTIFIER_PATTERN:
        return "not-an-identifier", "This is not an identifier: 13 letters and digits, as lists show them."
    if pattern == NAME_PATTERN:
        return "not-a-name", "A name needs a visible character, and has no line ends or control characters."
    return "not-allowed-characters", "This holds characters that are not allowed here, such as a line end. Remove them."


def _choice(context: Mapping[str, Any], info: FieldInfo | None) -> tuple[str, str]:
    expected = context.get("expected_tags") or context.get("expected") or ""
    choices = ", ".join(choices_of(info)) if info is not None else ""
    return "not-a-choice", f"Choose one of: {choices or str(expected).replace(chr(39), '')}."


_SENTENCES: tuple[tuple[frozenset[str], Callable[[Mapping[str, Any], FieldInfo | None], tuple[str, str]]], ...] = (
    (frozenset({"missing"}), _fixed("missing", "This field is needed.")),
    (frozenset({"extra_forbidden", "unexpected_keyword_argument"}),
     _fixed("unknown-field", "There is no such field here. Remove it, or correct its name.")),
    (frozenset({"greater_than", "greater_than_equal", "less_than", "less_than_equal"}), _range),
    (frozenset({"string_too_long", "string_too_short", "too_long", "too_short", "bytes_too_long", "bytes_too_short"}),
     _length),
    (frozenset({"string_pattern_mismatch"}), _pattern),
    (frozenset({"enum", "literal_error", "union_tag_invalid"}), _choice),
    (frozenset({"union_tag_not_found"}),
     lambda context, info: ("missing", f"This field is needed. {_choice(context, info)[1]}")),
    (frozenset({"bool_type", "bool_parsing"}), _fixed("wrong-type", "Enter true or false.")),
    (frozenset({"int_type", "int_parsing", "int_from_float", "int_parsing_size"}),
     _fixed("wrong-type", "Enter a whole number.")),
    (frozenset({"float_type", "float_parsing", "finite_number"}), _fixed("wrong-type", "Enter a number.")),
    (frozenset({"string_type", "string_sub_type"}), _fixed("wrong-type", "Enter a text.")),
    (frozenset({"string_unicode"}), _fixed("wrong-type", "This text is not valid Unicode. Type it again.")),
    (frozenset({"tuple_type", "list_type", "set_type", "iterable_type"}), _fixed("wrong-type", "Enter a list.")),
    (frozenset({"model_type", "model_attributes_type", "dict_type", "dict_attributes_type", "mapping_type"}),
     _fixed("wrong-type", "Enter an object with named fields.")),
    (frozenset({"json_invalid", "json_type"}), _fixed("not-json", "This cannot be read as JSON.")),
)  # fmt: skip

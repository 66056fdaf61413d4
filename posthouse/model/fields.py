"""What a field carries beside its type, and how the faces read it.

A field of a server, mailbox, tenant or application is declared once, with `field(...)`. Console form, REST schema, CLI
options, reference docs and translations read that declaration through `describe`.
"""

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic.fields import FieldInfo

_KEY = "x-posthouse"


class Value(BaseModel):
    """A configured value: immutable, with no field that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=False)


def field(
    default: Any = ...,
    *,
    label: str,
    help: str,
    section: str,
    unit: str = "",
    binds_secret: bool = False,
    applies: Mapping[str, Sequence[str]] | None = None,
    **constraints: Any,
) -> Any:
    """Declare a field: `label` and `help` for people, `section` of the form, `unit` of a number.

    `binds_secret`: a stored secret is kept in an update only while this field stays as it is (design.md section 3).
    `applies`: the field matters only while each named field has one of the listed values. `constraints` are pydantic's.
    """
    extra: dict[str, Any] = {
        _KEY: {
            "section": section,
            "unit": unit,
            "binds_secret": binds_secret,
            "applies": {k: list(v) for k, v in (applies or {}).items()},
        }
    }
    return Field(default, title=label, description=help, json_schema_extra=extra, **constraints)


NAME_PATTERN = r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"
IDENTIFIER_PATTERN = r"^[0-9a-hjkmnp-tv-z]{13}$"


def name_field(help: str) -> Any:
    """The name of an object, which people see and type."""
    return field(label="Name", help=help, section="General", min_length=1, max_length=100, pattern=NAME_PATTERN)


def owner_field(help: str, *, binds_secret: bool = False) -> Any:
    """The tenant that an object belongs to; without one it is global."""
    return field(
        None, label="Owner", help=help, section="General", binds_secret=binds_secret, pattern=IDENTIFIER_PATTERN
    )


def comments_field() -> Any:
    """Free text beside an object."""
    return field("", label="Comments", help="For your colleagues.", section="General", max_length=4000)


@dataclass(frozen=True, slots=True)
class FieldDescription:
    """One declared field as the faces see it. `path` is dotted where the field belongs to a nested value."""

    path: str
    label: str
    help: str
    section: str
    unit: str
    kind: str  # text, secret, integer, number, boolean, choice, list, identifier
    choices: tuple[str, ...]
    default: Any
    required: bool
    is_secret: bool
    binds_secret: bool
    applies: Mapping[str, tuple[str, ...]]
    constraints: Mapping[str, Any]


def describe(model: type[BaseModel], prefix: str = "") -> Iterator[FieldDescription]:
    """Walk the declared fields of `model`, those of nested values and of each member of a nested tagged union included.

    A field that stands in several members of a union is yielded once, for the first member that has it, with `applies`
    naming all of them.
    """
    for name, info in model.model_fields.items():
        members = union_members(info)
        if members:
            yield from _describe_union(name, info, members, prefix)
        else:
            yield _description(prefix + name, info)


def union_members(info: FieldInfo) -> dict[str, type[BaseModel]]:
    """The members of a tagged union by tag, or {} where the field is none."""
    tag = info.discriminator
    if not isinstance(tag, str):
        return {}
    return {_tag_of(m, tag): m for m in get_args(bare_annotation(info.annotation))}


def _tag_of(member: type[BaseModel], tag: str) -> str:
    return str(get_args(member.model_fields[tag].annotation)[0])


def _describe_union(
    name: str, info: FieldInfo, members: Mapping[str, type[BaseModel]], prefix: str
) -> Iterator[FieldDescription]:
    tag = str(info.discriminator)
    tag_path = f"{prefix}{name}.{tag}"
    seen: dict[str, FieldDescription] = {}
    for member_tag, member in members.items():
        for described in describe(member, f"{prefix}{name}."):
            if described.path == tag_path:
                continue
            known = seen.get(described.path)
            tags = (*known.applies[tag_path], member_tag) if known else (member_tag,)
            base = known or described
            seen[described.path] = FieldDescription(
                **{f: getattr(base, f) for f in FieldDescription.__slots__ if f != "applies"},
                applies={**base.applies, tag_path: tags},
            )
    tag_info = next(iter(members.values())).model_fields[tag]
    choice = _description(tag_path, tag_info)
    default = info.get_default(call_default_factory=False) if not info.is_required() else None
    yield FieldDescription(
        **{f: getattr(choice, f) for f in FieldDescription.__slots__ if f not in ("choices", "default", "kind")},
        kind="choice",
        choices=tuple(members),
        default=getattr(default, tag, None),
    )
    yield from seen.values()


def _description(path: str, info: FieldInfo) -> FieldDescription:
    meta = meta_of(info)
    kind, choices = _kind(info.annotation)
    default = None if info.is_required() else info.get_default(call_default_factory=False)
    constraints = {
        name: getattr(rule, name)
        for rule in info.metadata
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
        if getattr(rule, name, None) is not None
    }
    return FieldDescription(
        path=path,
        label=info.title or path,
        help=info.description or "",
        section=str(meta.get("section", "")),
        unit=str(meta.get("unit", "")),
        kind=kind,
        choices=choices,
        default=default,
        required=info.is_required(),
        is_secret=kind == "secret",
        binds_secret=bool(meta.get("binds_secret", False)),
        applies={k: tuple(v) for k, v in meta.get("applies", {}).items()},
        constraints=constraints,
    )


def meta_of(info: FieldInfo) -> dict[str, Any]:
    """What `field` added to pydantic's declaration: section, unit, binds_secret, applies."""
    extra = info.json_schema_extra
    meta = extra.get(_KEY) if isinstance(extra, dict) else None
    return dict(meta) if isinstance(meta, dict) else {}


def choices_of(info: FieldInfo) -> tuple[str, ...]:
    """What a field offers to choose from; () where it takes free input."""
    return tuple(union_members(info)) or _kind(info.annotation)[1]


def bare_annotation(annotation: Any) -> Any:
    """The annotation without Annotated and without "or None"."""
    if get_origin(annotation) is Annotated:
        return bare_annotation(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [a for a in get_args(annotation) if a is not type(None)]
        if len(rest) == 1:
            return bare_annotation(rest[0])
    return annotation


_SCALARS: tuple[tuple[type, str], ...] = ((bool, "boolean"), (int, "integer"), (float, "number"), (SecretStr, "secret"))


def _kind(annotation: Any) -> tuple[str, tuple[str, ...]]:
    bare = bare_annotation(annotation)
    origin = get_origin(bare)
    if origin is Literal:
        return "choice", tuple(str(a) for a in get_args(bare))
    if origin in (tuple, list, frozenset):
        return "list", ()
    if isinstance(bare, type):
        if issubclass(bare, Enum):
            return "choice", tuple(str(m.value) for m in bare)
        for scalar, kind in _SCALARS:
            if issubclass(bare, scalar):
                return kind, ()
    return "text", ()

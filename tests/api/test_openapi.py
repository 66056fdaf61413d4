"""The OpenAPI document: recorded, well-formed, and true."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from posthouse.api.record import recorded_text
from posthouse.model.identifier import parse_id
from tests.support.certificates import CertificateAuthority
from tests.support.web import Web

RECORDED = Path(__file__).parents[2] / "docs" / "reference" / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(recorded_text())


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def walk(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for entry in schema.values():
            yield from walk(entry)
    elif isinstance(schema, list):
        for entry in schema:
            yield from walk(entry)


def test_the_recorded_document_is_what_the_program_says() -> None:
    assert RECORDED.read_text() == recorded_text(), (
        "The interface has changed. Where that is meant: .venv/bin/python -m posthouse.api.record docs/reference/openapi.json"
    )


async def test_it_is_served_to_everybody(web: Web) -> None:
    answer = await web.caller(None).get("/api/v1/openapi.json")
    assert answer.json() == DOCUMENT
    assert answer.json()["openapi"].startswith("3.1")


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    used = {schema["$ref"] for schema in walk(DOCUMENT) if isinstance(schema.get("$ref"), str)}
    for schema in walk(DOCUMENT):
        used |= set(schema.get("mapping", {}).values()) if "propertyName" in schema else set()
    known = {
        f"#/components/{kind}/{name}" for kind in ("schemas", "responses") for name in DOCUMENT["components"][kind]
    }
    assert used - known == set()
    assert {name for name in known - used if "/schemas/" in name} == set()


def test_every_operation_has_a_name_a_summary_and_says_how_it_may_fail() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names))
    for path, method, operation in operations():
        where = f"{method} {path}"
        assert operation["summary"] and "Hub" not in json.dumps(operation), where
        assert {"401", "403", "404", "421", "422", "429", "503"} <= set(operation["responses"]), where
        assert operation["security"] == [{"bearer": []}], where


def test_every_field_of_a_value_is_described() -> None:
    for name in ("SmtpServer", "CaptureServer", "Tenant", "Application", "Certificate", "PasswordAuth"):
        schema = DOCUMENT["components"]["schemas"][name]
        assert schema["additionalProperties"] is False
        for field, described in schema["properties"].items():
            # pydantic leaves a title out that the referenced schema has as well.
            assert described.get("title") or "$ref" in described, f"{name}.{field}"
            assert described["description"], f"{name}.{field}"


def test_a_secret_is_shown_as_set_or_not_set_only() -> None:
    shown = DOCUMENT["components"]["schemas"]["SmtpServerObject"]
    passwords = [
        schema["properties"]["password"] for schema in walk(shown) if "password" in schema.get("properties", {})
    ]
    assert passwords
    for schema in passwords:
        assert "writeOnly" not in json.dumps(schema) and '"set", "not set"' in json.dumps(schema)


def test_examples_of_identifiers_are_identifiers() -> None:
    for schema in walk(DOCUMENT):
        if "pattern" in schema and "{13}" in schema["pattern"]:
            for example in schema.get("examples", ()):
                assert parse_id(example) is not None


def _examples() -> Iterator[Any]:
    for path, method, operation in operations():
        for media_type, media in operation.get("requestBody", {}).get("content", {}).items():
            found = [media["example"]] if "example" in media else []
            found += [example["value"] for example in media.get("examples", {}).values()]
            for number, example in enumerate(found):
                yield pytest.param(path, method, media_type, example, id=f"{method} {path} {media_type} {number}")


@pytest.mark.parametrize(("path", "method", "media_type", "example"), list(_examples()))
async def test_every_example_of_a_body_is_taken(
    web: Web,
    administrator: httpx2.AsyncClient,
    authority: CertificateAuthority,
    path: str,
    method: str,
    media_type: str,
    example: Any,
) -> None:
    server = await web.sandbox()
    tenant = await web.add("tenants", name="of the tests")
    application = await web.add("applications", name="of the tests")
    certificate = await web.add("certificates", name="of the tests", pem=authority.pem)
    numbers = {"servers": server, "queue": server, "tenants": tenant, "applications": application}
    numbers["certificates"] = certificate
    collection = path.split("/")[3]
    if "{id}" in path:
        path = path.replace("{id}", numbers[collection]["id"])
    answer = await administrator.request(
        method.upper(), path, content=json.dumps(example).encode(), headers={"Content-Type": media_type}
    )
    assert answer.status_code < 300, answer.text

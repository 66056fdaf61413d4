"""Imports point one way: faces -> jobs -> {store, transports, fetchers} -> protocol -> model.

Read from the syntax tree of every module, so that an import inside a function or under TYPE_CHECKING counts as well.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "posthouse"

# The layers from the top down; a module may import from its own part and from the layers below its own.
LAYERS: list[set[str]] = [
    {"app"},
    {"api", "console", "smtpd", "cli", "http_listener"},
    {
        *("administration", "authorization", "diagnosis", "submission", "delivery", "retrieval", "notification"),
        *("tracking", "maintenance", "metrics", "sessions"),
    },
    {"store", "transports", "fetchers"},
    {"protocol"},
    {"model"},
]
# Parts of one layer that may import each other: jobs hand over to jobs.
MAY_MEET = {*LAYERS[2]}
# Imported from anywhere, and what of ours they may import themselves.
EVERYWHERE: dict[str, set[str]] = {"errors": set(), "clock": set(), "logs": set(), "settings": {"errors", "model"}}
# What others run outside of Posthouse; it must stand alone, and nothing of ours may need it.
APART = {"testing", "client", "contrib"}
# Who starts the program may compose it.
STARTERS = {"posthouse.__main__", "posthouse.cli.main", "posthouse.cli.serve", "posthouse.cli.connection"}
# Nothing may import what is unmaintained.
FORBIDDEN = {"httpx"}
# A web framework belongs in the faces that speak HTTP, SQL in the store.
ONLY_IN = {
    "fastapi": {"api"},
    "starlette": {"api", "console", "app"},
    "uvicorn": {"http_listener"},
    "sqlalchemy": {"store"},
    "alembic": {"store"},
    "psycopg": {"store"},
    "sqlite3": {"store"},
    "click": {"cli"},
    "rich": {"cli"},
}


def modules() -> list[Path]:
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """Give the second name of a module of ours: `posthouse.api.errors` is part of `api`."""
    names = module.split(".")
    return names[1] if len(names) > 1 else ""


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of everything that a module imports."""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from posthouse import model` names the part only here.
            yield from ((node.lineno, f"{base}.{alias.name}" if base == PACKAGE else base) for alias in node.names)


def layer_of(part: str) -> int | None:
    return next((number for number, parts in enumerate(LAYERS) if part in parts), None)


def is_allowed(module: str, imported: str) -> bool:
    """Say whether one module of ours may import another."""
    mine, theirs = part_of(module), part_of(imported)
    if imported in (PACKAGE, f"{PACKAGE}.__version__") or mine == theirs:
        return True
    if theirs in APART or mine in APART:
        return False
    if mine in EVERYWHERE:
        return theirs in EVERYWHERE[mine]
    if theirs in EVERYWHERE:
        return True
    above, below = layer_of(mine), layer_of(theirs)
    if module in STARTERS and theirs in {"app", "cli"}:
        return True
    if above is None or below is None:
        return False
    return above < below or (above == below and {mine, theirs} <= MAY_MEET)


def findings(path: Path) -> Iterator[str]:
    module = name_of(path)
    for line, imported in imports_of(path):
        top = imported.split(".")[0]
        where = f"{path.relative_to(ROOT)}:{line}"
        if top == PACKAGE and not is_allowed(module, imported):
            yield f"{where} imports {imported}"
        if top in FORBIDDEN:
            yield f"{where} imports {top}, which is unmaintained"
        if top in ONLY_IN and part_of(module) not in ONLY_IN[top]:
            yield f"{where} imports {top}, which belongs in {', '.join(sorted(ONLY_IN[top]))}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    assert list(findings(path)) == []


def test_every_part_has_its_place() -> None:
    known = {*APART, *EVERYWHERE, *(part for layer in LAYERS for part in layer), "", "__main__"}
    assert {part_of(name_of(path)) for path in modules()} - known == set()


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("posthouse.api.messages", "posthouse.submission", True),
        ("posthouse.api.messages", "posthouse.model.message", True),
        ("posthouse.api.messages", "posthouse.console.pages", False),
        ("posthouse.submission", "posthouse.store.messages", True),
        ("posthouse.delivery", "posthouse.notification", True),
        ("posthouse.store.messages", "posthouse.submission", False),
        ("posthouse.store.messages", "posthouse.transports.smtp", False),
        ("posthouse.transports.smtp", "posthouse.protocol.smtp", True),
        ("posthouse.protocol.smtp", "posthouse.store", False),
        ("posthouse.model.server", "posthouse.errors", True),
        ("posthouse.model.server", "posthouse.protocol.smtp", False),
        ("posthouse.errors", "posthouse.model", False),
        ("posthouse.settings", "posthouse.model.fields", True),
        ("posthouse.settings", "posthouse.store", False),
        ("posthouse.delivery", "posthouse.app", False),
        ("posthouse.cli.main", "posthouse.app", True),
        ("posthouse.cli.server", "posthouse.app", False),
        ("posthouse.testing.smtp", "posthouse.protocol.smtp", False),
        ("posthouse.delivery", "posthouse.testing.smtp", False),
        ("posthouse.delivery", "posthouse.unheard_of", False),
    ],
)
def test_the_rule_itself(module: str, imported: str, allowed: bool) -> None:
    assert is_allowed(module, imported) is allowed


def test_imports_are_found_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / PACKAGE / "store" / "messages.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "from posthouse import api\nfrom ..protocol import smtp\nfrom . import schema\n"
        "def f():\n    import posthouse.cli.main\n    import httpx\n    import fastapi\n"
    )
    assert [text.split(" imports ")[1].split(",")[0] for text in sorted(findings(path))] == [
        "posthouse.api",
        "posthouse.cli.main",
        "httpx",
        "fastapi",
    ]

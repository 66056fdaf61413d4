"""The docs say what the code says: reference pages are as printed, everything is listed, and no link is dead."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from posthouse.cli import reference
from posthouse.cli.main import COMMANDS, program
from posthouse.errors import PosthouseError
from posthouse.model.application import Application
from posthouse.model.certificate import Certificate
from posthouse.model.fields import describe
from posthouse.model.installation import Installation
from posthouse.model.server import SERVER_KINDS
from posthouse.model.tenant import Tenant
from posthouse.settings import Settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
PRINTED = reference.pages()

LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.M)
COMMAND = re.compile(r"(?:^|[`/ ])posthouse ((?:[a-z]+ ?)+)", re.M)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9.-]*[a-z0-9]")


def test_the_reference_on_disk_is_what_is_printed() -> None:
    for name, text in PRINTED.items():
        path = DOCS / "reference" / name
        assert path.is_file(), f"{name} is missing: run `make docs`"
        assert path.read_text() == text, f"{name} is not as printed: run `make docs`"


def test_nothing_else_lies_in_the_reference() -> None:
    assert {path.name for path in (DOCS / "reference").iterdir()} == {*PRINTED, "openapi.json"}


def test_printing_is_one_command(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "posthouse.cli.reference", tmp_path], check=True, cwd=ROOT, timeout=60)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == PRINTED


@pytest.mark.parametrize(
    ("page", "models"),
    [
        ("servers.md", tuple(SERVER_KINDS.values())),
        ("applications.md", (Application,)),
        ("tenants.md", (Tenant,)),
        ("certificates.md", (Certificate,)),
        ("settings.md", (Installation, Settings)),
    ],
)
def test_every_field_is_listed_with_its_help(page: str, models: tuple[type, ...]) -> None:
    text = PRINTED[page]
    for model in models:
        for described in describe(model):
            assert f"`{described.path}`" in text, described.path
            assert described.help.replace("|", "\\|") in text, described.path


def test_every_kind_of_server_has_its_part() -> None:
    for kind in SERVER_KINDS:
        assert f"## Kind `{kind}`" in PRINTED["servers.md"]


def test_every_setting_has_its_variable() -> None:
    for name in Settings.model_fields:
        assert f"`POSTHOUSE_{name.upper()}`" in PRINTED["settings.md"]


def commands() -> Iterator[tuple[str, click.Command]]:
    """Give every command by its words, groups included."""
    root = program()
    context = click.Context(root)

    def walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield name, command
        if isinstance(command, click.Group):
            for inner, subcommand in command.commands.items():
                yield from walk(f"{name} {inner}", subcommand)

    for name in COMMANDS:
        command = root.get_command(context, name)
        assert command is not None
        yield from walk(name, command)


ALL_COMMANDS = dict(commands())
ALL_OPTIONS = {
    name
    for command in ALL_COMMANDS.values()
    for parameter in command.params
    for name in (*parameter.opts, *parameter.secondary_opts)
    if name.startswith("--")
} | {"--help", "--version"}


def test_every_command_and_option_is_listed_and_explained() -> None:
    text = PRINTED["cli.md"]
    for name, command in ALL_COMMANDS.items():
        assert f"# posthouse {name}\n" in text, name
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts}"
                for option in (*parameter.opts, *parameter.secondary_opts):
                    assert option in text, f"{name} {option}"


def error_classes(parent: type[PosthouseError] = PosthouseError) -> Iterator[type[PosthouseError]]:
    yield parent
    for child in parent.__subclasses__():
        yield from error_classes(child)


def test_every_error_code_is_listed() -> None:
    text = PRINTED["errors.md"]
    for error in error_classes():
        if error.__module__ == PosthouseError.__module__:
            assert f"| `{error.code}` | {error.http_status} | {error.smtp_code} {error.smtp_enhanced} |" in text


def test_every_code_in_the_source_is_listed() -> None:
    """Found by text, where the page finds them in the syntax tree: one of the two would notice a new way to write it."""
    text = PRINTED["errors.md"]
    written = re.compile(
        r'(?:\bcode=|InvalidInput\.of\(\s*[^,()]+,\s*|FieldProblem\(\s*[^,()]+,\s*|WebRefusal\(\s*\d+,\s*)"([a-z][a-z0-9-]+)"'
    )
    found = {
        code
        for path in (ROOT / "posthouse").rglob("*.py")
        if "cli" not in path.parts and "testing" not in path.parts
        for code in written.findall(path.read_text())
    }
    assert len(found) > 20
    assert {code for code in found if f"| `{code}` |" not in text} == set()


def test_every_metric_is_listed() -> None:
    text = PRINTED["metrics.md"]
    for name in (
        "posthouse_messages_accepted_total",
        "posthouse_recipients_delivered_total",
        "posthouse_recipients_failed_total",
        "posthouse_queue_recipients",
    ):
        assert f"`{name}`" in text


def anchors(path: Path) -> set[str]:
    """Give the anchors that a page's headings make."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(path.read_text())}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_relative_link_is_dead(path: Path) -> None:
    for link in LINK.findall(path.read_text()):
        target, _, anchor = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), f"{path.name}: {link}"
        assert ROOT in found.parents, f"{path.name}: {link}"
        if anchor:
            assert anchor in anchors(found), f"{path.name}: {link}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_options_in_the_prose_exist(path: Path) -> None:
    text = path.read_text()
    for words in COMMAND.findall(text):
        names = words.split()
        if names[0] in COMMANDS:
            command = ALL_COMMANDS[names[0]]
            if isinstance(command, click.Group) and len(names) > 1:
                assert f"{names[0]} {names[1]}" in ALL_COMMANDS, f"{path.name}: posthouse {words}"
    ours = "\n".join(
        line for line in text.splitlines() if "swaks" not in line and "curl" not in line and "--auth-user" not in line
    )
    for option in OPTION.findall(ours):
        assert option in ALL_OPTIONS, f"{path.name}: {option}"


def test_every_page_can_be_reached_from_the_first() -> None:
    seen: set[Path] = set()
    pending = [ROOT / "README.md"]
    while pending:
        page = pending.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        pending += [(page.parent / link.partition("#")[0]).resolve() for link in LINK.findall(page.read_text())]
    assert {page for page in PAGES if page not in seen} == set()


def test_the_changelog_keeps_its_groups() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    groups = re.findall(r"^### (.*)$", text, re.M)
    assert groups and set(groups) <= {"Security", "Incompatible", "Added", "Fixed"}

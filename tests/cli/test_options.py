"""Options made from the declared fields: names, types, references, secrets."""

from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from posthouse.cli.failure import CommandError
from posthouse.cli.options import FieldOptions, Given, Word
from posthouse.cli.place import Command as PlacedCommand
from posthouse.cli.place import Group as PlacedGroup
from posthouse.cli.place import Place
from posthouse.model.application import Application
from posthouse.model.fields import Value, field
from posthouse.model.installation import Installation
from posthouse.model.server import SERVER_KINDS

SERVER = FieldOptions(tuple(SERVER_KINDS.values()))


def given(options: FieldOptions, *arguments: str, adding: bool = False, text: str | None = None) -> Given:
    """What the options make of a command line."""
    found: list[Given] = []

    def run(**values: Any) -> None:
        found.append(options.collect(values))

    command = click.Command("try", callback=run, params=options.parameters(adding=adding, without=("name",)))
    done = CliRunner().invoke(command, arguments, input=text, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return found[0]


def test_contract_names_and_field_names_mean_the_same() -> None:
    short = given(SERVER, "--kind", "smtp", "--host", "127.0.0.1", "--port", "2600", "--tls", "none", "--default")
    long = given(
        SERVER, "--kind", "smtp", "--host", "127.0.0.1", "--port", "2600", "--tls-mode", "none", "--is-default"
    )
    assert short.shape == long.shape
    assert short.shape == {"kind": "smtp", "host": "127.0.0.1", "port": 2600, "tls_mode": "none", "is_default": True}


def test_every_field_of_every_model_has_an_option() -> None:
    for options in (SERVER, FieldOptions((Application,)), FieldOptions((Installation,))):
        names = {name for parameter in options.parameters(adding=False) for name in parameter.opts}
        for path in options.fields:
            assert "--" + path.replace("_", "-") in names, path


def test_only_what_is_given_is_said() -> None:
    assert given(SERVER, "--no-enabled").shape == {"enabled": False}


def test_choices_pass_however_they_are_written() -> None:
    shape = given(SERVER, "--tls", "STARTTLS-Required", "--auth.mechanism", "cram-md5", "--auth.username", "u").shape
    assert shape["tls_mode"] == "starttls_required"
    assert shape["auth"]["mechanism"] == "CRAM-MD5"


def test_a_wrong_choice_is_a_usage_error_that_names_the_choices() -> None:
    with pytest.raises(click.UsageError, match="starttls_optional"):
        given(SERVER, "--tls", "ssl")


def test_lists_are_given_by_repeating_and_keep_their_type() -> None:
    application = given(FieldOptions((Application,)), "--network", "10.0.0.0/8", "--networks", "::1")
    assert application.shape == {"networks": ["10.0.0.0/8", "::1"]}
    installation = given(FieldOptions((Installation,)), "--retry-delay-s", "60", "--retry-delay-s", "300")
    assert installation.shape == {"retry_delays_s": [60, 300]}


def test_a_user_name_alone_says_how_to_sign_in() -> None:
    assert given(SERVER, "--auth.username", "ada").shape == {"auth": {"username": "ada", "type": "password"}}
    assert given(SERVER, "--auth.type", "none").shape == {"auth": {"type": "none"}}


def test_a_user_name_says_nothing_where_two_ways_have_one() -> None:
    class First(Value):
        type: Literal["first"] = field("first", label="T", help="t", section="S")
        username: str = field(label="U", help="u", section="S")

    class Second(Value):
        type: Literal["second"] = field("second", label="T", help="t", section="S")
        username: str = field(label="U", help="u", section="S")
        key: SecretStr | None = field(None, label="K", help="k", section="S")

    class Holder(Value):
        auth: First | Second = field(label="A", help="a", section="S", discriminator="type")

    options = FieldOptions((Holder,))
    assert given(options, "--auth.username", "ada").shape == {"auth": {"username": "ada"}}
    assert given(options, "--auth.key", "k").shape == {"auth": {"key": "k", "type": "second"}}


def test_other_objects_are_named() -> None:
    found = given(SERVER, "--tenant", "acme", "--fallback", "spare", "--certificate", "a", "--certificate", "b")
    assert found.references == {"tenant_id": "acme", "fallback_server_id": "spare", "certificate_ids": ["a", "b"]}
    assert found.shape == {}


def test_a_secret_comes_from_the_first_line_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("correct horse \r\nignored\n")
    shape = given(SERVER, "--auth.username", "ada", "--auth.password-file", str(file)).shape
    assert shape["auth"]["password"] == "correct horse "


def test_a_secret_comes_from_standard_input() -> None:
    assert given(SERVER, "--auth.password-file", "-", text="s3cret\n").shape["auth"]["password"] == "s3cret"


def test_an_empty_or_missing_secret_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(CommandError, match="first line is empty"):
        given(SERVER, "--auth.password-file", str(tmp_path / "empty"))
    with pytest.raises(CommandError, match="cannot be read"):
        given(SERVER, "--auth.password-file", str(tmp_path / "none"))


def test_two_sources_of_one_secret_are_refused() -> None:
    with pytest.raises(CommandError, match="both given"):
        given(SERVER, "--auth.password", "x", "--auth.password-file", "-", text="y\n")


def test_the_help_of_a_plain_secret_warns_of_the_process_list() -> None:
    (option,) = [p for p in SERVER.parameters(adding=True) if "--auth.password" in p.opts]
    assert isinstance(option, click.Option) and "list of processes" in str(option.help)


def test_unset_names_a_field_in_any_of_its_names() -> None:
    assert given(SERVER, "--unset", "port", "--unset", "tls", "--unset", "fallback_server_id").unset == (
        "port",
        "tls_mode",
        "fallback_server_id",
    )
    with pytest.raises(CommandError, match="no such field"):
        given(SERVER, "--unset", "nonsense")


def test_what_only_one_kind_needs_is_not_required_of_all() -> None:
    required = [p.opts for p in SERVER.parameters(adding=True, without=("name",)) if p.required]
    assert required == []
    assert [p.name for p in FieldOptions((Application,)).parameters(adding=True) if p.required] == ["f_name"]


def test_the_kind_offers_every_kind_of_server() -> None:
    (option,) = [p for p in SERVER.parameters(adding=True) if "--kind" in p.opts]
    assert isinstance(option.type, Word) and option.type.choices == tuple(SERVER_KINDS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "d", "--json", "noun", "verb"],
        ["noun", "--data", "d", "--json", "verb"],
        ["noun", "verb", "--data", "d", "--json"],
        ["--data", "x", "noun", "verb", "--json", "--data", "d"],
    ],
)
def test_place_options_stand_before_or_after_the_verb(arguments: list[str]) -> None:
    found: list[Place] = []
    root, noun = PlacedGroup("root"), PlacedGroup("noun")
    root.add_command(noun)

    @noun.command("verb", cls=PlacedCommand)
    @click.pass_context
    def verb(ctx: click.Context) -> None:
        found.append(Place.of(ctx))

    done = CliRunner().invoke(root, arguments, standalone_mode=False)
    assert done.exception is None
    assert found == [Place("d", None, True)]

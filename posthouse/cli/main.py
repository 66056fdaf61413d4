"""The program `posthouse`: finds the command, runs it, and turns what goes wrong into one line and an exit status.

Only the module of the command that is called is imported, so that `posthouse --help` is quick.
"""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click

import posthouse


@dataclass(frozen=True, slots=True)
class Entry:
    """A command: where it is, and its line in the help of the whole."""

    module: str
    help: str
    attribute: str = ""


# In the order in which they are shown.
COMMANDS: Mapping[str, Entry] = {
    "serve": Entry("serve", "Run Posthouse."),
    "server": Entry("servers", "Servers: the configured ways out."),
    "application": Entry("applications", "Applications: programs and devices that hand over mail."),
    "tenant": Entry("tenants", "Tenants: the organisations that this installation serves."),
    "certificate": Entry("certificates", "Certificates that servers are checked against, beside the system's."),
    "settings": Entry("settings", "Settings of the installation, the global switch among them."),
    "send": Entry("send", "Hand over a message."),
    "message": Entry("messages", "Messages: what was handed over, and what became of it."),
    "queue": Entry("queue", "The queue: what waits, for which server and why."),
    "token": Entry("tokens", "Tokens for REST."),
    "user": Entry("users", "A link that signs you in to the pages."),
    "events": Entry("events", "What happened to mail and servers."),
    "audit": Entry("events", "Who changed what in the configuration."),
    "migrate": Entry("migrate", "Bring the database to this version."),
}

_EPILOG = (
    "Every command takes --data DIR (or POSTHOUSE_DATA) and --json. While `posthouse serve` runs on DIR, commands "
    "speak to it. With POSTHOUSE_URL and POSTHOUSE_TOKEN they work on a remote installation. Exit status: 0 done, 1 "
    "refused or failed, 2 the command line is wrong."
)


class Program(click.Group):
    """All commands, imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"posthouse.cli.{entry.module}")
        command: click.Command = getattr(module, entry.attribute or cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing one of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


def program() -> Program:
    """The whole command line."""
    from posthouse.cli.place import place_options

    return Program(
        "posthouse",
        params=[*place_options(), _version_option()],
        help="Posthouse: the one place where mail servers are configured, authorised, tested and used.",
        epilog=_EPILOG,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def _version_option() -> click.Option:
    def show(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
        if wanted and not ctx.resilient_parsing:
            click.echo(f"Posthouse {posthouse.__version__}")
            ctx.exit()

    return click.Option(
        ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=show, help="Say the version."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its status."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run the command line. Returns the exit status."""
    as_json = "--json" in arguments
    try:
        status = program().main(arguments, prog_name="posthouse", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.ClickException as error:
        return _report_usage(error, as_json=as_json)
    except (click.Abort, KeyboardInterrupt):
        print("Stopped.", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader, such as `head`, has enough. Nothing more can be said to it, not even at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _report(error, as_json=as_json)


def _report(error: Exception, *, as_json: bool) -> int:
    """Say what our own errors say. What is none of them is a fault of the program and keeps its trace."""
    from posthouse.cli.failure import CommandError, report
    from posthouse.errors import PosthouseError

    if isinstance(error, PosthouseError):
        error = CommandError.from_error(error)
    if not isinstance(error, CommandError):
        raise error
    return report(error, as_json=as_json)


def _report_usage(error: click.ClickException, *, as_json: bool) -> int:
    from posthouse.cli.failure import CommandError, report

    context = getattr(error, "ctx", None)
    path = context.command_path if context else "posthouse"
    return report(
        CommandError.usage(error.format_message(), remedy=f"`{path} --help` shows what it takes."), as_json=as_json
    )


if __name__ == "__main__":
    main()

"""Commands on a real installation, over the socket of the node that runs on the data directory."""

import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.calling import CalledNode
from tests.support.certificates import CertificateAuthority
from tests.support.posthouse import PROGRAM, CommandFailed, PosthouseProcess
from tests.support.processes import free_port, wait_until

SECRET = "canary-7f3a9c-passphrase"


@pytest.fixture
def node(tmp_path: Path, watch: Callable[[PosthouseProcess], None]) -> Iterator[PosthouseProcess]:
    """Give a node with a sandbox as its default."""
    made = CalledNode(tmp_path / "node")
    watch(made)
    made.start()
    try:
        made.cli("server", "add", "sandbox", "--kind", "capture")
        yield made
    finally:
        made.stop()


def refused(node: PosthouseProcess, *arguments: str, stdin: str | None = None) -> dict[str, Any]:
    """Run a command that must be refused; give its problem."""
    done = node.run(*arguments, "--json", stdin=stdin)
    assert done.returncode == 1, done
    assert done.stdout == ""
    problem: dict[str, Any] = json.loads(done.stderr)
    return problem


# --- the contract -----------------------------------------------------------------------------------------------------


def test_the_commands_that_scripts_rely_on(posthouse: PosthouseProcess) -> None:
    server = posthouse.cli(
        *("server", "add", "office", "--kind", "smtp", "--host", "127.0.0.1", "--port", str(free_port())),
        *("--tls", "none", "--default"),
    )
    assert (server["name"], server["tls_mode"], server["is_default"]) == ("office", "none", True)
    scanner = posthouse.cli("application", "add", "scanner", "--network", "127.0.0.0/8")
    assert scanner["networks"] == ["127.0.0.0/8"]
    shop = posthouse.cli("application", "add", "shop")
    assert shop["api_key"].startswith("phk_") and shop["smtp_username"].startswith("shop-") and shop["smtp_password"]
    token = posthouse.cli("token", "create", "ci", "--role", "administrator")
    assert token["token"].startswith("pht_")
    assert posthouse.cli("message", "list", "--state", "delivered") == {"items": [], "next": None}


def test_a_change_is_in_force_when_the_command_returns(node: PosthouseProcess) -> None:
    token = node.cli("token", "create", "ci", "--role", "auditor")["token"]
    assert node.request("GET", "/api/v1/servers", token=token).status == 200
    node.cli("token", "revoke", "ci")
    assert node.request("GET", "/api/v1/servers", token=token).status == 401


def test_options_before_the_verb_count_as_well(node: PosthouseProcess) -> None:
    done = subprocess.run(
        [PROGRAM, "--data", node.data, "--json", "server", "list"], capture_output=True, text=True, timeout=60
    )
    assert [s["name"] for s in json.loads(done.stdout)["items"]] == ["sandbox"]


# --- servers ----------------------------------------------------------------------------------------------------------


def test_a_server_is_added_shown_changed_and_deleted(node: PosthouseProcess) -> None:
    node.cli("server", "add", "office", "--host", "mail.example.org", "--comments", "The old one")
    shown = node.run("server", "show", "office").stdout
    assert "mail.example.org:587" in shown and "starttls_required (default)" in shown and "The old one" in shown
    changed = node.cli("server", "edit", "office", "--port", "2525", "--name", "office 2", "--reply-timeout-s", "5")
    assert (changed["port"], changed["name"], changed["reply_timeout_s"], changed["version"]) == (
        2525,
        "office 2",
        5,
        2,
    )
    assert node.cli("server", "edit", "office 2", "--unset", "port")["port"] is None
    assert "Deleted office 2." in node.run("server", "delete", "office 2").stdout
    assert refused(node, "server", "show", "office 2")["code"] == "not-found"


def test_a_server_is_named_by_its_id_too(node: PosthouseProcess) -> None:
    (server,) = node.cli("server", "list")["items"]
    assert node.cli("server", "show", server["id"])["name"] == "sandbox"
    assert node.cli("server", "show", server["id"].upper())["name"] == "sandbox"


def test_default_enable_and_disable(node: PosthouseProcess) -> None:
    node.cli("server", "add", "second", "--kind", "capture")
    assert refused(node, "server", "disable", "sandbox")["code"] == "successor-needed"
    node.cli("server", "disable", "sandbox", "--successor", "second")
    assert node.cli("server", "show", "second")["is_default"] is True
    assert node.cli("server", "show", "sandbox")["enabled"] is False
    node.cli("server", "enable", "sandbox")
    node.cli("server", "default", "sandbox")
    assert node.cli("server", "show", "second")["is_default"] is False


def test_several_are_deleted_at_once_or_none(node: PosthouseProcess) -> None:
    for name in ("a", "b", "c"):
        node.cli("server", "add", name, "--kind", "capture")
    assert refused(node, "server", "delete", "a", "nonsense")["code"] == "not-found"
    assert refused(node, "server", "delete", "sandbox", "a")["code"] == "successor-needed"
    assert len(node.cli("server", "list")["items"]) == 4
    deleted = node.cli("server", "delete", "sandbox", "a", "--successor", "b")
    assert len(deleted["deleted"]) == 2
    assert {s["name"] for s in node.cli("server", "list")["items"]} == {"b", "c"}


def test_history_names_what_changed_and_a_version_comes_back(node: PosthouseProcess) -> None:
    node.cli("server", "add", "office", "--host", "old.example.org")
    node.cli("server", "edit", "office", "--host", "new.example.org")
    history = node.run("server", "history", "office").stdout
    assert "host: old.example.org → new.example.org" in history and "command line" in history
    assert "old.example.org" in node.run("server", "history", "office", "--version", "1").stdout
    assert node.cli("server", "restore", "office", "--version", "1")["host"] == "old.example.org"


def test_a_secret_is_asked_for_again_where_it_would_reach_another_host(node: PosthouseProcess, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(SECRET + "\n")
    node.cli(
        "server", "add", "office", "--host", "a.example.org", "--auth.username", "u", "--auth.password-file", str(file)
    )
    problem = refused(node, "server", "edit", "office", "--host", "evil.example.org")
    assert problem["errors"][0]["field"] == "auth.password"
    text = node.run("server", "edit", "office", "--host", "evil.example.org").stderr
    assert "--auth.password" in text and SECRET not in text
    edited = node.run(
        "server",
        "edit",
        "office",
        "--host",
        "b.example.org",
        "--auth.password-file",
        "-",
        "--json",
        stdin=SECRET + "\n",
    )
    assert json.loads(edited.stdout)["auth"]["password"] == "set"


def test_no_secret_is_printed_stored_or_logged(node: PosthouseProcess, tmp_path: Path) -> None:
    outputs = []
    for arguments in (
        ("server", "add", "office", "--host", "a.example.org", "--auth.username", "u", "--auth.password", SECRET),
        ("server", "add", "office", "--host", "a.example.org", "--auth.username", "u", "--auth.password", SECRET),
        ("server", "add", "bad", "--host", "a b", "--auth.username", "u", "--auth.password", SECRET),
        ("server", "show", "office"),
        ("server", "history", "office"),
        ("server", "show", "office", "--json"),
        ("audit", "--json"),
        ("events", "--json"),
    ):
        done = node.run(*arguments)
        outputs.append(done.stdout + done.stderr)
    assert "set" in outputs[3]
    assert SECRET not in "".join(outputs) + node.log()
    node.terminate()
    for path in node.data.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_fields_are_named_as_options_in_errors(node: PosthouseProcess) -> None:
    text = node.run("server", "add", "office", "--host", "mail.example.org", "--port", "99999").stderr
    assert text.startswith("posthouse: --port: ")
    assert "99999" not in text
    text = node.run("server", "add", "office").stderr
    assert "--host" in text
    text = node.run("application", "add", "x", "--network", "nonsense").stderr
    assert "--network" in text


def test_a_concurrent_change_is_not_overwritten(node: PosthouseProcess) -> None:
    node.cli("server", "edit", "sandbox", "--comments", "first")
    problem = refused(node, "server", "edit", "sandbox", "--comments", "second", "--if-version", "1")
    assert problem["code"] == "version-changed"
    assert node.cli("server", "edit", "sandbox", "--comments", "second", "--if-version", "2")["comments"] == "second"


# --- tenants and names ------------------------------------------------------------------------------------------------


def test_a_name_that_several_owners_use_has_to_say_whose(node: PosthouseProcess) -> None:
    acme = node.cli("tenant", "add", "acme")
    node.cli("server", "add", "sandbox", "--kind", "capture", "--tenant", "acme")
    problem = refused(node, "server", "show", "sandbox")
    assert problem["code"] == "ambiguous" and "--tenant" in problem["remedy"]
    assert node.cli("server", "show", "sandbox", "--tenant", "acme")["tenant_id"] == acme["id"]
    assert node.cli("server", "show", "sandbox", "--tenant", "global")["tenant_id"] is None
    assert [s["tenant_name"] for s in node.cli("server", "list", "--tenant", "acme")["items"]] == ["acme"]
    assert node.cli("server", "edit", "sandbox", "--tenant", "acme", "--comments", "theirs")["comments"] == "theirs"
    assert refused(node, "server", "add", "x", "--kind", "capture", "--tenant", "nobody")["code"] == "not-found"


def test_lists_show_owners_by_name(node: PosthouseProcess) -> None:
    node.cli("tenant", "add", "acme")
    node.cli("application", "add", "shop", "--tenant", "acme")
    assert "acme" in node.run("application", "list").stdout
    assert "acme" in node.run("application", "show", "shop").stdout


def test_fallback_and_certificates_are_named(node: PosthouseProcess, authority: CertificateAuthority) -> None:
    certificate = node.cli("certificate", "add", "company-ca", "--pem", str(authority.file))
    server = node.cli(
        *("server", "add", "office", "--host", "mail.example.org", "--fallback", "sandbox"),
        *("--certificate", "company-ca", "--verification", "added"),
    )
    (sandbox,) = [s for s in node.cli("server", "list")["items"] if s["name"] == "sandbox"]
    assert server["fallback_server_id"] == sandbox["id"]
    assert server["certificate_ids"] == [certificate["id"]]
    assert "BEGIN CERTIFICATE" in node.cli("certificate", "show", "company-ca")["pem"]


# --- applications, tokens ---------------------------------------------------------------------------------------------


def test_keys_of_an_application_come_and_go(node: PosthouseProcess) -> None:
    shop = node.cli("application", "add", "shop")
    text = node.run("application", "add", "second").stdout
    assert "phk_" in text and "shown this once" in text
    made = node.cli("application", "key", "add", "shop", "--kind", "smtp", "--name", "new host")
    listed = node.cli("application", "key", "list", "shop")["items"]
    assert {k["kind"] for k in listed} == {"api_key", "smtp"} and len(listed) == 3
    for secret in (shop["api_key"], shop["smtp_password"], made["smtp_password"]):
        assert secret not in json.dumps(listed)
    key = next(k for k in listed if k["kind"] == "api_key")
    assert node.request("GET", "/api/v1/messages", token=shop["api_key"]).status == 200
    node.cli("application", "key", "revoke", "shop", key["handle"])
    assert node.request("GET", "/api/v1/messages", token=shop["api_key"]).status == 401
    assert refused(node, "application", "key", "revoke", "shop", "nonsense")["code"] == "not-found"


def test_a_token_may_end_by_itself(node: PosthouseProcess) -> None:
    made = node.cli("token", "create", "ci", "--role", "auditor", "--expires-in", "90d")
    assert made["expires_at"] is not None
    assert "in 89 d" in node.run("token", "list").stdout
    assert refused(node, "token", "create", "old", "--role", "auditor", "--expires-at", "2020-01-01")["errors"]


# --- settings, switch -------------------------------------------------------------------------------------------------


def test_the_switch_refuses_mail_with_its_reason(node: PosthouseProcess) -> None:
    node.cli("settings", "edit", "--no-sending")
    assert node.cli("settings", "show")["sending_enabled"] is False
    problem = refused(node, "send", "--from", "a@example.org", "--to", "b@example.org", "--text", "x")
    assert problem["code"] == "sending-off"
    assert "switched off" in node.run("queue", "status").stderr
    node.cli("settings", "edit", "--sending", "--retry-delay-s", "60", "--retry-delay-s", "120")
    assert node.cli("settings", "show")["retry_delays_s"] == [60, 120]
    assert node.cli("settings", "edit", "--unset", "retry-delay-s")["retry_delays_s"][0] == 60


# --- mail -------------------------------------------------------------------------------------------------------------


def test_a_message_goes_out_and_tells_what_happened(node: PosthouseProcess, tmp_path: Path) -> None:
    file = tmp_path / "report.txt"
    file.write_text("attached words")
    item = node.cli(
        *("send", "--from", "Shop <shop@example.org>", "--to", "ada@example.net", "--bcc", "bob@example.net"),
        *(
            "--subject",
            "Grüße",
            "--text",
            "Hello",
            "--attach",
            str(file),
            "--header",
            "X-Ticket: 4711",
            "--wait",
            "20s",
        ),
    )
    assert item["state"] == "delivered"
    assert {r["address"] for r in item["recipients"]} == {"ada@example.net", "bob@example.net"}
    shown = node.run("message", "show", item["id"]).stdout
    assert "Grüße" in shown and "sandbox was chosen" in shown and "Kept in the sandbox" in shown
    raw = subprocess.run(
        [PROGRAM, "message", "show", item["id"], "--raw", "--data", node.data], capture_output=True, timeout=60
    ).stdout
    assert b"X-Ticket: 4711\r\n" in raw and b"report.txt" in raw and b"bob@example.net" not in raw
    listed = node.run("message", "list", "--state", "delivered").stdout
    assert item["id"] in listed and "and 1 more" in listed
    assert item["id"] in node.run("message", "list", "--captured").stdout


def test_text_comes_from_standard_input(node: PosthouseProcess) -> None:
    done = node.run("send", "--from", "a@example.org", "--to", "b@example.org", "--json", stdin="Zeile eins\nZwei: ä\n")
    identifier = json.loads(done.stdout)["id"]
    assert "Zeile eins" in node.run("message", "show", identifier, "--raw").stdout


def test_a_whole_message_goes_as_it_is(node: PosthouseProcess, tmp_path: Path) -> None:
    file = tmp_path / "mail.eml"
    file.write_bytes(b"From: a@example.org\r\nTo: list@example.org\r\nSubject: raw\r\nX-Odd:   kept\r\n\r\nBody\r\n")
    sent = node.cli(
        "send", "--raw", str(file), "--from", "bounce@example.org", "--to", "b@example.net", "--wait", "20s"
    )
    assert sent["mail_from"] == "bounce@example.org"
    assert [r["address"] for r in sent["recipients"]] == ["b@example.net"]
    assert "X-Odd:   kept" in node.run("message", "show", sent["id"], "--raw").stdout
    done = node.run("send", "--raw", str(file), "--subject", "other")
    assert done.returncode == 2 and "--subject" in done.stderr


def test_the_same_key_sends_once(node: PosthouseProcess) -> None:
    call = ("send", "--from", "a@example.org", "--to", "b@example.org", "--text", "x", "--idempotency-key", "k1")
    assert node.cli(*call)["id"] == node.cli(*call)["id"]
    assert len(node.cli("message", "list")["items"]) == 1


def test_mail_waits_for_a_held_server_and_moves_when_released(node: PosthouseProcess) -> None:
    node.cli("queue", "hold", "sandbox", "--detail", "The office moves.")
    identifier = node.cli("send", "--from", "a@example.org", "--to", "b@example.org", "--text", "x")["id"]
    text = node.run("queue", "status").stdout
    assert "held" in text and "The office moves." in text
    assert node.cli("message", "show", identifier)["state"] == "waiting"
    assert node.run("send", "--from", "a@e.org", "--to", "b@e.org", "--text", "x", "--wait", "1s").returncode == 1
    node.cli("queue", "release", "sandbox")
    wait_until(lambda: node.cli("message", "show", identifier)["state"] == "delivered", "delivery", timeout_s=20)


def test_a_message_is_cancelled_and_tried_again(node: PosthouseProcess) -> None:
    node.cli("queue", "hold", "sandbox")
    identifier = node.cli("send", "--from", "a@example.org", "--to", "b@example.org", "--text", "x")["id"]
    assert node.cli("message", "cancel", identifier)["state"] == "cancelled"
    assert refused(node, "message", "cancel", identifier)["code"] == "conflict"
    assert node.cli("message", "retry", identifier)["state"] == "waiting"
    assert refused(node, "message", "show", "0000000000000")["code"] == "not-found"


def test_lists_of_messages_are_paged_and_filtered(node: PosthouseProcess) -> None:
    for number in range(5):
        node.cli(
            "send",
            "--from",
            "a@example.org",
            "--to",
            f"r{number}@example.org",
            "--subject",
            f"s{number}",
            "--text",
            "x",
        )
    first = node.cli("message", "list", "--limit", "2")
    second = node.cli("message", "list", "--limit", "2", "--cursor", first["next"])
    subjects = [item["subject"] for item in first["items"] + second["items"]]
    assert subjects == ["s4", "s3", "s2", "s1"]
    whole = node.cli("message", "list", "--all", "--limit", "2")
    assert len(whole["items"]) == 5 and whole["next"] is None
    assert [m["subject"] for m in node.cli("message", "list", "--address", "r3@example.org")["items"]] == ["s3"]
    assert [m["subject"] for m in node.cli("message", "list", "--text", "s2")["items"]] == ["s2"]
    assert node.cli("message", "list", "--since", "1h")["items"] != []
    assert node.cli("message", "list", "--until", "1h")["items"] == []
    assert node.cli("message", "list", "--server", "sandbox", "--application", _application(node))["items"] == []


def _application(node: PosthouseProcess) -> str:
    return str(node.cli("application", "add", "nobody")["name"])


def test_what_happened_is_listed(node: PosthouseProcess) -> None:
    sent = node.cli("send", "--from", "a@example.org", "--to", "b@example.org", "--text", "x", "--wait", "20s")
    assert "delivered 250" in node.run("events").stdout
    events = node.cli("events")
    assert sent["id"] in {e["message_id"] for e in events["items"]}
    assert node.cli("events", "--after", events["next"])["items"] == []
    text = node.run("audit").stdout
    assert "create server" in text and "sandbox" in text and "command line" in text
    assert {e["noun"] for e in node.cli("audit", "--noun", "server")["items"]} == {"server"}


def test_hostile_data_cannot_drive_the_terminal(node: PosthouseProcess) -> None:
    subject = "=?utf-8?q?=1B]0;owned=07_=1B[2J_=E2=80=AEgnp.exe_=C2=9B2J_=E2=80=A8_end?="
    mail = f"From: a@example.org\nTo: b@example.org\nSubject: {subject}\n\nx\n"
    sent = json.loads(node.run("send", "--raw", "-", "--json", stdin=mail).stdout)
    node.cli("server", "edit", "sandbox", "--comments", "\x1b[2J \u202e \x9b \u2028")
    for arguments, seen in (
        (("message", "list"), "gnp.exe"),
        (("message", "list", "--json"), "gnp.exe"),
        (("message", "show", sent["id"]), "gnp.exe"),
        (("server", "show", "sandbox"), "\\x1b[2J \\u202e \\x9b \\u2028"),
        (("server", "show", "sandbox", "--json"), "\\u202e"),
        (("server", "history", "sandbox"), "\\x1b[2J"),
    ):
        done = node.run(*arguments)
        assert done.returncode == 0
        assert seen in done.stdout, arguments
        assert all(c == "\n" or c.isprintable() for c in done.stdout), arguments


# --- places -----------------------------------------------------------------------------------------------------------


def test_commands_work_without_a_running_node(tmp_path: Path) -> None:
    node = PosthouseProcess(tmp_path / "data")
    token = node.cli("token", "create", "ci", "--role", "administrator")["token"]
    node.cli("server", "add", "sandbox", "--kind", "capture")
    identifier = node.cli("send", "--from", "a@example.org", "--to", "b@example.org", "--text", "x")["id"]
    assert node.cli("message", "show", identifier)["state"] == "waiting"
    assert node.run("migrate").returncode == 0
    assert stat.S_IMODE((node.data / "keys").stat().st_mode) == 0o600
    node.start()
    try:
        assert node.request("GET", "/api/v1/servers", token=token).json()["items"][0]["name"] == "sandbox"
        wait_until(lambda: node.cli("message", "show", identifier)["state"] == "delivered", "delivery", timeout_s=20)
    finally:
        node.stop()


def test_two_commands_at_once_take_turns(tmp_path: Path) -> None:
    arguments = [str(PROGRAM), "server", "add", "--kind", "capture", "--data", str(tmp_path / "data")]
    running = [
        subprocess.Popen([*arguments, f"s{n}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for n in range(4)
    ]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert len(PosthouseProcess(tmp_path / "data").cli("server", "list")["items"]) == 4


def test_a_second_node_on_the_directory_is_refused(node: PosthouseProcess) -> None:
    done = subprocess.run(
        [PROGRAM, "serve", "--data", node.data, "--http", f"127.0.0.1:{free_port()}"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Another Posthouse works on" in done.stderr and "Traceback" not in done.stderr
    assert node.cli("server", "list")["items"]


def test_the_socket_is_for_its_owner_alone(node: PosthouseProcess) -> None:
    mode = (node.data / "control.sock").stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600


def test_a_deep_data_directory_is_reached(start_posthouse: Callable[..., PosthouseProcess], tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["a-rather-long-name-of-a-folder"] * 5)
    folder.parent.mkdir(parents=True)
    node = start_posthouse(data=folder)
    assert len(str(node.data / "control.sock")) > 150
    node.cli("server", "add", "sandbox", "--kind", "capture")
    before = (node.data / "lock").stat().st_mtime_ns
    assert [s["name"] for s in node.cli("server", "list")["items"]] == ["sandbox"]
    assert node.request("GET", "/api/v1/servers").json()["items"][0]["name"] == "sandbox"
    assert (node.data / "lock").stat().st_mtime_ns == before


def remote(node: PosthouseProcess, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a command that knows nothing but the variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("POSTHOUSE_")}
    return subprocess.run(
        [PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**clean, **variables},
        cwd=node.data.parent,
    )


def test_a_remote_installation_is_reached_by_its_url(node: PosthouseProcess) -> None:
    listed = remote(node, "server", "list", "--json", POSTHOUSE_URL=node.http, POSTHOUSE_TOKEN=node.token)
    assert [s["name"] for s in json.loads(listed.stdout)["items"]] == ["sandbox"]
    wrong = remote(node, "server", "list", POSTHOUSE_URL=node.http, POSTHOUSE_TOKEN="pht_wrong")
    assert wrong.returncode == 1 and "pht_wrong" not in wrong.stdout + wrong.stderr
    none = remote(node, "server", "list", POSTHOUSE_URL=node.http)
    assert none.returncode == 2 and "POSTHOUSE_TOKEN" in none.stderr
    nobody = remote(node, "server", "list", POSTHOUSE_URL=f"http://127.0.0.1:{free_port()}", POSTHOUSE_TOKEN="x")
    assert nobody.returncode == 1 and "does not answer" in nobody.stderr


def test_a_token_never_travels_in_clear_text(node: PosthouseProcess) -> None:
    done = remote(node, "server", "list", POSTHOUSE_URL="http://mail.example.org", POSTHOUSE_TOKEN=node.token)
    assert done.returncode == 2 and "clear text" in done.stderr


def test_the_command_line_counts_before_the_variables(node: PosthouseProcess) -> None:
    done = remote(
        node,
        "server",
        "list",
        "--json",
        "--data",
        str(node.data),
        POSTHOUSE_URL="https://mail.example.org",
        POSTHOUSE_TOKEN="x",
    )
    assert [s["name"] for s in json.loads(done.stdout)["items"]] == ["sandbox"]
    assert remote(node, "server", "list", POSTHOUSE_DATA=str(node.data)).returncode == 0


def test_a_wider_right_than_the_tokens_is_refused(node: PosthouseProcess) -> None:
    token = node.cli("token", "create", "reader", "--role", "auditor")["token"]
    done = remote(node, "server", "delete", "sandbox", POSTHOUSE_URL=node.http, POSTHOUSE_TOKEN=token)
    assert done.returncode == 1 and "auditor" in done.stderr


def test_postgresql_is_reached_without_a_node(database_url: str, tmp_path: Path) -> None:
    node = PosthouseProcess(tmp_path / "data", database=database_url)
    node.cli("server", "add", "sandbox", "--kind", "capture")
    assert [s["name"] for s in node.cli("server", "list")["items"]] == ["sandbox"]
    assert not (node.data / "posthouse.db").exists()


# --- usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("server", "add"),
        ("server", "add", "x", "--tls", "ssl"),
        ("server", "edit", "x"),
        ("server", "nonsense"),
        ("nonsense",),
        ("token", "create", "ci"),
        ("message", "list", "--since", "soon"),
        ("message", "list", "--captured", "--state", "waiting"),
        ("send", "--to", "b@example.org"),
        ("serve", "--http", "8025"),
        ("serve", "--tls-cert", "x.pem"),
        ("serve", "--workers", "2"),
        ("serve", "--jobs", "nonsense"),
        (),
        ("server",),
    ],
)
def test_a_wrong_command_line_has_status_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = PosthouseProcess(tmp_path / "data").run(*arguments)
    assert done.returncode == 2, done
    assert done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_wrong_variable_of_serve_is_named_without_its_value(tmp_path: Path) -> None:
    node = PosthouseProcess(tmp_path / "data", environment={"POSTHOUSE_SMTP": "canary-no-port"})
    done = node.run("serve")
    assert done.returncode == 2
    assert "POSTHOUSE_SMTP" in done.stderr and "canary" not in done.stderr


def test_commands_that_come_later_are_not_listed() -> None:
    text = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, timeout=60).stdout
    for name in ("mailbox", "grant", "webhook", "doctor", "backup", "discover", "plan"):
        assert name not in text.split()


def test_help_loads_no_model() -> None:
    done = subprocess.run(
        [PROGRAM.with_name("python"), "-X", "importtime", "-m", "posthouse.cli.main", "--help"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not {"pydantic", "httpx2", "sqlalchemy", "fastapi", "posthouse.model.server"} & imported


def test_a_reader_that_has_enough_is_no_error(node: PosthouseProcess) -> None:
    done = subprocess.run(
        f"'{PROGRAM}' server show sandbox --data '{node.data}' | head -1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "sandbox" and "Traceback" not in done.stderr


def test_a_refused_command_in_the_helper_is_told(node: PosthouseProcess) -> None:
    with pytest.raises(CommandFailed, match="ended with 1"):
        node.cli("server", "show", "nonsense")

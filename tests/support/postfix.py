"""A Postfix of the test's own: its configuration, queue and port lie in one folder, and several stand side by side.

It takes mail on 127.0.0.1 and either relays all of it to one server or delivers it into maildirs under `folder/mail`,
where a Dovecot of the test can read it. Postfix's master needs root.
"""

import os
import pwd
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.certificates import Leaf
from tests.support.processes import Child, free_port, listens, program

MAIL_USER = "mail"

# What Debian ships, less the services that only a system's own Postfix needs, and without chroot: a chroot would need
# a copy of the resolver's files in each queue folder.
_SERVICES = """\
pickup    unix  n  -  n  60     1  pickup
cleanup   unix  n  -  n  -      0  cleanup
qmgr      unix  n  -  n  300    1  qmgr
tlsmgr    unix  -  -  n  1000?  1  tlsmgr
rewrite   unix  -  -  n  -      -  trivial-rewrite
bounce    unix  -  -  n  -      0  bounce
defer     unix  -  -  n  -      0  bounce
trace     unix  -  -  n  -      0  bounce
verify    unix  -  -  n  -      1  verify
flush     unix  n  -  n  1000?  0  flush
proxymap  unix  -  -  n  -      -  proxymap
proxywrite unix -  -  n  -      1  proxymap
smtp      unix  -  -  n  -      -  smtp
relay     unix  -  -  n  -      -  smtp
error     unix  -  -  n  -      -  error
retry     unix  -  -  n  -      -  error
discard   unix  -  -  n  -      -  discard
virtual   unix  -  n  n  -      -  virtual
anvil     unix  -  -  n  -      1  anvil
scache    unix  -  -  n  -      1  scache
postlog   unix-dgram n - n -    1  postlogd
"""
_QUEUE_FOLDERS = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace"),
)


@dataclass(frozen=True, slots=True)
class PostfixOptions:
    """How one Postfix behaves. What is not named is Postfix's own default."""

    # `host:port` that gets everything; else mail for `domain` goes into maildirs and other domains are refused.
    relay_to: str | None = None
    domain: str = "example.test"
    # Addresses of `domain` that exist when mail goes into maildirs.
    users: tuple[str, ...] = ("anna", "bert")
    # Offer STARTTLS, and implicit TLS on a second port.
    tls: Leaf | None = None
    # Refuse mail that comes without TLS.
    require_tls: bool = False
    # `host:port` of a Dovecot's auth service; senders must then log in.
    sasl: str | None = None
    # Offer AUTH before TLS as well.
    auth_in_clear: bool = True
    smtputf8: bool = True
    # Extensions left out of the answer to EHLO, such as "pipelining, dsn".
    discard_ehlo: str = ""
    message_size_limit: int = 52_428_800
    # Write a log; a measurement leaves that to the system's logger, as Debian does.
    log: bool = True
    # Further lines of main.cf.
    extra: dict[str, str] = field(default_factory=dict)


class Postfix:
    """One instance in `folder`; its users' mail lies in `mail_folder/<user>` as maildirs."""

    def __init__(self, folder: Path, options: PostfixOptions | None = None) -> None:
        self.options = options or PostfixOptions()
        self.folder = folder
        self.mail_folder = folder / "mail"
        self.port = free_port()
        self.tls_port = free_port() if self.options.tls else None
        self._configuration = folder / "etc"
        self._queue = folder / "queue"
        self._child: Child | None = None
        self._write_configuration()

    def start(self) -> None:
        """Start it and return when it takes connections."""
        # Not `postfix start-fg`: that keeps a shell between us and the master, which would outlive it.
        master = program("master", "/usr/lib/postfix/sbin", "/usr/libexec/postfix")
        arguments = [master, "-c", str(self._configuration), "-d"]
        self._child = Child(arguments, self.folder / "master.log")
        self._child.wait_for(lambda: listens(self.port), "Postfix's port")

    def stop(self) -> None:
        """End the master, which ends its processes; the queue stays on disk."""
        if self._child is not None:
            self._child.end()
            self._child = None

    @property
    def pid(self) -> int:
        assert self._child is not None, "Postfix is not running"
        return self._child.pid

    def log(self) -> str:
        """Give what Postfix logged, from all of its processes."""
        path = self.folder / "mail.log"
        return (path.read_text(errors="replace") if path.exists() else "") + (self._child.log() if self._child else "")

    def delivered(self, user: str) -> list[bytes]:
        """Give the messages in a user's maildir, oldest first."""
        folder = self.mail_folder / user / "new"
        paths = sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime_ns) if folder.exists() else []
        return [path.read_bytes() for path in paths]

    def queued(self) -> list[str]:
        """List the ids of what is still in the queue."""
        folders = [self._queue / name for name in ("incoming", "active", "deferred", "maildrop")]
        return [path.name for folder in folders for path in folder.rglob("*") if path.is_file()]

    def flush(self) -> None:
        """Have everything in the queue tried now."""
        subprocess.run([program("postqueue"), "-c", self._configuration, "-f"], check=True, timeout=10)

    def _write_configuration(self) -> None:
        self._make_folders()
        lines = "".join(f"{name} = {value}\n" for name, value in self._parameters().items())
        _write(self._configuration / "main.cf", lines)
        listeners = [f"127.0.0.1:{self.port} inet n - n - - smtpd"]
        if self.tls_port:
            listeners.append(f"127.0.0.1:{self.tls_port} inet n - n - - smtpd\n  -o smtpd_tls_wrappermode=yes")
        _write(self._configuration / "master.cf", "\n".join(listeners) + "\n" + _SERVICES)

    def _make_folders(self) -> None:
        """Make what `postfix check` would make, in a hundredth of its time."""
        for folder in (self._configuration, self._queue, self._queue / "pid"):
            folder.mkdir(parents=True)
        _make_folder(self.folder / "lib", "postfix")
        _make_folder(self.mail_folder, MAIL_USER)
        for name in _QUEUE_FOLDERS:
            _make_folder(self._queue / name, "postfix", mode=0o700)
        _make_folder(self._queue / "maildrop", "postfix", "postdrop", mode=0o730)
        _make_folder(self._queue / "public", "postfix", "postdrop", mode=0o710)

    def _parameters(self) -> dict[str, str]:
        options = self.options
        parameters = {
            "compatibility_level": "3.6",
            "queue_directory": str(self._queue),
            "data_directory": str(self.folder / "lib"),
            "myhostname": "postfix.example.test",
            "mydestination": "",
            "local_recipient_maps": "",
            "alias_maps": "",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "mynetworks": "127.0.0.0/8",
            "smtpd_error_sleep_time": "0",
            "smtputf8_enable": _yes(options.smtputf8),
            "message_size_limit": str(options.message_size_limit),
            "mailbox_size_limit": "0",
            "virtual_mailbox_limit": "0",
            "smtpd_discard_ehlo_keywords": options.discard_ehlo,
        }
        if options.log:
            parameters |= {"maillog_file": str(self.folder / "mail.log"), "maillog_file_prefixes": str(self.folder)}
        parameters |= self._delivery_parameters() | self._tls_parameters() | self._sasl_parameters()
        return parameters | options.extra

    def _delivery_parameters(self) -> dict[str, str]:
        if self.options.relay_to:
            host, _, port = self.options.relay_to.rpartition(":")
            return {"relayhost": f"[{host}]:{port}"}
        users = self._configuration / "users"
        _write(users, "".join(f"{user}@{self.options.domain} {user}/\n" for user in self.options.users))
        owner = pwd.getpwnam(MAIL_USER)
        return {
            "virtual_mailbox_domains": self.options.domain,
            "virtual_mailbox_base": str(self.mail_folder),
            "virtual_mailbox_maps": f"texthash:{users}",
            "virtual_minimum_uid": "1",
            "virtual_uid_maps": f"static:{owner.pw_uid}",
            "virtual_gid_maps": f"static:{owner.pw_gid}",
            "default_transport": "error:no other domains here",
        }

    def _tls_parameters(self) -> dict[str, str]:
        if not self.options.tls:
            return {"smtpd_tls_security_level": "none"}
        return {
            "smtpd_tls_security_level": "encrypt" if self.options.require_tls else "may",
            "smtpd_tls_cert_file": str(self.options.tls.chain_file),
            "smtpd_tls_key_file": str(self.options.tls.key_file),
            "smtpd_tls_received_header": "yes",
        }

    def _sasl_parameters(self) -> dict[str, str]:
        if not self.options.sasl:
            return {}
        return {
            "smtpd_sasl_auth_enable": "yes",
            "smtpd_sasl_type": "dovecot",
            "smtpd_sasl_path": f"inet:{self.options.sasl}",
            "smtpd_tls_auth_only": _yes(not self.options.auth_in_clear),
            "smtpd_relay_restrictions": "permit_sasl_authenticated, reject",
        }


def _write(path: Path, text: str) -> None:
    """Write a file that looks old: Postfix waits for two seconds lest somebody is still writing a newer one."""
    path.write_text(text)
    os.utime(path, times=(time.time() - 60,) * 2)


def _make_folder(folder: Path, user: str, group: str | None = None, *, mode: int = 0o755) -> None:
    folder.mkdir()
    shutil.chown(folder, user, group or user)
    folder.chmod(mode)


def _yes(value: bool) -> str:
    return "yes" if value else "no"

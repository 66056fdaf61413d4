"""A Dovecot of the test's own: IMAP, POP3 and the auth service on free ports of 127.0.0.1, mail in maildirs.

Given another server's mail folder (`Postfix.mail_folder`) it shows what that one delivered. It keeps the mail as the
user `mail`, as Postfix does in `postfix.py`, and needs root for that.
"""

import pwd
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.certificates import Leaf
from tests.support.postfix import MAIL_USER
from tests.support.processes import Child, free_port, listens, program


@dataclass(frozen=True, slots=True)
class DovecotOptions:
    """How one Dovecot behaves."""

    # Names and passwords; they log in as the bare name.
    users: Mapping[str, str] = field(default_factory=lambda: {"anna": "anna's secret", "bert": "bert's secret"})
    # Offer STARTTLS/STLS, and implicit TLS on further ports.
    tls: Leaf | None = None
    # Refuse a password that comes without TLS.
    require_tls: bool = False
    mechanisms: str = "plain login cram-md5"
    # Where the maildirs lie, one folder for each user; in `folder/mail` unless said.
    mail_folder: Path | None = None
    # Further lines of dovecot.conf.
    extra: str = ""


class Dovecot:
    """One instance in `folder`."""

    def __init__(self, folder: Path, options: DovecotOptions | None = None) -> None:
        self.options = options or DovecotOptions()
        self.folder = folder
        self.mail_folder = self.options.mail_folder or folder / "mail"
        # Dovecot holds a client with its own address for secure enough; a client of 127.0.0.2 comes from 127.0.0.1.
        self.host = "127.0.0.2" if self.options.require_tls else "127.0.0.1"
        self.imap_port, self.pop3_port, self.auth_port = (free_port(self.host) for _ in range(3))
        self.imaps_port = free_port(self.host) if self.options.tls else None
        self.pop3s_port = free_port(self.host) if self.options.tls else None
        self._child: Child | None = None
        self._write_configuration()

    @property
    def auth_address(self) -> str:
        """Give `host:port` of the auth service, for `PostfixOptions.sasl`."""
        return f"{self.host}:{self.auth_port}"

    def start(self) -> None:
        """Start it and return when it takes connections."""
        arguments = [program("dovecot"), "-F", "-c", str(self.folder / "dovecot.conf")]
        self._child = Child(arguments, self.folder / "master.log")
        ports = (self.imap_port, self.pop3_port, self.auth_port)
        self._child.wait_for(lambda: all(listens(port, self.host) for port in ports), "Dovecot's ports")

    def stop(self) -> None:
        """End it; the mail stays on disk."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def log(self) -> str:
        """Give what all of its processes logged."""
        path = self.folder / "dovecot.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _write_configuration(self) -> None:
        self.mail_folder.mkdir(parents=True, exist_ok=True)
        owner = pwd.getpwnam(MAIL_USER)
        shutil.chown(self.mail_folder, owner.pw_uid, owner.pw_gid)
        passwords = self.folder / "users"
        passwords.write_text("".join(f"{name}:{{PLAIN}}{secret}\n" for name, secret in self.options.users.items()))
        shutil.chown(passwords, group="dovecot")
        passwords.chmod(0o640)
        (self.folder / "dovecot.conf").write_text(
            f"""\
protocols = imap pop3
listen = {self.host}
base_dir = {self.folder}/run
state_dir = {self.folder}/state
log_path = {self.folder}/dovecot.log
auth_verbose = yes
auth_failure_delay = 0
auth_mechanisms = {self.options.mechanisms}
mail_location = maildir:{self.mail_folder}/%n
mail_uid = {owner.pw_uid}
mail_gid = {owner.pw_gid}
first_valid_uid = 1
{self._tls_lines()}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%n {passwords}
}}
userdb {{
  driver = static
  args = home={self.mail_folder}/%n
}}
service imap-login {{
  inet_listener imap {{
    port = {self.imap_port}
  }}
  inet_listener imaps {{
    port = {self.imaps_port or 0}
    ssl = yes
  }}
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {self.pop3_port}
  }}
  inet_listener pop3s {{
    port = {self.pop3s_port or 0}
    ssl = yes
  }}
}}
service anvil {{
  # No waiting after wrong passwords.
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service auth {{
  inet_listener auth {{
    port = {self.auth_port}
  }}
}}
{self.options.extra}
"""
        )

    def _tls_lines(self) -> str:
        clear = f"disable_plaintext_auth = {'yes' if self.options.require_tls else 'no'}"
        if not self.options.tls:
            return f"ssl = no\n{clear}"
        leaf = self.options.tls
        level = "required" if self.options.require_tls else "yes"
        return f"ssl = {level}\nssl_cert = <{leaf.chain_file}\nssl_key = <{leaf.key_file}\n{clear}"

"""From a message and what its sender chose to a handover for submission: whose it is, through which server, when.

What is allowed is decided by submission and routing; here names are found and times are put into their stored form.
"""

from dataclasses import dataclass
from datetime import datetime

from posthouse.api.hub import Posthouse
from posthouse.api.parameters import milliseconds
from posthouse.errors import NotFound, SendingOff
from posthouse.model.actor import Actor
from posthouse.model.identifier import parse_id
from posthouse.model.message import Envelope, Origin
from posthouse.store.content import ReceivedContent
from posthouse.submission import PRIORITIES, Admitted, Handover


@dataclass(frozen=True, slots=True)
class Choice:
    """What the sender chose: identifiers or names, times, priority."""

    server: str | None = None
    tenant: str | None = None
    send_at: datetime | None = None
    expires_at: datetime | None = None
    priority: str = "normal"


class Desk:
    """Takes the messages of one call of one actor."""

    def __init__(self, hub: Posthouse, actor: Actor, peer: str) -> None:
        self.hub = hub
        self.actor = actor
        # One snapshot for the whole call.
        self._directory = hub.directory
        self._origin = _origin(actor, peer)
        self._resolved: dict[tuple[str | None, str | None], tuple[int, int | None]] = {}
        self._checked: set[str] = set()

    def require_sending(self) -> None:
        """Refuse before anything is read. Raises SendingOff."""
        reason = self._directory.sending_off_reason()
        if reason is not None:
            raise SendingOff(reason, remedy="An administrator can switch it on again; then send the message again.")

    def handover(self, envelope: Envelope, content: ReceivedContent, choice: Choice) -> Handover:
        """The handover. Raises NotFound, SenderNotAllowed, MessageTooLarge, InvalidInput."""
        tenant_id, server_id = self.resolve(choice)
        self._check_sender(envelope, content.size)
        send_at_ms, expires_ms = milliseconds(choice.send_at), milliseconds(choice.expires_at)
        return Handover(
            envelope=envelope,
            content=content,
            origin=self._origin,
            application_id=self.actor.application_id,
            tenant_id=tenant_id,
            server_id=server_id,
            send_at_ms=send_at_ms,
            expires_ms=expires_ms,
            priority=PRIORITIES[choice.priority],
        )

    def resolve(self, choice: Choice) -> tuple[int, int | None]:
        """The numbers of tenant (0: none) and server (None: routing decides). Raises NotFound."""
        key = (choice.tenant, choice.server)
        if key not in self._resolved:
            tenant_id = self._tenant(choice.tenant)
            self._resolved[key] = (tenant_id, self._server(choice.server, tenant_id))
        return self._resolved[key]

    def _tenant(self, reference: str | None) -> int:
        if reference is None:
            return self._own_tenant()
        # design.md section 10: `tenant` only with a global token.
        if not self.actor.application_id and self.actor.tenant_id == 0:
            number = parse_id(reference)
            for record in self._directory.tenants.values():
                if record.id == number or record.name == reference:
                    return record.id
        raise NotFound("There is no such tenant.", field="tenant")

    def _own_tenant(self) -> int:
        application = self._directory.applications.get(self.actor.application_id)
        return application.tenant_id if application is not None else self.actor.tenant_id

    def _server(self, reference: str | None, tenant_id: int) -> int | None:
        if reference is None:
            return None
        application = self._directory.applications.get(self.actor.application_id)
        # design.md section 10: `server` only where the application may, else it is as if there were none.
        if application is None or application.value.may_name_server:
            number = parse_id(reference)
            for owner in dict.fromkeys((tenant_id, 0)):
                for server_id in self._directory.owned.get(owner, ()):
                    if server_id == number or self._directory.servers[server_id].name == reference:
                        return server_id
        raise NotFound("There is no such server.", field="server")

    def _check_sender(self, envelope: Envelope, size: int) -> None:
        """The rules of submission for the envelope sender: the same as at MAIL FROM."""
        application = self._directory.applications.get(self.actor.application_id)
        if application is None or envelope.mail_from in self._checked:
            return
        sender = Admitted(application.name, application, "key")
        self.hub.submission.check_mail_from(sender, envelope.mail_from, None, envelope.smtputf8)
        self._checked.add(envelope.mail_from)


def _origin(actor: Actor, peer: str) -> Origin:
    if actor.kind == "command":
        return Origin("cli")
    return Origin("rest", peer=peer, admitted_by="key" if actor.application_id else "token")

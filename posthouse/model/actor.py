"""Who does something: carried by every call of a job, written into the audit log, and asked for permission."""

from dataclasses import dataclass
from enum import StrEnum

from posthouse.errors import NotPermitted


class Role(StrEnum):
    """What an actor may do. The tenant bounds where: 0 is everywhere."""

    ADMINISTRATOR = "administrator"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    # Submits mail and sees its own messages.
    APPLICATION = "application"


class Permission(StrEnum):
    """What a call of a job asks for."""

    CONFIGURE = "configure"
    OPERATE = "operate"
    READ = "read"
    SUBMIT = "submit"


_PERMISSIONS = {
    Role.ADMINISTRATOR: frozenset(Permission),
    Role.OPERATOR: frozenset({Permission.OPERATE, Permission.READ, Permission.SUBMIT}),
    Role.AUDITOR: frozenset({Permission.READ}),
    Role.APPLICATION: frozenset({Permission.SUBMIT}),
}


@dataclass(frozen=True, slots=True)
class Actor:
    """`kind` is token, command, application, person or system; `tenant_id` 0 reaches every tenant."""

    kind: str
    id: int
    name: str
    role: Role
    tenant_id: int = 0

    def require(self, permission: Permission) -> None:
        """Raises NotPermitted where the role does not carry `permission`."""
        if permission not in _PERMISSIONS[self.role]:
            raise NotPermitted(
                f"The role {self.role.value} may not {permission.value}.", remedy="Use a token with a wider role."
            )

    def reaches(self, tenant_id: int) -> bool:
        """Whether objects of that tenant (0: global ones) may be seen and changed."""
        return self.tenant_id in (0, tenant_id)

    @property
    def application_id(self) -> int:
        """The application that speaks, or 0."""
        return self.id if self.kind == "application" else 0


SYSTEM = Actor("system", 0, "Posthouse", Role.ADMINISTRATOR)
COMMAND = Actor("command", 0, "command line", Role.ADMINISTRATOR)

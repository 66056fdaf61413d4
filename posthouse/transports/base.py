"""The contract of every way out: what a transport promises in each phase, and to whom.

    Transport.open()  ->  Session.send() ... Session.send()  ->  Session.close()

*open* reaches the server, proves who it is, and signs in. It raises DeliveryFault, and then nothing is left open and no
mail was touched. *send* hands one message over and gives one outcome per recipient. It never raises for trouble with
the server, the network or the message; whatever happens is an outcome. *close* ends politely and quickly. No phase
retries, waits for better times or chooses another server: that is decided in `model/policy.py`.

What an outcome promises:

- delivered, handed_over: the server took responsibility for this recipient. Must never be sent again.
- deferred, rejected: the server has not taken it. A deferred one may be sent again as it is.
- uncertain: everything was sent, and no reply came. The server may have it or not.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from posthouse.model.message import Envelope
from posthouse.model.outcome import Outcome


class Guard(Protocol):
    """Whether the work may go on: asked at the two points after which it could not be taken back."""

    def alive(self) -> bool:
        """Whether our lease on the message still holds; false before the message is begun or ended stops it there."""

    @property
    def mark(self) -> Callable[[], Awaitable[None]] | None:
        """Awaited before what ends the message is written, for a server whose uncertain messages are held."""


class Unguarded:
    """A guard for work that nobody else could take, such as a test mail."""

    mark = None

    def alive(self) -> bool:
        return True


class OutgoingContent(Protocol):
    """The bytes of a message. `header` ends with its empty line; header and body together are the whole message."""

    @property
    def header(self) -> bytes: ...

    @property
    def body(self) -> bytes | None:
        """The body, or None where it is so large that it only comes in chunks."""

    @property
    def size(self) -> int:
        """Octets of header and body together."""

    @property
    def traits(self) -> int:
        """What the bytes need from a server: bits of model/message.py Traits."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body from its start, in pieces; each call starts anew. Asked for only where `body` is None."""


class Facts(Protocol):
    """What every kind of session can say of the other end; each kind adds its own."""

    @property
    def remote(self) -> str:
        """Its address, with the port; "" where nothing was spoken."""

    @property
    def tls_version(self) -> str:
        """The TLS version, "" in clear text."""

    @property
    def tls_fell_back(self) -> bool:
        """Whether clear text is spoken although TLS was wanted, as starttls_optional allows."""

    @property
    def passes_on_dsn(self) -> bool:
        """Whether the other end reports success by itself where the sender asked for it (RFC 3461)."""


class Session(Protocol):
    """A way to the server that is open and signed in. Carries one message at a time."""

    async def send(self, envelope: Envelope, content: OutgoingContent, guard: Guard) -> list[Outcome]:
        """Hand one message over. One outcome per recipient of the envelope, in its order.

        Raises only CancelledError, and then nothing is known of the message and the session is not usable any more.
        """

    @property
    def usable(self) -> bool:
        """Whether another message can be sent over this session."""

    @property
    def facts(self) -> Facts:
        """What was found out about the other end, for timeline and diagnosis."""

    async def close(self) -> None:
        """End the session. Bounded in time; raises nothing but CancelledError."""


class Transport(Protocol):
    """A way out, made from a server's value; it does no I/O before `open`."""

    async def open(self) -> Session:
        """Reach the server and sign in. Raises DeliveryFault, with nothing left open."""

"""The tables: the one definition of what is stored. Migrations, hot statements and queries are made from these.

Times are integer milliseconds since the Unix epoch, UTC (`*_ms`). Identifiers are 63-bit numbers given out by the
process (`model/identifier.py`), except `change.id`, which counts configuration versions without gaps in commit order.
`tenant_id` 0 means global, so that names can be unique per owner in an ordinary index.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    text,
)

metadata = MetaData()


def _id() -> Column[int]:
    return Column("id", BigInteger, primary_key=True, autoincrement=False)


# ---------------------------------------------------------------- configuration

# Each change of configuration is one row: the audit log, and the version that nodes compare (design.md section 7).
change = Table(
    "change",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor_kind", Text, nullable=False),
    Column("actor_id", BigInteger, nullable=False),
    Column("actor_name", Text, nullable=False),
    Column("tenant_id", BigInteger, nullable=False),
    Column("noun", Text, nullable=False),
    Column("object_id", BigInteger, nullable=False),
    Column("object_name", Text, nullable=False),
    Column("action", Text, nullable=False),
    # JSON: field -> [before, after]; secrets stand as "changed".
    Column("difference", Text, nullable=False),
)

setting = Table(
    "setting",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

tenant = Table(
    "tenant",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("config", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
)

server = Table(
    "server",
    metadata,
    _id(),
    Column("tenant_id", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("is_default", Boolean, nullable=False),
    # JSON of the value; each secret stands as the id of its row in `secret`.
    Column("config", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
    Index("server_name", "tenant_id", "name", unique=True),
    # Exactly one default per owner cannot be broken by two writers at once.
    Index(
        "server_default",
        "tenant_id",
        unique=True,
        sqlite_where=text("is_default"),
        postgresql_where=text("is_default"),
    ),
)

application = Table(
    "application",
    metadata,
    _id(),
    Column("tenant_id", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("config", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
    Index("application_name", "tenant_id", "name", unique=True),
)

# API keys and SMTP passwords of applications, tokens of administrators: only an HMAC of each is kept.
credential = Table(
    "credential",
    metadata,
    _id(),
    Column("kind", Text, nullable=False),  # api_key, smtp, token, link
    Column("application_id", BigInteger, nullable=False),  # 0 for tokens
    Column("tenant_id", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    # What the caller shows in clear: user name or prefix.
    Column("handle", Text, nullable=False, unique=True),
    Column("key_id", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("last_used_ms", BigInteger),
    Index("credential_application", "application_id"),
)

certificate = Table(
    "certificate",
    metadata,
    _id(),
    Column("tenant_id", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("config", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
    Index("certificate_name", "tenant_id", "name", unique=True),
)

# Sealed secrets, each bound to its row and field (store/vault.py). A replaced one is kept for 30 days.
secret = Table(
    "secret",
    metadata,
    _id(),
    Column("noun", Text, nullable=False),
    Column("object_id", BigInteger, nullable=False),
    Column("field", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("replaced_ms", BigInteger),
    Index("secret_object", "noun", "object_id"),
)

# Every version of an object, as saved; secrets by id, so that a restore uses the secret of its time or asks.
object_version = Table(
    "object_version",
    metadata,
    Column("noun", Text, primary_key=True),
    Column("object_id", BigInteger, primary_key=True, autoincrement=False),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor_name", Text, nullable=False),
    Column("config", Text, nullable=False),
)

# ---------------------------------------------------------------- nodes and servers at work

node = Table(
    "node",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("incarnation", BigInteger, nullable=False),
    Column("seen_ms", BigInteger, nullable=False),
)

# Periodic work belongs to whoever holds its lease.
duty = Table(
    "duty",
    metadata,
    Column("name", Text, primary_key=True),
    Column("node_id", Integer, nullable=False),
    Column("due_ms", BigInteger, nullable=False),
    Column("lease_until_ms", BigInteger, nullable=False),
)

# Why a server is held, shared by all nodes. No row: never held.
server_state = Table(
    "server_state",
    metadata,
    Column("server_id", BigInteger, primary_key=True, autoincrement=False),
    # operator (held by a person), or the scope of the fault; "" while not held.
    Column("held", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    Column("next_try_ms", BigInteger, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("last_delivery_ms", BigInteger),
    # Grows with each change, so that nodes read only what is new.
    Column("stamp", BigInteger, nullable=False),
    Index("server_state_stamp", "stamp"),
)

# ---------------------------------------------------------------- messages

message = Table(
    "message",
    metadata,
    _id(),
    Column("tenant_id", BigInteger, nullable=False),
    Column("application_id", BigInteger, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    Column("mail_from", Text, nullable=False),
    Column("ret", Text, nullable=False),
    Column("envid", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("traits", SmallInteger, nullable=False),
    Column("message_id", Text, nullable=False),  # the header field, RFC 5322 section 3.6.4
    Column("header_from", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("expires_ms", BigInteger),
    # JSON: where it came in and what was changed in it; the first sentences of the timeline.
    Column("origin", Text, nullable=False),
    # 0: content stands in `content`; 1: header there, body in the content store; 2: gone by retention.
    Column("content_place", SmallInteger, nullable=False),
    Index(
        "message_expiry",
        "expires_ms",
        sqlite_where=text("expires_ms IS NOT NULL"),
        postgresql_where=text("expires_ms IS NOT NULL"),
    ),
)

# Bytes live apart from what is queried.
content = Table(
    "content",
    metadata,
    Column("message_id", BigInteger, primary_key=True, autoincrement=False),
    # With the empty line that ends it.
    Column("header", LargeBinary, nullable=False),
    Column("body", LargeBinary),
)

content_chunk = Table(
    "content_chunk",
    metadata,
    Column("message_id", BigInteger, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

# State machine: model/message.py RecipientState. Rows with state 1 (waiting) or 2 (sending) can be claimed once
# `due_ms` has come: for a waiting row that is the next attempt, for a sending one the end of its lease.
recipient = Table(
    "recipient",
    metadata,
    _id(),
    Column("message_id", BigInteger, nullable=False),
    Column("address", Text, nullable=False),
    Column("notify", Text, nullable=False),
    Column("orcpt", Text, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("reason", SmallInteger, nullable=False),
    # The server that routing chose, and why (a code of model/routing.py).
    Column("server_id", BigInteger, nullable=False),
    Column("route", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("due_ms", BigInteger, nullable=False),
    # Grows with each claim; an outcome counts only with the number of its claim (fencing).
    Column("lease", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("uncertain", SmallInteger, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
    # The last reply or cause, as shown in lists.
    Column("last", Text, nullable=False),
    Index("recipient_message", "message_id"),
    Index(
        "recipient_due",
        "server_id",
        "priority",
        "due_ms",
        sqlite_where=text("state < 3"),
        postgresql_where=text("state < 3"),
    ),
    Index(
        "recipient_trouble",
        "state",
        "id",
        sqlite_where=text("state = 3 OR state > 10"),
        postgresql_where=text("state = 3 OR state > 10"),
    ),
)

# What happened after submission: attempts, holds, cancellations. The timeline and the event feed.
event = Table(
    "event",
    metadata,
    _id(),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("tenant_id", BigInteger, nullable=False),
    Column("message_id", BigInteger, nullable=False),  # 0: about a server or the installation
    Column("server_id", BigInteger, nullable=False),
    Column("data", Text, nullable=False),
    Index("event_message", "message_id", sqlite_where=text("message_id > 0"), postgresql_where=text("message_id > 0")),
)

# What a capture server holds, newest by id.
captured = Table(
    "captured",
    metadata,
    Column("message_id", BigInteger, primary_key=True, autoincrement=False),
    Column("server_id", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Index("captured_server", "server_id", "message_id"),
)

# One call under one Idempotency-Key, for 24 hours.
idempotency = Table(
    "idempotency",
    metadata,
    Column("application_id", BigInteger, primary_key=True, autoincrement=False),
    Column("key", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    # JSON of the answer.
    Column("answer", Text, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Index("idempotency_expiry", "expires_ms"),
)

# Browser sessions and one-time links.
session = Table(
    "session",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("kind", Text, nullable=False),  # link, browser
    Column("actor", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
)

"""What a server's reply means: whose fault it is, whether it lasts, and how long the server asks to be left alone.

Pure: `classify` reads a table. Provider peculiarities are rows of that table, never branches elsewhere; a reply that no
row knows falls back to its class (RFC 5321 section 4.2.1: 4yz temporary, 5yz permanent) and to the stage in which it
came. What follows from the answer (retry, fallback, hold, bounce) is decided in `model/policy.py`.

The first digit of the three-digit code decides over the enhanced code where the two disagree.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from posthouse.model.outcome import Reply, Result, Scope, Stage

# A server may ask for patience; beyond a day it is not patience any more.
MAX_RETRY_AFTER_S = 86_400.0
# A reply is at most 64 KiB; what is read for its meaning stands at the front.
_READ_CHARACTERS = 2000


class Verdict(NamedTuple):
    """What a reply means for the recipient, message, connection, account or server named by `scope`.

    `cause` is a stable code, "reply" where only the class of the code decided. `retry_after_s` is what the server asked
    for, or what is known to be of use for this cause; None where nothing is known.
    """

    result: Result
    scope: Scope
    retry_after_s: float | None = None
    cause: str = "reply"


@dataclass(frozen=True, slots=True)
class ReplyRule:
    """One row: a reply that matches all that is given means `scope`, `result` and `cause`.

    `codes`: the code as text starts with one of them. `enhanced`: the enhanced code is one of them, or starts with one
    that ends in a dot. `text`: found anywhere, without regard to case. `stages`: empty means any.
    """

    cause: str
    scope: Scope
    codes: tuple[str, ...]
    enhanced: tuple[str, ...] = ()
    text: str = ""
    stages: frozenset[Stage] = frozenset()
    result: Result = Result.DEFERRED
    retry_after_s: float | None = None


_OPENING = frozenset({Stage.GREETING, Stage.CAPABILITY, Stage.TLS, Stage.AUTHENTICATE})
_SIGN_IN = frozenset({Stage.AUTHENTICATE})
_TRANSACTION = frozenset({Stage.SENDER, Stage.RECIPIENT, Stage.DATA})
_SENDER = frozenset({Stage.SENDER})
_RECIPIENT = frozenset({Stage.RECIPIENT})
_DATA = frozenset({Stage.DATA})

# A daily quota ends at some hour that nobody tells: asking once an hour costs nothing and finds it.
_QUOTA_S = 3600.0
_BUSY_S = 30.0

_TOO_MANY_CONNECTIONS = (
    r"concurrent connections? limit|sender thread limit|connection (?:count |rate )?limit|"
    r"too many (?:concurrent |simultaneous |open )*(?:smtp )?(?:connections|sessions)"
)

# Read from the top; the first row that matches counts. Sources: Microsoft's and Google's lists of SMTP errors, RFC 4954
# section 6, RFC 5321 section 4.5.3.1.10, RFC 3463 section 3.
RULES: tuple[ReplyRule, ...] = (
    # --- quotas and throttles, some of them dressed as permanent ----------------------------------------------------
    ReplyRule("daily-quota", Scope.THROTTLE, ("550",), ("5.4.5",), retry_after_s=_QUOTA_S),
    ReplyRule(
        "daily-quota",
        Scope.THROTTLE,
        ("4", "5"),
        text=r"daily (?:user )?(?:sending|smtp relay|message|e-?mail) (?:sending )?(?:limit|quota)",
        retry_after_s=_QUOTA_S,
    ),
    ReplyRule("daily-quota", Scope.THROTTLE, ("554", "550"), text="SubmissionQuotaExceeded", retry_after_s=_QUOTA_S),
    ReplyRule("daily-quota", Scope.THROTTLE, ("5",), text="submission quota", retry_after_s=_QUOTA_S),
    ReplyRule("tenant-quota", Scope.THROTTLE, ("550",), ("5.7.233", "5.7.705"), retry_after_s=_QUOTA_S),
    ReplyRule("relay-peak", Scope.THROTTLE, ("4",), text="peak smtp relay limit", retry_after_s=300.0),
    # The connection has done its share; a new one goes on.
    ReplyRule(
        "message-limit",
        Scope.CONNECTION,
        ("421",),
        text=r"messages? (?:on|in|per|over|for|from) (?:this |one |the |a )?(?:smtp )?(?:connection|session)|"
        r"connection expired|try reconnecting",
        stages=_TRANSACTION,
    ),
    # Before any mail was begun on it, only this connection is one too many; those that are open go on.
    ReplyRule("connection-limit", Scope.CONNECTION, ("4",), text=_TOO_MANY_CONNECTIONS, stages=_OPENING),
    ReplyRule(
        "too-many-connections",
        Scope.THROTTLE,
        ("4",),
        text=_TOO_MANY_CONNECTIONS,
        retry_after_s=_BUSY_S,
    ),
    ReplyRule("throttled", Scope.THROTTLE, ("432",), ("4.3.2",), retry_after_s=_BUSY_S),
    ReplyRule("too-many-sign-ins", Scope.THROTTLE, ("454", "421", "450"), text="too many login", retry_after_s=300.0),
    ReplyRule(
        "spam-suspicion", Scope.THROTTLE, ("4",), tuple(f"4.7.{n}" for n in range(500, 700)), retry_after_s=900.0
    ),
    ReplyRule(
        "throttled", Scope.THROTTLE, ("421",), ("4.7.",), stages=_TRANSACTION | {Stage.GREETING, Stage.CAPABILITY}
    ),
    ReplyRule(
        "throttled",
        Scope.THROTTLE,
        ("4",),
        text=r"rate limit|rate limited|throttl|sending too fast|unusual rate of|too many (?:messages|emails|mails)",
        stages=_TRANSACTION - _RECIPIENT,
        retry_after_s=60.0,
    ),
    ReplyRule(
        "throttled",
        Scope.THROTTLE,
        ("4",),
        text=r"throttl|sending rate exceeded",
        stages=_RECIPIENT,
        retry_after_s=60.0,
    ),
    # --- the account at the server ----------------------------------------------------------------------------------
    ReplyRule("credits-used-up", Scope.ACCOUNT, ("451",), text="maximum credits exceeded"),
    ReplyRule("password-transition", Scope.SERVER, ("432",), ("4.7.12",), stages=_SIGN_IN),
    ReplyRule("basic-auth-retired", Scope.ACCOUNT, ("550", "535"), ("5.7.30",)),
    ReplyRule("basic-auth-retired", Scope.ACCOUNT, ("5",), text="basic authentication is (?:disabled|not supported)"),
    ReplyRule("auth-required", Scope.ACCOUNT, ("530",)),
    ReplyRule(
        "auth-required",
        Scope.ACCOUNT,
        ("503", "550", "553", "554"),
        text=r"authentication (?:is )?required|must (?:first )?(?:authenticate|log ?in)|"
        r"auth(?:entication)? (?:command )?(?:first|required)|not (?:logged in|authenticated)",
        stages=_TRANSACTION,
    ),
    ReplyRule("auth-failed", Scope.ACCOUNT, ("534", "535", "538"), stages=_TRANSACTION),
    ReplyRule("relay-not-permitted", Scope.ACCOUNT, ("550", "554"), ("5.7.64",)),
    ReplyRule("relay-not-permitted", Scope.ACCOUNT, ("550",), text="invalid credentials for relay"),
    ReplyRule("relay-not-permitted", Scope.ACCOUNT, ("550",), ("5.7.0",), text="mail relay denied"),
    ReplyRule("account-blocked", Scope.ACCOUNT, ("550", "554"), ("5.1.8",), text="outbound|access denied"),
    ReplyRule(
        "account-blocked",
        Scope.ACCOUNT,
        ("550", "554"),
        ("5.7.501", "5.7.502", "5.7.503", "5.7.511", "5.7.708", "5.7.750"),
    ),
    # "mailbox full" while submitting is our own: the copy for Sent Items does not fit any more.
    ReplyRule("own-mailbox-full", Scope.ACCOUNT, ("554",), ("5.2.2",), text="quotaexceeded", stages=_DATA),
    # --- the server -------------------------------------------------------------------------------------------------
    ReplyRule("server-trouble", Scope.SERVER, ("451",), ("4.7.0",), text=r"\bPRX\d"),
    ReplyRule("server-trouble", Scope.SERVER, ("45",), ("4.3.0", "4.3.1", "4.3.2", "4.3.5"), stages=_SENDER),
    # We and the server disagree about where the conversation stands: another connection starts afresh.
    ReplyRule("out-of-step", Scope.CONNECTION, ("503",), stages=_SENDER),
    # --- recipients and messages ------------------------------------------------------------------------------------
    ReplyRule("greylisted", Scope.RECIPIENT, ("4",), text=r"gr[ea]y-?\s?list", stages=_RECIPIENT),
    ReplyRule("greylisted", Scope.MESSAGE, ("4",), text=r"gr[ea]y-?\s?list", stages=_SENDER | _DATA),
    # RFC 5321 section 4.5.3.1.10: too many recipients, as some servers say it.
    ReplyRule("reply", Scope.RECIPIENT, ("552",), stages=_RECIPIENT),
    # RFC 3463 section 3.3: a mailbox that is full today may have room tomorrow.
    ReplyRule("mailbox-full", Scope.RECIPIENT, ("5",), ("5.2.2",), stages=_RECIPIENT),
)

# Where no row matches: the scope of a refusal by the stage in which it comes. Only what is said about the sender, a
# recipient or the content may ever cost a message; all before that is the server's or the account's trouble.
_TEMPORARY_SCOPE = {Stage.SENDER: Scope.MESSAGE, Stage.RECIPIENT: Scope.RECIPIENT, Stage.DATA: Scope.MESSAGE}

_NUMBER = r"(?P<number>\d{1,6})\s*(?P<unit>s|sec|secs|seconds?|m|min|mins|minutes?|h|hrs?|hours?)\b"
_CLOCK = r"(?P<hours>\d{1,2}):(?P<minutes>[0-5]\d):(?P<seconds>[0-5]\d)"
_RETRY_AFTER = re.compile(
    r"(?:again|back|retry|wait|resend|gr[ea]y-?listed|delayed|deferred|blocked|throttled|limited)\b[^\d\n]{0,40}?"
    rf"(?:{_NUMBER}|{_CLOCK})",
    re.IGNORECASE,
)
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def retry_after(text: str) -> float | None:
    """The seconds that a reply's text asks to wait ("try again in 5 minutes"), at most a day; None otherwise."""
    found = _RETRY_AFTER.search(text[:_READ_CHARACTERS])
    if found is None:
        return None
    if found["number"]:
        seconds = int(found["number"]) * _UNIT_S[found["unit"][0].lower()]
    else:
        seconds = int(found["hours"]) * 3600.0 + int(found["minutes"]) * 60.0 + int(found["seconds"])
    return min(seconds, MAX_RETRY_AFTER_S)


def classify(stage: Stage, reply: Reply) -> Verdict:
    """Say what `reply`, given in `stage`, means. A 2yz or 3yz reply means delivered as far as that stage goes."""
    code = reply.code
    if 200 <= code < 400:
        return _POSITIVE
    for rule, matches in _COMPILED:
        if matches(stage, reply):
            return _verdict(rule.result, rule.scope, reply, rule.cause, rule.retry_after_s)
    return _by_class(stage, reply)


_POSITIVE = Verdict(Result.DELIVERED, Scope.NOBODY)


def _by_class(stage: Stage, reply: Reply) -> Verdict:
    temporary = reply.code < 500
    if stage in _TEMPORARY_SCOPE:
        if reply.code == 421:
            return _verdict(Result.DEFERRED, Scope.CONNECTION, reply)
        result = Result.DEFERRED if temporary else Result.REJECTED
        return _verdict(result, _TEMPORARY_SCOPE[stage], reply)
    if stage is Stage.AUTHENTICATE and not temporary:
        # RFC 4954 section 6: 534, 535, 538 and their like are about the account; it is held, no message is lost.
        return _verdict(Result.DEFERRED, Scope.ACCOUNT, reply, "auth-failed")
    return _verdict(Result.DEFERRED, Scope.SERVER, reply)


def _verdict(
    result: Result, scope: Scope, reply: Reply, cause: str = "reply", default_s: float | None = None
) -> Verdict:
    asked = retry_after(reply.text) if result is Result.DEFERRED else None
    return Verdict(result, scope, default_s if asked is None else asked, cause)


def _compile(rule: ReplyRule) -> Callable[[Stage, Reply], bool]:
    """Make one row into a function; the cheap questions come first."""
    exact = frozenset(e for e in rule.enhanced if not e.endswith("."))
    prefixes = tuple(e for e in rule.enhanced if e.endswith("."))
    search = re.compile(rule.text, re.IGNORECASE).search if rule.text else None

    def matches(stage: Stage, reply: Reply) -> bool:
        if not str(reply.code).startswith(rule.codes) or (rule.stages and stage not in rule.stages):
            return False
        enhanced = reply.enhanced
        if rule.enhanced and enhanced not in exact and not (prefixes and enhanced.startswith(prefixes)):
            return False
        return search is None or search(reply.text[:_READ_CHARACTERS]) is not None

    return matches


_COMPILED = tuple((rule, _compile(rule)) for rule in RULES)

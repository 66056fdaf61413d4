"""What replies mean: by class and stage, and the providers' exceptions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.model.outcome import Reply, Result, Scope, Stage
from posthouse.model.replies import MAX_RETRY_AFTER_S, RULES, classify, retry_after

DEFERRED, REJECTED = Result.DEFERRED, Result.REJECTED
G, E, T, A, M, R, D = (
    Stage.GREETING, Stage.CAPABILITY, Stage.TLS, Stage.AUTHENTICATE, Stage.SENDER, Stage.RECIPIENT, Stage.DATA,
)  # fmt: skip

# Stage, reply, result, scope: RFC 5321 section 4.2 by class, and the exceptions of the providers.
MEANINGS: list[tuple[Stage, int, str, str, Result, Scope]] = [
    # by class
    (G, 554, "", "No SMTP service here", DEFERRED, Scope.SERVER),
    (G, 521, "", "Host does not accept mail", DEFERRED, Scope.SERVER),
    (G, 421, "4.3.2", "Service shutting down", DEFERRED, Scope.SERVER),
    (G, 450, "", "Later", DEFERRED, Scope.SERVER),
    (E, 550, "5.7.1", "Access denied", DEFERRED, Scope.SERVER),
    (T, 454, "4.7.0", "TLS not available", DEFERRED, Scope.SERVER),
    (A, 535, "5.7.8", "Authentication credentials invalid", DEFERRED, Scope.ACCOUNT),
    (A, 534, "5.7.9", "Application-specific password required", DEFERRED, Scope.ACCOUNT),
    (A, 538, "5.7.11", "Encryption required", DEFERRED, Scope.ACCOUNT),
    (A, 530, "5.7.0", "Must issue a STARTTLS command first", DEFERRED, Scope.ACCOUNT),
    (A, 504, "5.7.4", "Unrecognized authentication type", DEFERRED, Scope.ACCOUNT),
    (A, 454, "4.7.0", "Temporary authentication failure", DEFERRED, Scope.SERVER),
    (A, 421, "4.3.0", "Temporary", DEFERRED, Scope.SERVER),
    (M, 451, "", "Later", DEFERRED, Scope.MESSAGE),
    (M, 452, "4.3.1", "Insufficient system storage", DEFERRED, Scope.SERVER),
    (M, 421, "4.4.2", "Timeout", DEFERRED, Scope.CONNECTION),
    (M, 550, "5.7.1", "Sender refused", REJECTED, Scope.MESSAGE),
    (M, 552, "5.3.4", "Message too large", REJECTED, Scope.MESSAGE),
    (M, 553, "5.1.7", "Bad sender", REJECTED, Scope.MESSAGE),
    (R, 450, "4.2.1", "Mailbox busy", DEFERRED, Scope.RECIPIENT),
    (R, 451, "", "Local error", DEFERRED, Scope.RECIPIENT),
    (R, 550, "5.1.1", "No such user", REJECTED, Scope.RECIPIENT),
    (R, 551, "5.1.6", "Moved", REJECTED, Scope.RECIPIENT),
    (R, 553, "5.1.3", "Syntax", REJECTED, Scope.RECIPIENT),
    (R, 554, "5.7.1", "Relay access denied", REJECTED, Scope.RECIPIENT),
    (R, 552, "5.2.2", "Mailbox full", DEFERRED, Scope.RECIPIENT),
    (R, 550, "5.2.2", "Over quota", DEFERRED, Scope.RECIPIENT),
    (R, 421, "4.4.2", "Timeout", DEFERRED, Scope.CONNECTION),
    (D, 451, "4.3.0", "Queue file write error", DEFERRED, Scope.MESSAGE),
    (D, 554, "5.6.0", "Content refused", REJECTED, Scope.MESSAGE),
    (D, 552, "5.3.4", "Too large", REJECTED, Scope.MESSAGE),
    # account and configuration
    (M, 530, "5.7.57", "Client not authenticated to send mail", DEFERRED, Scope.ACCOUNT),
    (R, 530, "5.7.1", "Authentication required", DEFERRED, Scope.ACCOUNT),
    (M, 550, "5.7.1", "Authentication required", DEFERRED, Scope.ACCOUNT),
    (M, 550, "5.7.30", "Basic authentication is not supported for Client Submission.", DEFERRED, Scope.ACCOUNT),
    (A, 535, "5.7.139", "Authentication unsuccessful, basic authentication is disabled.", DEFERRED, Scope.ACCOUNT),
    (A, 535, "5.7.139", "SmtpClientAuthentication is disabled for the Tenant", DEFERRED, Scope.ACCOUNT),
    (D, 451, "", "Authentication failed: Maximum credits exceeded", DEFERRED, Scope.ACCOUNT),
    (M, 550, "5.1.8", "Access denied, bad outbound sender", DEFERRED, Scope.ACCOUNT),
    (D, 550, "5.7.501", "Access denied, spam abuse detected", DEFERRED, Scope.ACCOUNT),
    (D, 550, "5.7.708", "Access denied, traffic not accepted from this IP", DEFERRED, Scope.ACCOUNT),
    (R, 550, "5.7.64", "TenantAttribution; Relay Access Denied", DEFERRED, Scope.ACCOUNT),
    (M, 550, "5.7.1", "Invalid credentials for relay [192.0.2.1]", DEFERRED, Scope.ACCOUNT),
    (D, 554, "5.2.2", "mailbox full; STOREDRV...QuotaExceededException", DEFERRED, Scope.ACCOUNT),
    (D, 550, "5.7.60", "SMTP; Client does not have permissions to send as this sender", REJECTED, Scope.MESSAGE),
    # throttles, some of them dressed as permanent
    (D, 550, "5.4.5", "Daily user sending limit exceeded.", DEFERRED, Scope.THROTTLE),
    (D, 550, "5.4.5", "Daily SMTP relay limit exceeded for user.", DEFERRED, Scope.THROTTLE),
    (M, 550, "5.7.1", "Daily SMTP relay limit exceeded for customer.", DEFERRED, Scope.THROTTLE),
    (D, 554, "5.2.0", "STOREDRV.Submission.Exception:SubmissionQuotaExceededException", DEFERRED, Scope.THROTTLE),
    (D, 550, "5.2.2", "Submission quota exceeded", DEFERRED, Scope.THROTTLE),
    (D, 550, "5.7.233", "Your message can't be sent: tenant external recipient limit", DEFERRED, Scope.THROTTLE),
    (D, 550, "5.7.705", "Access denied, tenant has exceeded threshold", DEFERRED, Scope.THROTTLE),
    (D, 432, "4.3.2", "STOREDRV.ClientSubmit; sender thread limit exceeded", DEFERRED, Scope.THROTTLE),
    (M, 432, "4.3.2", "Concurrent connections limit exceeded", DEFERRED, Scope.THROTTLE),
    (A, 432, "4.3.2", "Concurrent connections limit exceeded", DEFERRED, Scope.CONNECTION),
    (G, 421, "4.7.0", "Error: too many connections from 192.0.2.1", DEFERRED, Scope.CONNECTION),
    (G, 421, "4.7.0", "Try again later, closing connection", DEFERRED, Scope.THROTTLE),
    (D, 421, "4.7.0", "Our system has detected an unusual rate of unsolicited mail", DEFERRED, Scope.THROTTLE),
    (M, 421, "4.7.0", "Too many messages on this connection", DEFERRED, Scope.CONNECTION),
    (M, 421, "4.7.0", "Connection expired, try reconnecting.", DEFERRED, Scope.CONNECTION),
    (D, 421, "4.7.28", "Rate limited", DEFERRED, Scope.THROTTLE),
    (D, 450, "4.7.500", "Server busy, please try again later", DEFERRED, Scope.THROTTLE),
    (R, 450, "4.2.1", "Peak SMTP relay limit exceeded for customer.", DEFERRED, Scope.THROTTLE),
    (R, 450, "4.2.1", "The user is receiving mail at a rate that is too fast", DEFERRED, Scope.RECIPIENT),
    (A, 454, "4.7.0", "Too many login attempts, please try again later", DEFERRED, Scope.THROTTLE),
    (M, 451, "4.7.0", "Temporary server error. Please try again later. PRX4", DEFERRED, Scope.SERVER),
    # greylisting
    (R, 451, "4.7.1", "Greylisting in action, please come back later", DEFERRED, Scope.RECIPIENT),
    (R, 450, "4.7.1", "Graylisted", DEFERRED, Scope.RECIPIENT),
    (D, 451, "", "Greylisted", DEFERRED, Scope.MESSAGE),
]


@pytest.mark.parametrize(("stage", "code", "enhanced", "text", "result", "scope"), MEANINGS)
def test_a_reply_means(stage: Stage, code: int, enhanced: str, text: str, result: Result, scope: Scope) -> None:
    verdict = classify(stage, Reply(code, enhanced, text))
    assert (verdict.result, verdict.scope) == (result, scope)


def test_every_row_is_reached() -> None:
    causes = {classify(stage, Reply(code, enhanced, text)).cause for stage, code, enhanced, text, _, _ in MEANINGS}
    unused = {rule.cause for rule in RULES} - causes - {"password-transition", "out-of-step", "reply"}
    assert not unused


@given(
    st.sampled_from(Stage), st.integers(400, 599), st.sampled_from(["", "5.7.1", "4.7.0", "4.4.2", "5.2.2"]), st.text()
)
def test_only_what_is_said_of_sender_recipient_or_content_costs_mail(
    stage: Stage, code: int, enhanced: str, text: str
) -> None:
    verdict = classify(stage, Reply(code, enhanced, text))
    assert verdict.result in (DEFERRED, REJECTED)
    if verdict.result is REJECTED:
        assert stage in (M, R, D) and code >= 500 and verdict.scope in (Scope.MESSAGE, Scope.RECIPIENT)


@pytest.mark.parametrize(("stage", "code"), [(M, 250), (R, 251), (D, 354), (A, 235), (G, 220)])
def test_a_positive_reply_is_nobodys_fault(stage: Stage, code: int) -> None:
    assert classify(stage, Reply(code, "", "Ok"))[:2] == (Result.DELIVERED, Scope.NOBODY)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Greylisted, please try again in 300 seconds", 300),
        ("Greylisted for 5 minutes", 300),
        ("try again in 5 min.", 300),
        ("Try again after 2 hours", 7200),
        ("Please retry in 30s", 30),
        ("come back in 00:04:32", 272),
        ("wait 1 hour", 3600),
        ("You are rate limited, wait 15m", 900),
        ("try again in 30 days", None),
        ("try again in 999999 hours", MAX_RETRY_AFTER_S),
        ("try again later", None),
        ("error 4711 at 12:00", None),
        ("rate limited\n300 seconds", None),
        ("", None),
    ],
)
def test_patience_asked_for_is_read(text: str, seconds: float | None) -> None:
    assert retry_after(text) == seconds


def test_what_the_server_asks_for_comes_before_our_own_idea() -> None:
    assert classify(D, Reply(550, "5.4.5", "Daily user sending limit exceeded")).retry_after_s == 3600
    assert classify(D, Reply(550, "5.4.5", "Limit exceeded, try again in 10 minutes")).retry_after_s == 600
    assert classify(R, Reply(550, "5.1.1", "Unknown, try again in 10 minutes")).retry_after_s is None


@given(st.text(alphabet="try again in 0123456789:hms\n", max_size=3000))
def test_reading_patience_takes_no_time(text: str) -> None:
    value = retry_after(text)
    assert value is None or 0 <= value <= MAX_RETRY_AFTER_S

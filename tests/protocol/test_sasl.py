"""SASL messages against the vectors of their documents."""

import base64

import pytest

from posthouse.model.auth import Mechanism
from posthouse.protocol.sasl import (
    CramMd5,
    Login,
    OAuthBearer,
    Plain,
    SaslFault,
    XOAuth2,
    decode_challenge,
    decode_error,
    oauthbearer,
    password_exchanges,
    xoauth2,
)


def encoded(message: bytes) -> str:
    return base64.b64encode(message).decode()


def test_xoauth2_vector() -> None:
    assert encoded(xoauth2("robot@example.com", "TESTTOKEN")) == (
        "dXNlcj1yb2JvdEBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciBURVNUVE9LRU4BAQ=="
    )


def test_oauthbearer_vector() -> None:
    assert encoded(oauthbearer("robot@example.com", "TESTTOKEN", "smtp.example.com", 587)) == (
        "bixhPXJvYm90QGV4YW1wbGUuY29tLAFob3N0PXNtdHAuZXhhbXBsZS5jb20BcG9ydD01ODcBYXV0aD1CZWFyZXIgVEVTVFRPS0VOAQE="
    )


def test_oauthbearer_escapes_what_separates() -> None:
    assert oauthbearer("a=b,c@example.com", "T") == b"n,a=a=3Db=2Cc@example.com,\x01auth=Bearer T\x01\x01"


def test_plain_vector_of_rfc_4616() -> None:
    assert Plain("tim", "tanstaaftanstaaf").initial() == b"\0tim\0tanstaaftanstaaf"


def test_cram_md5_vector_of_rfc_2195() -> None:
    challenge = b"<1896.697170952@postoffice.reston.mci.net>"
    assert CramMd5("tim", "tanstaaftanstaaf").respond(challenge) == b"tim b913a602c7eda7a495b4e6e7334d3890"


def test_login_answers_two_questions_and_no_third() -> None:
    exchange = Login("me", "secret")
    assert (exchange.respond(b"Username:"), exchange.respond(b"x")) == (b"me", b"secret")
    with pytest.raises(SaslFault):
        exchange.respond(b"And your card number?")


def test_an_error_of_the_token_is_kept_and_answered_as_each_mechanism_wants() -> None:
    old, new = XOAuth2("u", "t"), OAuthBearer("u", "t")
    challenge = b'{"status":"invalid_token","scope":"mail"}'
    assert (old.respond(challenge), new.respond(challenge)) == (b"", b"\x01")
    assert old.error == new.error == {"status": "invalid_token", "scope": "mail"}


@pytest.mark.parametrize("challenge", [b"", b"no json", b"[1]", b"\xff", b"[" * 100_000, b'"text"'])
def test_an_error_that_cannot_be_read_is_none(challenge: bytes) -> None:
    assert decode_error(challenge) == {}


@pytest.mark.parametrize("text", ["a", "====", "ü", "QQ==QQ==", "Q Q=", "A" * 20_000])
def test_a_challenge_that_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(SaslFault):
        decode_challenge(text)


def test_a_challenge_is_decoded() -> None:
    assert decode_challenge("VXNlcm5hbWU6") == b"Username:"
    assert decode_challenge("") == decode_challenge(" ") == b""


@pytest.mark.parametrize("value", ["a\0b"])
def test_a_nul_fits_into_no_mechanism(value: str) -> None:
    for kind in (Plain, Login, CramMd5):
        with pytest.raises(SaslFault):
            kind("user", value)
        with pytest.raises(SaslFault):
            kind(value, "password")


@pytest.mark.parametrize("value", ["a\x01auth=Bearer other", "a\r\n", "a\x7f"])
def test_nothing_can_be_slipped_into_a_token_message(value: str) -> None:
    for build in (xoauth2, oauthbearer):
        with pytest.raises(SaslFault):
            build(value, "token")
        with pytest.raises(SaslFault):
            build("user", value)


@pytest.mark.parametrize(
    ("mechanism", "offered", "tried"),
    [
        (Mechanism.AUTO, "LOGIN PLAIN CRAM-MD5 GSSAPI", ["CRAM-MD5", "PLAIN", "LOGIN"]),
        (Mechanism.AUTO, "LOGIN", ["LOGIN"]),
        (Mechanism.AUTO, "XOAUTH2", []),
        (Mechanism.LOGIN, "LOGIN PLAIN", ["LOGIN"]),
        (Mechanism.PLAIN, "LOGIN", []),
    ],
)
def test_the_strongest_offered_mechanism_comes_first(mechanism: Mechanism, offered: str, tried: list[str]) -> None:
    exchanges = password_exchanges(mechanism, "u", "p", frozenset(offered.split()))
    assert [exchange.name for exchange in exchanges] == tried


def test_only_a_digest_hides_the_password() -> None:
    exchanges = password_exchanges(Mechanism.AUTO, "u", "p", frozenset({"CRAM-MD5", "PLAIN", "LOGIN"}))
    assert [exchange.reveals_secret for exchange in exchanges] == [False, True, True]
    assert all(exchange.secrets == ("p",) for exchange in exchanges)

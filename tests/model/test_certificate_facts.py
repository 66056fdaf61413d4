"""What is read from added certificates, and what is refused without being repeated."""

import time

import pytest

from posthouse.errors import InvalidInput
from posthouse.model.certificate_facts import MAX_CERTIFICATES, certificate_facts, normalised_pem
from tests.support.certificates import CertificateAuthority

SECRET = "MIIkanarienvogel"


def test_facts_are_those_of_the_certificates_in_order(authority: CertificateAuthority) -> None:
    leaf = authority.issue()
    first, second = certificate_facts(leaf.pem + authority.pem)
    assert first.sha256 == leaf.sha256
    assert (first.is_authority, second.is_authority) == (False, True)
    assert first.issuer == leaf.certificate.issuer.rfc4514_string()
    assert second.issuer == second.subject
    assert first.not_before_at < first.not_after_at
    assert first.not_after_at.tzinfo is not None


def test_only_the_certificates_are_kept(authority: CertificateAuthority) -> None:
    noisy = f"Bag Attributes\n  name: x\n{authority.pem}trailing\r\n"
    assert normalised_pem(noisy) == normalised_pem(authority.pem)
    assert normalised_pem(noisy.replace("\n", "\r\n")) == normalised_pem(authority.pem)


@pytest.mark.parametrize(
    "kind", ["RSA PRIVATE KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY"]
)
def test_private_keys_are_refused_and_not_repeated(authority: CertificateAuthority, kind: str) -> None:
    pem = f"{authority.pem}-----BEGIN {kind}-----\n{SECRET}\n-----END {kind}-----\n"
    with pytest.raises(InvalidInput) as caught:
        normalised_pem(pem)
    assert caught.value.problems[0].code == "private-key"
    assert SECRET not in f"{caught.value}{caught.value.__context__}"


@pytest.mark.parametrize(
    "pem",
    [
        "",
        SECRET,
        f"-----BEGIN CERTIFICATE-----\n{SECRET}\n-----END CERTIFICATE-----",
        f"-----BEGIN CERTIFICATE-----\n{SECRET}",
        f"-----BEGIN CERTIFICATE REQUEST-----\n{SECRET}\n-----END CERTIFICATE REQUEST-----",
        "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----",
        "\ud800-----BEGIN CERTIFICATE-----\n\ud800\n-----END CERTIFICATE-----",
    ],
)
def test_what_is_no_certificate_is_refused_and_not_repeated(pem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        certificate_facts(pem)
    assert [(p.field, p.code) for p in caught.value.problems] == [("pem", "not-a-certificate")]
    assert SECRET not in f"{caught.value}{caught.value.__context__}"


def test_very_many_are_refused_and_hostile_texts_take_no_time(authority: CertificateAuthority) -> None:
    with pytest.raises(InvalidInput, match=f"At most {MAX_CERTIFICATES}"):
        certificate_facts(authority.pem * (MAX_CERTIFICATES + 1))
    began = time.monotonic()
    for text in ("-----BEGIN CERTIFICATE-----" * 10_000, "-----BEGIN " * 25_000, "-----END CERTIFICATE-----" * 10_000):
        with pytest.raises(InvalidInput):
            certificate_facts(text)
    assert time.monotonic() - began < 2

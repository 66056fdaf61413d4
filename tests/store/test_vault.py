"""Sealing: what opens what, and what a key ring refuses."""

import base64
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.errors import ConfigurationError, SecretUnreadable
from posthouse.store.vault import KeyRing, load_keys, new_key_line, open_key_ring
from tests.support.databases import new_ring

RING = new_ring()


@given(st.text(max_size=200).filter(lambda text: text.isprintable()), st.text(min_size=1, max_size=50))
def test_what_was_sealed_opens_with_its_binding_alone(plain: str, binding: str) -> None:
    key_id, sealed = RING.seal(plain, bound_to=binding)
    assert RING.open(key_id, sealed, bound_to=binding) == plain
    with pytest.raises(SecretUnreadable):
        RING.open(key_id, sealed, bound_to=binding + "x")


def test_no_two_seals_are_alike() -> None:
    assert RING.seal("same", bound_to="row")[1] != RING.seal("same", bound_to="row")[1]


@pytest.mark.parametrize("position", [0, 11, 12, 20, -1])
def test_a_changed_octet_is_noticed(position: int) -> None:
    key_id, sealed = RING.seal("a secret", bound_to="row")
    altered = bytearray(sealed)
    altered[position] ^= 1
    with pytest.raises(SecretUnreadable) as caught:
        RING.open(key_id, bytes(altered), bound_to="row")
    assert "a secret" not in str(caught.value)


@pytest.mark.parametrize("sealed", [b"", b"short", bytes(12), bytes(28)])
def test_what_was_never_sealed_is_refused(sealed: bytes) -> None:
    with pytest.raises(SecretUnreadable):
        RING.open(RING.current, sealed, bound_to="row")


def test_an_older_key_opens_and_the_newest_seals() -> None:
    old, new = new_key_line(), new_key_line()
    key_id, sealed = KeyRing(load_keys(old)).seal("kept", bound_to="row")
    both = KeyRing(load_keys(f"{new}\n{old}\n"))
    assert both.open(key_id, sealed, bound_to="row") == "kept"
    assert both.current == new.split()[0]
    with pytest.raises(SecretUnreadable, match="not in the key ring"):
        KeyRing(load_keys(new)).open(key_id, sealed, bound_to="row")


def test_a_digest_matches_its_own_text_under_its_own_key() -> None:
    key_id, digest = RING.digest("a credential")
    assert RING.matches("a credential", key_id, digest)
    assert not RING.matches("a credential ", key_id, digest)
    assert not RING.matches("a credential", "unknown", digest)
    assert not new_ring().matches("a credential", key_id, digest)
    assert not RING.matches("\ud800", key_id, digest)


def test_the_ring_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    umask = os.umask(0o000)
    try:
        first = open_key_ring(path, None)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["keys"]
    key_id, sealed = first.seal("kept", bound_to="row")
    assert open_key_ring(path, None).open(key_id, sealed, bound_to="row") == "kept"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_ring_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    open_key_ring(path, None)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        open_key_ring(path, None)


def test_the_environment_replaces_the_file(tmp_path: Path) -> None:
    line, other = new_key_line(), new_key_line()
    ring = open_key_ring(tmp_path / "keys", f"{line},{other}")
    assert not (tmp_path / "keys").exists()
    assert ring.knows(line.split()[0])
    assert ring.knows(other.split()[0])


@pytest.mark.parametrize(
    "line",
    [
        "k1",
        "k1 AAAA",
        f"k1 {base64.b64encode(bytes(31)).decode()}",
        f"k1 {base64.b64encode(bytes(33)).decode()}",
        f"k-1 {base64.b64encode(bytes(32)).decode()}",
        f"k1 {base64.b64encode(bytes(32)).decode()[:-1]}!",
    ],
)
def test_a_line_that_is_no_key_is_named_and_not_repeated(line: str) -> None:
    with pytest.raises(ConfigurationError, match="Line 2") as caught:
        load_keys(f"{new_key_line()}\n{line}")
    assert line not in str(caught.value)


def test_an_empty_ring_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# nothing\n\n")
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="empty"):
        open_key_ring(path, None)

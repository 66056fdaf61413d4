"""Identifiers grow, are unique, and survive their form for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.model.identifier import EPOCH_MS, IdentifierSource, created_ms, format_id, parse_id


@given(st.integers(min_value=0, max_value=(1 << 63) - 1))
def test_the_form_for_people_is_read_back(value: int) -> None:
    text = format_id(value)
    assert len(text) == 13
    assert parse_id(text) == value
    assert parse_id(text.upper()) == value


@pytest.mark.parametrize("text", ["", "0", "0" * 12, "0" * 14, "!" * 13, "u" * 13, "z" * 13, "０" * 13])
def test_other_text_is_no_identifier(text: str) -> None:
    assert parse_id(text) is None


def test_they_grow_also_when_the_clock_steps_back_or_stands_still() -> None:
    times = iter([EPOCH_MS + 1000] * 10_000 + [EPOCH_MS + 10] * 100 + [EPOCH_MS + 2000])
    source = IdentifierSource(3, lambda: next(times))
    values = [source() for _ in range(10_101)]
    assert values == sorted(set(values))
    assert created_ms(values[-1]) == EPOCH_MS + 2000


def test_nodes_never_give_out_the_same() -> None:
    now = EPOCH_MS + 5
    sources = [IdentifierSource(node, lambda: now) for node in (0, 1, 1023)]
    values = [source() for source in sources for _ in range(9000)]
    assert len(set(values)) == len(values)


def test_order_is_kept_in_the_form_for_people() -> None:
    source = IdentifierSource(0, lambda: EPOCH_MS + 1)
    texts = [format_id(source()) for _ in range(100)]
    assert texts == sorted(texts)

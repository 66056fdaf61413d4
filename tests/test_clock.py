"""The clock: steps of the system clock do not show until they have lasted (threat F9)."""

import time

import pytest

from posthouse.clock import Clock


class Hands:
    """A wall clock and a counter that a test moves."""

    def __init__(self) -> None:
        self.wall_s = 1_800_000_000.0
        self.counter_s = 50.0
        self.clock = Clock(lambda: self.wall_s, lambda: self.counter_s)

    def pass_time(self, seconds: float) -> None:
        self.wall_s += seconds
        self.counter_s += seconds

    def watch(self, seconds: float) -> None:
        """Let time pass while the clock is read each second."""
        for _ in range(int(seconds)):
            self.pass_time(1)
            self.clock.now_ms()


def test_it_runs_with_the_counter() -> None:
    hands = Hands()
    start = hands.clock.now_ms()
    assert start == 1_800_000_000_000
    hands.pass_time(1.5)
    assert hands.clock.now_ms() == start + 1500


@pytest.mark.parametrize("step_s", [3600.0, -3600.0, 2.0, -2.0, 1e9])
def test_a_step_that_is_taken_back_never_shows(step_s: float) -> None:
    hands = Hands()
    start = hands.clock.now_ms()
    hands.wall_s += step_s
    hands.watch(590)
    assert hands.clock.now_ms() == start + 590_000
    hands.wall_s -= step_s
    hands.watch(590)
    assert hands.clock.now_ms() == start + 1_180_000


@pytest.mark.parametrize("step_s", [3600.0, -3600.0, 2.0])
def test_a_step_is_followed_after_ten_minutes(step_s: float) -> None:
    hands = Hands()
    hands.wall_s += step_s
    hands.watch(610)
    assert hands.clock.now_ms() == round(hands.wall_s * 1000)


def test_a_second_step_starts_the_ten_minutes_anew() -> None:
    hands = Hands()
    start = hands.clock.now_ms()
    hands.wall_s += 3600
    hands.watch(500)
    hands.wall_s += 3600
    hands.watch(500)
    assert hands.clock.now_ms() == start + 1_000_000
    hands.watch(150)
    assert hands.clock.now_ms() == round(hands.wall_s * 1000)


def test_a_new_process_takes_the_wall_clock_as_it_is() -> None:
    hands = Hands()
    hands.wall_s += 3600
    assert Clock(lambda: hands.wall_s, lambda: hands.counter_s).now_ms() == round(hands.wall_s * 1000)


def test_the_real_one_tells_the_time() -> None:
    clock = Clock()
    assert abs(clock.now_ms() - time.time() * 1000) < 100
    assert abs(clock.monotonic() - time.monotonic()) < 1

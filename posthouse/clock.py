"""The time: wall-clock milliseconds that do not jump, and seconds for measuring.

The wall clock of a machine may be stepped by an hour and back (threat F9). What is stored - due times, leases, expiry -
must not follow such a jump at once: mail would expire by the thousand or stand still. So the clock is read when the
process starts and carried on by a counter that is never stepped; a step of the system clock is followed once it has
lasted ten minutes, or when the process is started again.
"""

import time
from collections.abc import Callable

# A step that lasts this long is meant; a clock that was set wrongly by hand or by a bad time server is back before.
STEP_LASTS_S = 600.0
# Below this the two clocks merely tick a little differently; it is also the error that a step must show to be one.
STEP_MS = 1000


def _counter() -> float:
    """Seconds that are never stepped; time in which the machine slept counts where the system can tell."""
    return time.clock_gettime(_COUNTER)


_COUNTER = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock:
    """The clock of one process. Safe to read from several threads. `wall` and `counter` give seconds."""

    def __init__(self, wall: Callable[[], float] = time.time, counter: Callable[[], float] = _counter) -> None:
        self._wall = wall
        self._counter = counter
        # Wall-clock seconds minus counter seconds; replaced as a whole, so that no reader sees half a step.
        self._offset_s = wall() - counter()
        self._follows = False
        # The step that is being watched, and since when (counter); None while the clocks agree.
        self._step: tuple[float, float] | None = None

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch, UTC. Steps of the system clock show after ten minutes only."""
        counter = self._counter()
        if self._follows:
            return int((counter + self._offset_s) * 1000)
        difference_s = self._wall() - counter - self._offset_s
        if -1.0 < difference_s < 1.0:
            self._step = None
        else:
            self._watch(difference_s, counter)
        return int((counter + self._offset_s) * 1000)

    def follow(self, now_ms: int) -> None:
        """Take the time of the database, which all nodes share (PostgreSQL), in place of the system clock's.

        From the first call on the system clock is not looked at any more.
        """
        self._follows = True
        self._offset_s = now_ms / 1000 - self._counter()

    def monotonic(self) -> float:
        """Seconds for measuring how long something takes; the clock of the event loop."""
        return time.monotonic()

    def _watch(self, difference_s: float, counter: float) -> None:
        step = self._step
        if step is None or abs(step[0] - difference_s) * 1000 > STEP_MS:
            self._step = (difference_s, counter)
        elif counter - step[1] >= STEP_LASTS_S:
            self._offset_s += difference_s
            self._step = None

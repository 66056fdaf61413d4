"""A clock that a test moves."""

from posthouse.clock import Clock

START_MS = 1_790_000_000_000


class ManualClock(Clock):
    """Stands still until it is moved."""

    def __init__(self, start_ms: int = START_MS) -> None:
        self._ms = start_ms
        super().__init__(wall=lambda: self._ms / 1000, counter=lambda: self._ms / 1000)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._ms += round(seconds * 1000)

    def now_ms(self) -> int:
        return self._ms

    def monotonic(self) -> float:
        return self._ms / 1000

"""Limits that are counted in memory: failures by whoever they come from."""

from collections import OrderedDict


class FailureThrottle:
    """Counts failures per key within a window. Bounded: the oldest keys are forgotten first."""

    def __init__(self, *, limit: int, window_s: float, max_keys: int = 10_000) -> None:
        self._limit = limit
        self._window_s = window_s
        self._max_keys = max_keys
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def retry_after_s(self, key: str, now: float) -> float:
        """0 where `key` may try; else how many seconds it has to wait."""
        count, until = self._failures.get(key, (0, 0.0))
        if now >= until:
            return 0.0
        return until - now if count >= self._limit else 0.0

    def failed(self, key: str, now: float) -> None:
        """Count a failure; the window starts with the first one and again with each one above the limit."""
        count, until = self._failures.pop(key, (0, 0.0))
        if now >= until:
            count, until = 0, now + self._window_s
        count += 1
        if count > self._limit:
            until = now + self._window_s
        self._failures[key] = (count, until)
        if len(self._failures) > self._max_keys:
            self._failures.popitem(last=False)

    def succeeded(self, key: str) -> None:
        """Forget the failures of `key`."""
        self._failures.pop(key, None)

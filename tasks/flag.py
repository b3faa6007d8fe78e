"""What the handler of a signal may set."""

from __future__ import annotations


class Flag:
    """An event without a lock, which nobody can wait for.

    That of ``threading.Event`` may be held by what the signal has interrupted, such as the handler
    of another one that has just come: setting it would wait for ever.
    """

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """From now on it is set."""
        self._is_set = True

    def clear(self) -> None:
        """From now on it is not."""
        self._is_set = False

    def is_set(self) -> bool:
        """Whether it is."""
        return self._is_set

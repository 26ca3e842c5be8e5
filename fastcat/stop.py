"""Ctrl-C and SIGTERM as a request to finish the step, save and say how to go on."""

import signal
import threading
from types import FrameType


class Stopped(Exception):
    """The run was asked to stop and has saved itself; `signum` is the signal that asked."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopRequest:
    """While entered, the first SIGINT or SIGTERM is kept in `signum`; a second one acts at once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._former: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        # Python delivers signals to the main thread alone
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._former[signum] = signal.signal(signum, self._ask)
        return self

    def __exit__(self, *exc: object) -> None:
        self._restore()

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        while self._former:
            signal.signal(*self._former.popitem())  # type: ignore[arg-type]

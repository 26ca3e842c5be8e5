"""Signals that ask for an end: Ctrl-C, SIGTERM, and the SIGHUP of a terminal that is closed."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """The run was asked to stop and has saved itself.

    signum: the signal that asked
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Interrupted(KeyboardInterrupt):
    """A signal ended the work at the point where it was.

    signum: the signal
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextmanager
def first_signal(receive: Callable[[int], object]) -> Iterator[None]:
    """Within it the first of SIGNALS is handed to `receive`; later ones act as before.

    SIGHUP stays ignored where it was, as under `nohup`.
    """
    former: dict[int, object] = {}

    def restore() -> None:
        while former:
            signal.signal(*former.popitem())  # type: ignore[arg-type]

    def handle(signum: int, frame: FrameType | None) -> None:
        restore()
        receive(signum)

    # Python delivers signals to the main thread alone
    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
                former[signum] = signal.signal(signum, handle)
    try:
        yield
    finally:
        restore()


def interrupt(signum: int) -> None:
    """Raise Interrupted, so that what is half written is removed on the way out."""
    raise Interrupted(signum)


class StopRequest:
    """The signal that asked for a stop; None as long as none has."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def note(self, signum: int) -> None:
        self.signum = signum


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """While entered, the first signal asks to finish the step, save and say how to go on."""
    request = StopRequest()
    with first_signal(request.note):
        yield request

"""What is printed: any text on any terminal, and never a reason for work to end."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


def encodable(text: str, encoding: str = "utf-8") -> str:
    """`text` with escapes, as \\xe9, in the place of what the encoding lacks.

    File names that are no text in the system's encoding hold surrogates, which no encoding has.
    """
    return text.encode(encoding, "backslashreplace").decode(encoding)


def one_line(text: str) -> str:
    """`text` with escapes in the place of line breaks and of what would steer a terminal."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class Output:
    """A text stream that never fails.

    Characters that its encoding lacks are escaped. When nobody reads it any more, or the disk is
    full, the rest is dropped and `error` holds the reason. Other attributes are those of the
    stream.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """stream: None, as Python has it for a descriptor that was closed, takes nothing."""
        self.stream = stream or open(os.devnull, "w")  # noqa: SIM115
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self._attempt(lambda: self.stream.write(encodable(text, encoding)))
        return len(text)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def _attempt(self, work: Callable[[], object]) -> None:
        if self.error is None:
            try:
                work()
            except (OSError, ValueError) as error:  # ValueError: it is closed
                self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def unfailing_output() -> Iterator[Output]:
    """Within it standard output and standard error are `Output`; yields the former."""
    _open_standard_files()
    former = sys.stdout, sys.stderr
    outputs = [Output(stream) for stream in former]
    sys.stdout, sys.stderr = outputs
    try:
        yield outputs[0]
    finally:
        sys.stdout, sys.stderr = former
        for output in outputs:
            output.flush()
            if output.error is not None:
                _forget(output)


def _open_standard_files() -> None:
    """Let none of the standard descriptors be free: a file opened later would take its number, and
    whatever prints to that number would write into the file.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _forget(output: Output) -> None:
    """Have Python drop what it could not write, instead of failing at its own end."""
    with suppress(OSError, ValueError):  # a stream without a descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output.fileno())
        os.close(nowhere)

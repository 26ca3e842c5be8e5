"""`fastcat resume`."""

from collections.abc import Sequence
from dataclasses import dataclass

from tyro.conf import Positional

from fastcat.cli.parse import parse
from fastcat.config.paths import UserPath


@dataclass(frozen=True, kw_only=True)
class ResumeCommand:
    """Continue a run where its last checkpoint stands."""

    run: Positional[UserPath]
    """Folder of the run, or of several seeds. Example: runs/first."""


def run(arguments: Sequence[str]) -> int:
    command = parse(ResumeCommand, arguments, "resume")
    from fastcat.cli.result import print_result
    from fastcat.runs.api import resume

    print_result(resume(command.run))
    return 0

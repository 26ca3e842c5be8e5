"""Files: whole or not there, and names that belong to one process at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastcat.errors import InputError
from fastcat.files import claimed, write_text


def names(folder: Path) -> list[Path]:
    return [folder / f"{i}.json" for i in range(3)]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_claim_keeps_others_out_and_goes_when_nothing_was_written(tmp_path: Path) -> None:
    with claimed(names(tmp_path)) as first, claimed(names(tmp_path)) as second:
        assert (first, second) == (tmp_path / "0.json", tmp_path / "1.json")
        assert second is not None
        write_text(second, "{}")
        with claimed([second]) as none:
            assert none is None
    assert left(tmp_path) == ["1.json"]
    with claimed([tmp_path / "new" / "x"]):
        assert left(tmp_path / "new") == ["x"]
    assert left(tmp_path / "new") == []


@pytest.mark.slow
def test_what_a_killed_process_left_empty_is_free_and_what_another_holds_is_not(
    tmp_path: Path,
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from fastcat.files import claimed\n"
        "with claimed([Path(sys.argv[1])]) as path: print(path, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "0.json"], stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline()
    with claimed(names(tmp_path)) as path:
        assert path == tmp_path / "1.json"
    process.kill()
    process.communicate()
    assert left(tmp_path) == ["0.json"]
    with claimed(names(tmp_path)) as path:
        assert path == tmp_path / "0.json"


def test_what_is_no_empty_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "0.json").mkdir()
    (tmp_path / "1.json").symlink_to("/dev/null")
    (tmp_path / "2.json").write_text("years of work")
    with claimed(names(tmp_path)) as path:
        assert path is None
    assert left(tmp_path) == ["0.json", "1.json", "2.json"]
    with (
        pytest.raises(InputError, match=r"cannot write .*2\.json/x: "),
        claimed([tmp_path / "2.json" / "x"]),
    ):
        pass


def test_without_locks_only_who_makes_a_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(handle: int, how: int) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    with claimed(names(tmp_path)) as first, claimed(names(tmp_path)) as second:
        assert (first, second) == (tmp_path / "0.json", tmp_path / "1.json")
    assert left(tmp_path) == []


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    """Catches a /dev/null that is a file from then on."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="it is no file that could be replaced"):
        write_text(pipe, "text")
    assert left(tmp_path) == ["pipe"]
    assert pipe.is_fifo()


def test_text_of_any_kind_in_a_file_of_the_longest_name(tmp_path: Path) -> None:
    path = tmp_path / ("x" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    write_text(path, "caf\udce9 é\n")
    assert path.read_bytes() == "caf\\udce9 é\n".encode()
    assert left(tmp_path) == [path.name]

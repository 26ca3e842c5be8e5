from pathlib import Path

import pytest

from tests.harness.image_folders import make_folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder "pets" of 10 training and 4 test images in the classes cat and dog."""
    return make_folder(tmp_path / "pets")

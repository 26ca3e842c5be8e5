"""attack_logit_grad and multi_peer_loss on the CPU against float64, on hard inputs."""

import pytest
import torch

from tests.harness.logit_cases import CONTENTS, Case, check_attack, check_each_term, check_sum

# attacked peers or cells, images, classes
SHAPES = [(1, 1, 2), (1, 128, 2), (4, 7, 3), (2, 33, 10), (3, 3, 100), (2, 2, 200), (2, 2, 1000)]

each_content = pytest.mark.parametrize(
    ("content", "dtype"),
    [*((content, torch.float32) for content in CONTENTS), ("random", torch.float16)],
    ids=str,
)


@each_content
@pytest.mark.parametrize("shape", [*SHAPES, (10, 2, 3)], ids=str)
def test_attack_gradient(shape: tuple[int, int, int], content: str, dtype: torch.dtype) -> None:
    check_attack(Case(shape, content, dtype), "cpu")


@each_content
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_many_terms(shape: tuple[int, int, int], content: str, dtype: torch.dtype) -> None:
    check_sum(Case(shape, content, dtype), "cpu")


@each_content
def test_each_term(content: str, dtype: torch.dtype) -> None:
    check_each_term(Case((2, 3, 10), content, dtype), "cpu")

"""attack_logit_grad and multi_peer_loss on the CPU against float64, on hard inputs."""

import pytest
import torch

from tests.harness.logit_cases import CONTENTS, Case, check_attack, check_each_term, check_sum

# attacked peers or cells, images, classes
SHAPES = [(1, 1, 2), (1, 128, 2), (4, 7, 3), (2, 33, 10), (3, 3, 100), (2, 2, 200), (2, 2, 1000)]

FORMS = [*((content, torch.float32) for content in CONTENTS), ("random", torch.float16)]
each_content = pytest.mark.parametrize(("content", "dtype"), FORMS, ids=str)


def forms_of(*shapes: tuple[int, int, int]) -> pytest.MarkDecorator:
    """Every shape with random logits in float32, and one with all the others."""
    return pytest.mark.parametrize(
        ("shape", "content", "dtype"),
        [
            pytest.param(
                shape,
                *form,
                id="-".join(map(str, (shape, *form))),
                marks=[] if form == FORMS[0] or shape == (2, 33, 10) else pytest.mark.represented,
            )
            for shape in shapes
            for form in FORMS
        ],
    )


@forms_of(*SHAPES, (10, 2, 3))
def test_attack_gradient(shape: tuple[int, int, int], content: str, dtype: torch.dtype) -> None:
    check_attack(Case(shape, content, dtype), "cpu")


@forms_of(*SHAPES)
def test_many_terms(shape: tuple[int, int, int], content: str, dtype: torch.dtype) -> None:
    check_sum(Case(shape, content, dtype), "cpu")


@each_content
def test_each_term(content: str, dtype: torch.dtype) -> None:
    check_each_term(Case((2, 3, 10), content, dtype), "cpu")

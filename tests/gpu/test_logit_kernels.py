"""attack_logit_grad and multi_peer_loss on CUDA against float64, on hard inputs."""

import pytest
import torch

from tests.harness.logit_cases import CONTENTS, Case, check_attack, check_each_term, check_sum

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BATCHES = [1, 7, 33, 128]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("classes", [2, 3, 10, 100, 200, 1000])
def test_against_float64(classes: int, content: str, dtype: torch.dtype) -> None:
    for slabs, batch in enumerate(BATCHES, start=1):
        case = Case((slabs, batch, classes), content, dtype)
        check_attack(case, "cuda")
        check_sum(case, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_each_term_against_float64(classes: int, content: str, dtype: torch.dtype) -> None:
    check_each_term(Case((3, 33, classes), content, dtype), "cuda")

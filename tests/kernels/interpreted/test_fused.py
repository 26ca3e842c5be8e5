"""Every Triton kernel on the CPU, against its reference in float64.

Triton's interpreter truncates to bfloat16 where a GPU rounds: bfloat16 is left to tests/gpu.
"""

import pytest
import torch

from tests.harness.kernel_cases import Case, cases
from tests.harness.kernel_comparison import check

CASES = [pytest.param(case, id=name) for name, case in cases(torch.float32).items()] + [
    # kernels compute in float32 and differ in what they load and store
    pytest.param(case, id=name, marks=[] if case.typical else pytest.mark.represented)
    for name, case in cases(torch.float16).items()
]


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_errs_no_more_than_plain_torch(case: Case) -> None:
    check(case.op, case.args, case.exact)

"""main_grad grows by the exact product, in place, and by nothing where there are no rows."""

import pytest
import torch
from agreement import distance

from megatron_jmed.kernels.accumulate import accumulate_, accumulate_reference


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_rows", [37, 0])
def test_main_grad_grows_by_the_exact_product(dtype, num_rows):
    main_grad, grad, x = torch.randn(24, 40), torch.randn(num_rows, 24).to(dtype), torch.randn(num_rows, 40).to(dtype)
    expected, address = accumulate_reference(main_grad.double(), grad, x), main_grad.data_ptr()
    found = accumulate_(main_grad, grad, x)
    assert found is main_grad and found.data_ptr() == address
    assert distance(found, expected) < 1e-6
    assert num_rows == 0 or distance(found - (grad.t() @ x).float(), expected) > 1e-2

"""A weight's gradient added to its fp32 main_grad in the GEMM itself, which Megatron-Core otherwise asks apex for.

    main_grad_NK += grad_RN^T x_RK        R rows (tokens), N outputs, K inputs; the sum over R in fp32, never rounded to bf16

On CUDA this is one cuBLAS GEMM with bf16 operands, fp32 output and beta = 1 (torch >= 2.10: addmm with out_dtype), which reads and
writes main_grad once: 8 bytes a weight, where a bf16 product and an addition move 12 and round the product. Whether
this torch has it, and adds to its own output rightly, is asked once of a small exact product. A kernel of our own is not needed. No
R at all (an expert without tokens) leaves main_grad as it is.
"""

from functools import lru_cache

import torch


def accumulate_reference(main_grad_NK: torch.Tensor, grad_RN: torch.Tensor, x_RK: torch.Tensor) -> torch.Tensor:
    return main_grad_NK + grad_RN.to(main_grad_NK.dtype).t() @ x_RK.to(main_grad_NK.dtype)


def accumulate_(main_grad_NK: torch.Tensor, grad_RN: torch.Tensor, x_RK: torch.Tensor) -> torch.Tensor:
    """main_grad_NK (fp32, changed in place) plus grad_RN^T x_RK."""
    assert main_grad_NK.dtype == torch.float32
    if len(x_RK) == 0:
        return main_grad_NK
    if x_RK.dtype == torch.float32:
        return main_grad_NK.addmm_(grad_RN.t(), x_RK)
    if not x_RK.is_cuda:
        return main_grad_NK.addmm_(grad_RN.float().t(), x_RK.float())
    if adds_in_the_gemm(x_RK.device, x_RK.dtype):
        return torch.ops.aten.addmm.dtype_out(main_grad_NK, grad_RN.t(), x_RK, torch.float32, out=main_grad_NK)
    return main_grad_NK.add_(torch.mm(grad_RN.t(), x_RK, out_dtype=torch.float32))


@lru_cache
def adds_in_the_gemm(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether addmm with an fp32 output adds to that same output: 64 x 64 whole numbers, so the answer is exact."""
    ones = torch.ones(64, 64, device=device, dtype=dtype)
    total = torch.full((64, 64), 3.0, device=device)
    try:
        torch.ops.aten.addmm.dtype_out(total, ones.t(), ones, torch.float32, out=total)
    except (AttributeError, RuntimeError):
        return False
    return bool((total == 67.0).all())

"""The closet: what lets Megatron-Core 0.16.1 run without a GPU. Every monkey-patch of the project is in this file.

Called once, by `parallel.py`, before Megatron-Core is imported, and only where there is no CUDA device. Nothing here
changes a number: each patch gives a CPU answer to a question that Megatron-Core asks of CUDA.
"""

import contextlib
import logging
import os

import torch
import torch.utils._device

_CPU = torch.device("cpu")


def enter_cpu() -> None:
    """Patch torch for Megatron-Core on a CPU; a second call does nothing."""
    if getattr(torch.cuda, "_jmed_on_cpu", False):
        return
    torch.cuda._jmed_on_cpu = True
    # Megatron-Core wraps small functions in torch.compile at import; on a CPU that costs minutes of C++ compilation.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # On a CPU "the CUDA generator" is the CPU's, so Megatron-Core sees it change where it expects no change.
    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )
    _answer_device_questions()
    _answer_rng_questions()
    _answer_stream_questions()
    _redirect_cuda_factories()
    _report_cuda_tensor_types()
    _accept_array_splits()


def patch_megatron_on_cpu() -> None:
    """The patches that need Megatron-Core imported: two names that it leaves undefined or bound to CUDA."""
    from megatron.core.tensor_parallel import random as mcore_random
    from megatron.core.transformer.moe import moe_utils

    # NameError in router_gating_linear without Transformer Engine: the import that defines it failed (0.16.1).
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None
    mcore_random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    mcore_random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)


@contextlib.contextmanager
def on_meta_device():
    """Build modules without memory, on any machine: Megatron-Core allocates on `torch.cuda.current_device()`."""
    answer = torch.cuda.current_device
    torch.cuda.current_device = lambda: torch.device("meta")
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.cuda.current_device = answer


def _answer_device_questions() -> None:
    torch.cuda.current_device = lambda: _CPU  # used as `device=torch.cuda.current_device()` all over Megatron-Core
    torch.Tensor.cuda = lambda tensor, *args, **kwargs: tensor
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.empty_cache = lambda: None
    torch.cuda.nvtx.range_push = lambda message: None
    torch.cuda.nvtx.range_pop = lambda: None


def _answer_rng_questions() -> None:
    """The tracker of model-parallel random states then tracks the CPU generator."""
    torch.cuda.get_rng_state = lambda device="cuda": torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, device="cuda": torch.set_rng_state(state)
    torch.cuda.manual_seed = torch.manual_seed


class _NoEvent:
    """Stands for a CUDA event: on a CPU everything recorded has already happened."""

    def __init__(self, *args, **kwargs):
        pass

    def record(self, stream=None) -> None:
        pass

    def wait(self, stream=None) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _NoStream:
    """Stands for a CUDA stream: work is done in program order."""

    def __init__(self, *args, **kwargs):
        pass

    def wait_stream(self, stream) -> None:
        pass

    def wait_event(self, event) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def record_event(self, event=None) -> _NoEvent:
        return _NoEvent()


def _answer_stream_questions() -> None:
    the_stream = _NoStream()
    torch.cuda.Stream = _NoStream
    torch.cuda.Event = _NoEvent
    torch.cuda.current_stream = torch.cuda.default_stream = lambda device=None: the_stream
    torch.cuda.stream = lambda stream: contextlib.nullcontext()


def _redirect_cuda_factories() -> None:
    """`torch.zeros(..., device="cuda")` in the pipeline schedules and the loss tracker, sent to the CPU."""
    torch.utils._device._device_constructors()  # its cache must know the plain functions, for `with torch.device(...)`
    for name in ("zeros", "ones", "empty", "full", "tensor", "arange"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))


def _on_cpu(factory):
    def make(*args, device=None, pin_memory=False, **kwargs):
        # pinned memory is for copies to a GPU, and torch refuses it without one (Megatron-Core's rotary embedding under
        # context parallelism asks for it)
        if device is not None and torch.device(device).type == "cuda":
            device = _CPU
        return factory(*args, device=device, **kwargs)

    make.__name__ = factory.__name__
    return make


def _report_cuda_tensor_types() -> None:
    """The optimizers sort parameters by `param.type() == "torch.cuda.FloatTensor"`."""
    plain_type = torch.Tensor.type

    def type_as_on_cuda(tensor, *args, **kwargs):
        answer = plain_type(tensor, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer

    torch.Tensor.type = type_as_on_cuda


def _accept_array_splits() -> None:
    """The all-to-all dispatcher keeps its split sizes as CPU tensors; torch 2.13 wants lists of int."""
    plain_all_to_all = torch.distributed.all_to_all_single

    def all_to_all_single(output, input, output_split_sizes=None, input_split_sizes=None, **kwargs):
        return plain_all_to_all(output, input, _ints(output_split_sizes), _ints(input_split_sizes), **kwargs)

    torch.distributed.all_to_all_single = all_to_all_single


def _ints(sizes):
    return None if sizes is None else [int(size) for size in sizes]

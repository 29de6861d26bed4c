"""On a CPU, Megatron-Core's questions to CUDA get a CPU's answers, and torch itself keeps working."""

import pytest
import torch

import megatron_jmed.parallel  # noqa: F401  (enters the CPU where there is no GPU)
from megatron_jmed.cpu import enter_cpu, on_meta_device

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU nothing is patched")


def test_entering_twice_changes_nothing_more():
    before = (torch.zeros, torch.Tensor.type, torch.cuda.current_device, torch.distributed.all_to_all_single)
    enter_cpu()
    assert before == (torch.zeros, torch.Tensor.type, torch.cuda.current_device, torch.distributed.all_to_all_single)


@pytest.mark.parametrize("where", ["cuda", "cuda:3", torch.device("cuda", 0)])
def test_factories_asked_for_cuda_answer_on_the_cpu(where):
    made = (torch.zeros(2, device=where), torch.ones(2, device=where), torch.empty(2, device=where),
            torch.full((2,), 7.0, device=where), torch.tensor([1, 2], device=where), torch.arange(2, device=where))
    assert {tensor.device.type for tensor in made} == {"cpu"}
    assert made[3].tolist() == [7.0, 7.0] and made[4].tolist() == [1, 2]


def test_factories_keep_their_other_arguments():
    assert torch.zeros((2, 3), dtype=torch.int8).dtype == torch.int8
    assert torch.ones(2, requires_grad=True).requires_grad
    assert torch.arange(1, 10, 3, dtype=torch.float32).tolist() == [1.0, 4.0, 7.0]
    assert torch.empty(2, device="meta").device.type == "meta"


def test_pinned_memory_is_plain_memory():
    assert torch.tensor([1, 2], device="cpu", pin_memory=True).tolist() == [1, 2]


def test_a_device_context_still_reaches_the_wrapped_factories():
    with torch.device("meta"):
        made = (torch.zeros(2), torch.ones(2), torch.empty(2), torch.full((2,), 1.0), torch.arange(2), torch.randn(2))
        asked_for_cpu = torch.zeros(2, device="cpu")
    assert {tensor.device.type for tensor in made} == {"meta"}
    assert asked_for_cpu.device.type == "cpu"


def test_meta_device_is_left_again_also_after_an_error():
    with pytest.raises(KeyError), on_meta_device():
        assert torch.nn.Linear(2, 2, device=torch.cuda.current_device()).weight.is_meta
        raise KeyError
    assert torch.cuda.current_device() == torch.device("cpu")
    assert torch.zeros(1).device.type == "cpu"


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "FloatTensor"), (torch.bfloat16, "BFloat16Tensor"),
                                             (torch.float16, "HalfTensor")])
def test_tensor_type_reports_cuda_for_the_optimizers(dtype, name):
    assert torch.zeros(1, dtype=dtype).type() == f"torch.cuda.{name}"


def test_tensor_type_still_converts():
    assert torch.ones(1).type(torch.int64).dtype == torch.int64


def test_moving_to_cuda_stays_on_the_cpu_and_keeps_the_tensor():
    tensor = torch.ones(2)
    assert tensor.cuda() is tensor


def test_random_state_that_megatron_tracks_is_the_cpus():
    from megatron.core.tensor_parallel import random as mcore_random

    state = mcore_random._get_cuda_rng_state()
    first = torch.rand(3)
    mcore_random._set_cuda_rng_state(state)
    assert torch.equal(torch.rand(3), first)

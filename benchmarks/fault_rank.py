"""One rank of the fault campaign: `megatron_jmed.train`, except that the environment variable NAN_STEP makes the gradients of
rank 0 not a number at that step, as a bad GPU would."""

import os

import torch

from megatron_jmed.errors import run_tool
from megatron_jmed.train import __main__ as program
from megatron_jmed.train import step as step_module


def spoil_gradients(at: int) -> None:
    finalize, calls = step_module.finalize_model_grads, []

    def spoiled(model, *rest, **words):
        calls.append(None)
        if len(calls) == at and torch.distributed.get_rank() == 0:
            next(model[0].parameters()).main_grad.fill_(float("nan"))
        return finalize(model, *rest, **words)

    step_module.finalize_model_grads = spoiled


if __name__ == "__main__":
    if os.environ.get("NAN_STEP"):
        spoil_gradients(int(os.environ["NAN_STEP"]))
    run_tool(program.main)

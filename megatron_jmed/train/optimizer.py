"""AdamW over Megatron-Core's distributed optimizer, and the learning rate as a function of tokens.

Norm weights (one-dimensional parameters) are not decayed. Masters and moments are fp32.
"""

import math

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer import ChainedOptimizer
from megatron.core.optimizer.optimizer_config import OptimizerConfig

from megatron_jmed.config import OptimConfig, RunConfig
from megatron_jmed.parallel import Groups


def build_optimizer(config: RunConfig, model: list[DistributedDataParallel], groups: Groups) -> ChainedOptimizer:
    """The optimizer of this rank's shard. Collective: the parameter groups are agreed on over all ranks."""
    optim = config.optim
    fields = OptimizerConfig(
        optimizer="adam",
        lr=optim.peak_lr,
        min_lr=optim.min_lr,
        adam_beta1=optim.adam_beta1,
        adam_beta2=optim.adam_beta2,
        adam_eps=optim.adam_eps,
        weight_decay=optim.weight_decay,
        clip_grad=optim.clip_grad,
        bf16=config.precision.compute != "fp32",
        params_dtype=model[0].config.params_dtype,
        use_distributed_optimizer=True,
        overlap_param_gather=config.parallel.overlap_param_gather,
    )
    return get_megatron_optimizer(fields, model, use_gloo_process_groups=False, pg_collection=groups)


def learning_rate(config: RunConfig, step: int) -> float:
    """The rate of step `step` (counted from 0): linear warm-up from 0 to the peak, then decay to the minimum.

    Taken at the tokens that the step ends with, so that the first step of a warm-up already learns. "wsd" stays at the peak and
    decays over the last `decay_tokens` by 1 - sqrt(progress) (Haegele et al. 2024, arXiv 2405.18392): until then it does not
    know the horizon, which may still be extended.
    """
    optim, tokens = config.optim, (step + 1) * config.tokens_per_step
    if tokens < optim.warmup_tokens:
        return optim.peak_lr * tokens / optim.warmup_tokens
    end = config.num_steps * config.tokens_per_step
    begin = end - optim.decay_tokens if optim.schedule == "wsd" else optim.warmup_tokens
    progress = min(1.0, max(0, tokens - begin) / max(1, end - begin))
    remaining = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
        "wsd": 1 - math.sqrt(progress),
    }[optim.schedule]
    return optim.min_lr + (optim.peak_lr - optim.min_lr) * remaining


def set_learning_rate(optimizer: ChainedOptimizer, optim: OptimConfig, lr: float) -> None:
    """Write the rate and the decay into every parameter group; Megatron-Core leaves both to the training program."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]
        group["weight_decay"] = optim.weight_decay * group["wd_mult"]


def ready_grad_norm(optimizer: ChainedOptimizer) -> float:
    """Bring the gradients to the masters; their norm over the whole model. Collective over all ranks.

    With `apply_grads` this is `ChainedOptimizer.step` of Megatron-Core 0.16.1, cut where it can be decided not to go on. (Its
    own way to skip, `found_inf`, is tied to a loss scale, which only fp16 has.)
    """
    has_overflow = optimizer.prepare_grads()
    assert not has_overflow, "only a loss scale looks for overflows"
    return float(optimizer.get_grad_norm())


def apply_grads(optimizer: ChainedOptimizer, grad_norm: float) -> None:
    """Clip to `optim.clip_grad` and update. Collective over the data-parallel ranks, which gather the new weights."""
    for part in optimizer.chained_optimizers:
        if not part.is_stub_optimizer and (parameters := part.get_parameters()):
            clip_grad_by_total_norm_fp32(parameters, max_norm=part.config.clip_grad, total_norm=grad_norm)
    optimizer.step_with_ready_grads()


@torch.no_grad()
def skip_grads(optimizer: ChainedOptimizer) -> None:
    """Leave weights and moments as they are; only Adam's count of steps goes on.

    A checkpoint holds one count of steps, that of the run, and a resume gives it to Adam: without this a run that skipped an
    update and one that resumed after it would correct their moments' bias differently.
    """
    for part in optimizer.chained_optimizers:
        if part.is_stub_optimizer:
            continue
        if isinstance(part.optimizer, torch.optim.Adam):  # AdamW is one
            part.init_state_fn(part.optimizer)
            for state in part.optimizer.state.values():
                state["step"] = state.get("step", torch.tensor(0.0)) + 1
        else:  # Transformer Engine's and apex's FusedAdam count in the parameter group
            for group in part.optimizer.param_groups:
                group["step"] = group.get("step", 0) + 1

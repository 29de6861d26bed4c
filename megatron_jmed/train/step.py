"""One training step, and one validation: everything that is computed between two lines of metrics.jsonl.

Legend: L layers, E experts, C sources of the blend.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer.optimizer import ChainedOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.transformer.moe.moe_utils import clear_aux_losses_tracker, get_moe_layer_wise_logging_tracker
from megatron.core.transformer.moe.router import TopKRouter

from megatron_jmed.config import RunConfig
from megatron_jmed.data.batch import Batch
from megatron_jmed.model.linear import forget_fp8_weights
from megatron_jmed.parallel import Groups, device
from megatron_jmed.train.alarms import UpdateGuard
from megatron_jmed.train.loss import loss_function, sums_of_rows
from megatron_jmed.train.optimizer import apply_grads, ready_grad_norm, set_learning_rate, skip_grads


@dataclass
class StepNumbers:
    """What one step says about itself; the same on every rank. A dense model has no expert load, and no auxiliary loss."""

    loss: float
    loss_by_source: dict[str, float]
    aux_loss: float = 0.0
    expert_load: list[list[float]] = field(default_factory=list)
    router_z: list[float] = field(default_factory=list)
    grad_norm: float = 0.0
    is_stop_asked: bool = False
    is_save_asked: bool = False
    skipped_in_a_row: int = 0  # updates that were not applied, this one included
    is_skipped: bool = False  # by `data.skip_steps`: nothing was read


class ExpertCounter:
    """Counts what each router of this rank does; zeros in other stages' layers.

    tokens_LE [L, E]: the tokens sent to each expert. z_L2 [L, 2]: the sum of logsumexp(logits)^2 over tokens (the z-loss of Zoph et
    al. 2022, arXiv 2202.08906, without its coefficient: it grows before bf16 routers become unstable) and their number.
    """

    def __init__(self, config: RunConfig, model: list[DistributedDataParallel]):
        num_layers = config.model.num_layers
        self.tokens_LE = torch.zeros(num_layers, config.model.num_experts, dtype=torch.float64, device=device())
        self.z_L2 = torch.zeros(num_layers, 2, dtype=torch.float64, device=device())
        self._tokens_of, self._z_of = list(self.tokens_LE), list(self.z_L2[:, 0])  # views: indexing takes as long as adding
        self._num_seen = [0] * num_layers
        for module in (module for chunk in model for module in chunk.modules()):
            if isinstance(module, TopKRouter):
                module.register_forward_hook(self._count)
                module.routing = partial(self._see_logits, module.layer_number - 1, module.routing)

    def _count(self, router: TopKRouter, _inputs, outputs) -> None:
        if torch.is_grad_enabled():  # not in validation, and once, not twice, where activations are recomputed
            self._tokens_of[router.layer_number - 1].add_(outputs[1].sum(dim=0))

    def _see_logits(self, layer: int, routing, logits: torch.Tensor, *rest, **words):
        if torch.is_grad_enabled():
            z_T = logits.detach().float().logsumexp(dim=-1).flatten()
            self._z_of[layer].add_(torch.dot(z_T, z_T))
            self._num_seen[layer] += len(z_T)
        return routing(logits, *rest, **words)

    def flat(self) -> list[torch.Tensor]:
        """tokens_LE and z_L2 as vectors, for the all-reduce."""
        self.z_L2[:, 1] = torch.tensor(self._num_seen, dtype=torch.float64)
        return [self.tokens_LE.flatten(), self.z_L2.flatten()]

    def clear(self) -> None:
        self.tokens_LE.zero_()
        self.z_L2.zero_()
        self._num_seen = [0] * len(self._num_seen)


class Stepper:
    """Runs steps of one model with one optimizer; all state of the training is in these two and in the guard's past norms."""

    def __init__(self, config: RunConfig, groups: Groups, model: list[DistributedDataParallel], optimizer: ChainedOptimizer,
                 source_names: tuple[str, ...], guard: UpdateGuard | None = None):
        self._config, self._groups, self._model, self._optimizer = config, groups, model, optimizer
        self._source_names = source_names
        self._guard = guard or UpdateGuard(config.watch, [])
        self._experts = ExpertCounter(config, model)
        self._num_micro_batches = config.budget.global_batch_size // (config.budget.micro_batch_size * groups.dp.size())
        mcore = model[0].config  # the schedules read these of the first chunk
        mcore.finalize_model_grads_func = finalize_model_grads
        mcore.grad_scale_func = optimizer.scale_loss
        if config.parallel.overlap_grad_reduce:
            mcore.no_sync_func = [chunk.no_sync for chunk in model] if len(model) > 1 else model[0].no_sync
        self._forward_backward = partial(
            get_forward_backward_func(),
            forward_step_func=self._forward,
            model=model,
            num_microbatches=self._num_micro_batches,
            seq_length=config.budget.seq_length,
            micro_batch_size=config.budget.micro_batch_size,
            pg_collection=groups,
            p2p_communicator=P2PCommunicator(groups.pp, mcore),
        )

    def train(self, batches: Iterator[Batch], lr: float, wants_stop: bool, wants_save: bool = False) -> StepNumbers:
        """Forward, backward, reduce, clip, update unless the guard refuses the gradients.

        Collective over all ranks; any rank's wish to stop or to save, and any rank's refusal, is all ranks'.
        """
        set_learning_rate(self._optimizer, self._config.optim, lr)
        for chunk in self._model:
            chunk.train()
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
        self._forget_fp8_weights()
        results = self._forward_backward(data_iterator=self._for_each_chunk(batches), forward_only=False)
        grad_norm = ready_grad_norm(self._optimizer)
        numbers, is_refused = self._summed_over_ranks(results, [wants_stop, wants_save, self._guard.refuses(grad_norm)])
        if is_refused:
            skip_grads(self._optimizer)
        else:
            apply_grads(self._optimizer, grad_norm)
        numbers.grad_norm = grad_norm
        numbers.skipped_in_a_row = self._guard.count(is_refused)
        return numbers

    def skip(self, wants_stop: bool, wants_save: bool = False) -> StepNumbers:
        """A step that reads nothing; as after refused gradients, only Adam's count of steps goes on.

        Collective over all ranks; any rank's wish to stop or to save is all ranks'.
        """
        numbers, _ = self._summed_over_ranks([], [wants_stop, wants_save, False])
        skip_grads(self._optimizer)
        return StepNumbers(loss=math.nan, loss_by_source={}, is_stop_asked=numbers.is_stop_asked,
                           is_save_asked=numbers.is_save_asked, skipped_in_a_row=self._guard.num_skipped, is_skipped=True)

    @torch.no_grad()
    def validate(self, batches: Iterator[Batch], num_steps: int) -> StepNumbers:
        """The loss over `num_steps` global batches, without learning. Collective over all ranks."""
        for chunk in self._model:
            chunk.eval()
        self._forget_fp8_weights()
        results = []
        for _ in range(num_steps):
            results += self._forward_backward(data_iterator=self._for_each_chunk(batches), forward_only=True)
        return self._summed_over_ranks(results, [False] * 3)[0]

    @torch.no_grad()
    def log_likelihoods(self, batches: Iterator[Batch], num_steps: int, num_rows: int) -> list[float]:
        """For each row number in `source_B` the summed log-likelihood of its tokens that count. Collective over all ranks."""
        for chunk in self._model:
            chunk.eval()
        self._forget_fp8_weights()
        losses = torch.zeros(num_rows, 2, dtype=torch.float64, device=device())
        for _ in range(num_steps):
            results = self._forward_backward(data_iterator=self._for_each_chunk(batches), forward_only=True,
                                             forward_step_func=partial(self._answer, num_rows=num_rows))
            if self._groups.tp.rank() == 0:
                losses += sum((result["by_source"] for result in results), torch.zeros_like(losses))
        torch.distributed.all_reduce(losses)
        clear_aux_losses_tracker()
        return (-losses[:, 0]).tolist()

    def _forget_fp8_weights(self) -> None:
        for chunk in self._model if self._config.precision.compute == "fp8" else []:
            forget_fp8_weights(chunk.parameters())

    def _for_each_chunk(self, batches: Iterator[Batch]) -> list[Iterator[Batch]]:
        """The same micro-batches once for every chunk; within a step each chunk asks for all of them, in order."""
        return [batches] if len(self._model) == 1 else list(itertools.tee(batches, len(self._model)))

    def _forward(self, batches: Iterator[Batch], model: torch.nn.Module):
        batch = next(batches)
        # our own attention reads document numbers where Megatron-Core speaks of a mask (model/layers.py)
        token_losses_BS = model(batch.tokens_BS, batch.position_ids_BS, attention_mask=batch.document_BS, labels=batch.labels_BS)
        return token_losses_BS, loss_function(batch, len(self._source_names), self._groups.cp)

    def _answer(self, batches: Iterator[Batch], model: torch.nn.Module, num_rows: int):
        batch = next(batches)
        logits_BSV = model(batch.tokens_BS, batch.position_ids_BS, attention_mask=batch.document_BS)
        return logits_BSV, partial(sums_of_rows, batch, num_rows, self._config.model.vocab_size, self._groups.tp)

    def _summed_over_ranks(self, results: list[dict[str, torch.Tensor]], wishes: list[bool]) -> tuple[StepNumbers, bool]:
        """(the numbers, whether any rank refuses the gradients): one all-reduce over the whole world for all that ranks hold in
        parts. `wishes`: to stop, to save, to refuse."""
        num_layers, num_experts = self._experts.tokens_LE.shape
        by_source_C2 = torch.zeros(len(self._source_names), 2, dtype=torch.float64, device=device())
        if results and self._groups.tp.rank() == 0:  # tensor-parallel ranks of the last stage hold copies
            by_source_C2 += torch.stack([result["by_source"] for result in results]).sum(dim=0)
        wished = torch.tensor(wishes, dtype=torch.float64, device=device())
        parts = [by_source_C2.flatten(), _aux_loss(num_layers), *self._experts.flat(), wished]
        summed = torch.cat(parts)
        torch.distributed.all_reduce(summed)
        by_source, aux_L, load, z, wished = summed.cpu().split([part.numel() for part in parts])
        self._experts.clear()
        clear_aux_losses_tracker()
        micro_batches_a_step = self._num_micro_batches * self._groups.dp.size()
        sums, counts = by_source.view(-1, 2).unbind(dim=1)
        load_LE, (z_L, tokens_L) = load.view(num_layers, num_experts), z.view(num_layers, 2).unbind(dim=1)
        is_stop_asked, is_save_asked, is_refused = (wished > 0).tolist()
        numbers = StepNumbers(
            loss=float(sums.sum() / counts.sum()),
            loss_by_source={name: float(total / count) for name, total, count in
                            zip(self._source_names, sums, counts, strict=True) if count > 0},
            aux_loss=float(aux_L.mean()) / micro_batches_a_step,
            expert_load=(load_LE / load_LE.sum(dim=1, keepdim=True).clamp(min=1)).tolist() if num_experts else [],
            router_z=(z_L / tokens_L.clamp(min=1)).tolist() if num_experts else [],
            is_stop_asked=is_stop_asked,
            is_save_asked=is_save_asked,
        )
        return numbers, is_refused


def _aux_loss(num_layers: int) -> torch.Tensor:
    """This rank's part of the unscaled load-balancing loss by layer [L]: 1 is perfect balance."""
    tracked = get_moe_layer_wise_logging_tracker().get("load_balancing_loss")
    if tracked is None:
        return torch.zeros(num_layers, dtype=torch.float64, device=device())
    return tracked["values"].double()

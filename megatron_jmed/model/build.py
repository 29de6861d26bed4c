"""RunConfig + Groups -> this rank's part of the model. The only file that names GPTModel.

Upstream's head calls GPTModel deprecated; when it goes, this file changes and no other.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron_jmed.config import KernelsConfig, RunConfig
from megatron_jmed.cpu import on_meta_device
from megatron_jmed.model.head import head_losses
from megatron_jmed.model.layers import decoder_spec
from megatron_jmed.model.lora import add_adapters
from megatron_jmed.model.transformer import transformer_config
from megatron_jmed.parallel import Groups, device, is_first_stage, is_last_stage


class FusedHeadModel(GPTModel):
    """GPTModel whose output layer and loss are one function (head.py) wherever labels are given."""

    kernels: KernelsConfig

    def _postprocess(self, hidden_states, *arguments, labels=None, **words):
        if labels is None or not self.post_process:
            return super()._postprocess(hidden_states, *arguments, labels=labels, **words)
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        return head_losses(self.output_layer, hidden_states, labels, weight, self.kernels.head_chunk_tokens,
                           self.kernels.wgrad_accumulation)


def build_model(config: RunConfig, groups: Groups, chunk: int = 0) -> GPTModel:
    """One of the `parallel.vpp` chunks of this rank's stage, its weights drawn from the seed that `start_groups` set.

    Without interleaving (vpp=1) the chunk is the stage. Chunk c of stage s holds the layers number c * pp + s of
    pp * vpp equal parts.
    """
    mcore_config = transformer_config(config)
    vp_stage = chunk if config.parallel.vpp > 1 else None
    first = get_transformer_layer_offset(mcore_config, vp_stage, groups.pp.rank())
    layers = range(first, first + get_num_layers_to_build(mcore_config, vp_stage, groups.pp.rank()))
    network = FusedHeadModel if config.kernels.cross_entropy else GPTModel
    model = network(
        config=mcore_config,
        transformer_layer_spec=decoder_spec(config, groups, layers),
        vocab_size=config.padded_vocab_size,
        max_sequence_length=config.model.max_position_embeddings,
        pre_process=is_first_stage(groups) and chunk == 0,
        post_process=is_last_stage(groups) and chunk == config.parallel.vpp - 1,
        share_embeddings_and_output_weights=config.model.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=config.model.rotary_base,
        pg_collection=groups,
        vp_stage=vp_stage,
    )
    if config.kernels.cross_entropy:
        model.kernels = config.kernels
    if config.model.lora_rank:
        add_adapters(model, config, groups)
    return model


def build_meta_model(config: RunConfig, groups: Groups, chunk: int = 0) -> GPTModel:
    """`build_model` without memory: shapes only, for dry runs. Always the local back end: Transformer Engine's layers
    have the same parameters but cannot be built without a GPU."""
    shapes_only = config.model_copy(update={
        "precision": config.precision.model_copy(update={"compute": "bf16", "backend": "local"}),
        "kernels": KernelsConfig(),
        "model": config.model.model_copy(update={"mcore": {**config.model.mcore, "perform_initialization": False}}),
    })
    with on_meta_device():
        return build_model(shapes_only, groups, chunk)


def build_forward_model(config: RunConfig, groups: Groups, chunk: int = 0) -> GPTModel | Float16Module:
    """A chunk of the model on this rank's device and in its precision, without anything that only training needs."""
    model = build_model(config, groups, chunk).to(device())
    return Float16Module(model.config, model) if model.config.bf16 else model


def build_data_parallel_model(config: RunConfig, groups: Groups) -> list[DistributedDataParallel]:
    """This rank's chunks of the model, with gradient buffers sharded for the distributed optimizer."""
    buffers = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        overlap_grad_reduce=config.parallel.overlap_grad_reduce,
        overlap_param_gather=config.parallel.overlap_param_gather,
    )
    chunks = [build_forward_model(config, groups, chunk) for chunk in range(config.parallel.vpp)]
    # only the first chunk's gradients are reduced in pieces: the others have other chunks' work to hide behind
    return [DistributedDataParallel(chunk.config, buffers, chunk, disable_bucketing=number > 0, pg_collection=groups)
            for number, chunk in enumerate(chunks)]


@contextmanager
def whole_weights(model: list[DistributedDataParallel]) -> Iterator[None]:
    """Inside, every rank holds all of its new weights: needed to save or to validate between two steps.

    With `overlap_param_gather` a rank has updated only its own shard until the next forward pass gathers the rest.
    Collective over the data-parallel ranks.
    """
    waiting = [chunk for chunk in model if chunk.ddp_config.overlap_param_gather]
    for chunk in waiting:
        chunk.disable_forward_pre_hook()
    yield
    for chunk in waiting:
        chunk.enable_forward_pre_hook()

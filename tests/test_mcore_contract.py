"""What we use of Megatron-Core, by name and parameter: after an upgrade this file fails in a second, with the list."""

import importlib
import inspect
from importlib.metadata import version

import pytest

import megatron_jmed.parallel  # noqa: F401  (its CPU patches come before Megatron-Core)

PINNED = "0.16.1"

# (where, what, parameters we pass by name)
CALLS = [
    ("parallel_state", "initialize_model_parallel", "tensor_model_parallel_size pipeline_model_parallel_size "
     "virtual_pipeline_model_parallel_size context_parallel_size expert_model_parallel_size expert_tensor_parallel_size "
     "create_gloo_process_groups"),
    ("parallel_state", "destroy_model_parallel", ""),
    ("tensor_parallel", "model_parallel_cuda_manual_seed", "seed"),
    ("process_groups_config", "ProcessGroupCollection.use_mpu_process_groups", ""),
    ("models.gpt", "GPTModel.__init__", "config transformer_layer_spec vocab_size max_sequence_length pre_process "
     "post_process share_embeddings_and_output_weights position_embedding_type rotary_base pg_collection vp_stage"),
    ("models.gpt.gpt_layer_specs", "get_gpt_layer_with_transformer_engine_spec", "num_experts moe_grouped_gemm"),
    ("models.gpt.moe_module_specs", "get_moe_module_spec", "use_te num_experts moe_grouped_gemm"),
    ("transformer.mlp", "MLPSubmodules.__init__", "linear_fc1 linear_fc2"),
    ("transformer.transformer_block", "get_num_layers_to_build", "config vp_stage pp_rank"),
    ("transformer.transformer_layer", "get_transformer_layer_offset", "config vp_stage pp_rank"),
    ("tensor_parallel.layers", "ColumnParallelLinear._forward_impl", "input weight"),
    ("tensor_parallel.layers", "RowParallelLinear._forward_impl", "input weight"),
    ("tensor_parallel.layers", "linear_with_grad_accumulation_and_async_allreduce", "bias gradient_accumulation_fusion "
     "allreduce_dgrad sequence_parallel grad_output_buffer wgrad_deferral_limit tp_group"),
    ("tensor_parallel.mappings", "copy_to_tensor_model_parallel_region", "input_ group"),
    ("tensor_parallel.mappings", "gather_from_sequence_parallel_region", "input_ tensor_parallel_output_grad group"),
    ("distributed", "DistributedDataParallel.__init__", "config ddp_config module disable_bucketing pg_collection"),
    ("distributed", "DistributedDataParallelConfig.__init__", "grad_reduce_in_fp32 use_distributed_optimizer "
     "overlap_grad_reduce overlap_param_gather"),
    ("distributed", "finalize_model_grads", "model num_tokens pg_collection"),
    ("optimizer", "get_megatron_optimizer", "config model_chunks use_gloo_process_groups pg_collection"),
    ("optimizer.optimizer", "ChainedOptimizer.prepare_grads", ""),
    ("optimizer.optimizer", "ChainedOptimizer.get_grad_norm", ""),
    ("optimizer.optimizer", "ChainedOptimizer.step_with_ready_grads", ""),
    ("optimizer.clip_grads", "clip_grad_by_total_norm_fp32", "parameters max_norm total_norm"),
    ("optimizer.distrib_optimizer", "DistributedOptimizer.sharded_param_state_fully_reshardable",
     "model_sharded_state_dict is_loading metadata"),
    ("optimizer.distrib_optimizer", "DistributedOptimizer.load_parameter_state_from_fully_reshardable", "state_dict"),
    ("pipeline_parallel", "get_forward_backward_func", ""),
    ("pipeline_parallel.schedules", "forward_backward_no_pipelining", "forward_step_func data_iterator model "
     "num_microbatches seq_length micro_batch_size forward_only p2p_communicator pg_collection"),
    ("pipeline_parallel.schedules", "forward_backward_pipelining_with_interleaving", "forward_step_func data_iterator model "
     "num_microbatches seq_length micro_batch_size forward_only p2p_communicator pg_collection"),
    ("pipeline_parallel.p2p_communication", "P2PCommunicator.__init__", "pp_group config"),
    ("dist_checkpointing", "save", "sharded_state_dict checkpoint_dir content_metadata"),
    ("dist_checkpointing", "load", "sharded_state_dict checkpoint_dir strict"),
    ("datasets.blended_megatron_dataset_builder", "BlendedMegatronDatasetBuilder.__init__", "cls sizes is_built_on_rank config"),
    ("datasets.gpt_dataset", "GPTDatasetConfig.__init__", "random_seed sequence_length blend split path_to_cache tokenizer "
     "reset_position_ids reset_attention_mask eod_mask_loss create_attention_mask"),
    ("transformer.moe.moe_utils", "get_moe_layer_wise_logging_tracker", ""),
    ("transformer.moe.moe_utils", "clear_aux_losses_tracker", ""),
]


def test_the_pinned_version_is_installed():
    assert version("megatron-core") == PINNED


@pytest.mark.parametrize(("module", "name", "parameters"), CALLS, ids=[f"{m}.{n}" for m, n, _ in CALLS])
def test_call_exists_with_our_parameters(module, name, parameters):
    found = importlib.import_module(f"megatron.core.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    missing = set(parameters.split()) - set(inspect.signature(found).parameters)
    assert not missing, f"megatron.core.{module}.{name} has no parameter {sorted(missing)}"


def test_transformer_config_has_every_field_that_we_set():
    import dataclasses

    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_jmed.config import recipe_config
    from megatron_jmed.model import transformer
    from megatron_jmed.model.precision import precision_fields

    config = recipe_config("llmjp_8x13b_fp8")
    ours = {**transformer._model_fields(config.model), **transformer._parallel_fields(config),
            **precision_fields(config.precision), **transformer._recompute_fields(config)}
    assert not set(ours) - {field.name for field in dataclasses.fields(TransformerConfig)}


def test_checkpoint_writer_takes_its_results_queue_from_the_module():
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    ours = object()
    before, filesystem_async._results_queue = filesystem_async._results_queue, ours
    try:
        assert filesystem_async._get_write_results_queue() is ours
    finally:
        filesystem_async._results_queue = before

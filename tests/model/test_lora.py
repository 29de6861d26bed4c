"""Adapters: they begin at the base model, they alone are trained, a checkpoint holds them, and an export adds them."""

import pytest
import torch

import megatron_jmed.parallel  # noqa: F401  (the CPU patches come before Megatron-Core)
from megatron_jmed.config import ModelConfig, load_config, problems
from megatron_jmed.convert.source import open_weights
from megatron_jmed.convert.weights import export_hf, import_weights
from megatron_jmed.data.batch import batch_from_sample
from megatron_jmed.errors import CheckpointError, ConfigError
from megatron_jmed.model.build import build_data_parallel_model
from megatron_jmed.model.lora import is_adapter
from megatron_jmed.parallel import device, stop_groups
from megatron_jmed.run_folder import CheckpointState, check_same_model, load_state
from megatron_jmed.train.checkpoint import load_checkpoint, load_weights, save_checkpoint
from megatron_jmed.train.dry_run import print_plan
from megatron_jmed.train.estimate import adapter_parameters, stage_memory
from megatron_jmed.train.logits import checkpoint_logits
from megatron_jmed.train.optimizer import build_optimizer
from megatron_jmed.train.step import Stepper

LORA = ("model.lora_rank=4", "model.lora_alpha=8")
BUDGET = ("budget.seq_length=32", "budget.global_batch_size=4", "budget.micro_batch_size=2", "optim.peak_lr=0.01")
DENSE = ("model.num_experts=0", "model.router_topk=0")


@pytest.fixture
def build(small_config, groups):
    """build(change, ...): the config, the model, its optimizer and its stepper."""

    def made(*changes: str):
        config = small_config(*BUDGET, *changes)
        model = build_data_parallel_model(config, groups)
        optimizer = build_optimizer(config, model, groups)
        return config, model[0], optimizer, Stepper(config, groups, model, optimizer, ("a",))

    return made


def batches():
    for number in range(2):
        ids = torch.randint(3, 2000, (2, 33), generator=torch.Generator().manual_seed(number))
        yield batch_from_sample({"tokens": ids[:, :-1], "labels": ids[:, 1:], "loss_mask": torch.ones(2, 32), "dataset_id":
                                 torch.zeros(2), "position_ids": torch.arange(32).expand(2, 32)}, device())


def saved(config, model, optimizer, groups, folder, step: int = 1):
    state = CheckpointState(step=step, tokens=step, model=config.model, has_optimizer=True)
    save_checkpoint(folder, state, [model], optimizer, groups)
    return folder


@pytest.mark.parametrize("kind", [(), DENSE, ('model.lora_targets=["attention"]',), ('model.lora_targets=["experts"]',),
                                  ("budget.recompute=full",)])
def test_adapters_begin_at_the_base_and_alone_are_trained(kind, build, groups, tmp_path):
    base_words = [word for word in kind if "lora" not in word]
    config, base, optimizer, stepper = build(*base_words)
    plain = stepper.train(batches(), lr=0.0, wants_stop=False)
    first = saved(config, base, optimizer, groups, tmp_path / "step_0000000", 0)
    config, model, optimizer, stepper = build(*LORA, *kind)
    load_weights(first, [model], optimizer, groups)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    losses = [stepper.train(batches(), lr=0.01, wants_stop=False).loss for _ in range(8)]
    assert losses[0] == pytest.approx(plain.loss, rel=1e-6) and losses[-1] < losses[0] - 0.1
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    asking = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved == asking == {name for name in before if is_adapter(name)}
    numbers = [layers * config.model.num_layers for layers in adapter_parameters(config, ranks_too=False)]
    held = sum(state["exp_avg"].numel() for part in optimizer.chained_optimizers if not part.is_stub_optimizer
               for state in part.optimizer.state.values())
    trained = sum(before[name].numel() for name in moved)
    assert held == trained == sum(numbers), "the optimizer holds the adapters' moments and no others"
    memory = stage_memory(config, 1, 0)
    assert memory.params_on_rank == sum(parameter.numel() for parameter in model.parameters()) and memory.gradients == 4 * trained


@pytest.mark.parametrize("kind", [(), DENSE])
def test_gradients_are_those_that_the_whole_weight_would_give(kind, build, groups, tmp_path):
    """dA = s B^T dW and dB = s dW A^T, with the dW of a model whose weights are W + s B A and all trained."""
    # without padding of the vocabulary, which an import clears, and unclipped
    exact = ("model.aux_loss_coeff=0", "model.vocab_divisor=80", "optim.clip_grad=1e9", *kind)
    config, model, optimizer, stepper = build(*LORA, *exact)
    for _ in range(3):
        stepper.train(batches(), lr=0.05, wants_stop=False)
    folder = saved(config, model, optimizer, groups, tmp_path / "step_0000003", 3)
    import_weights(open_weights(folder), tmp_path / "merged")
    _, whole, whole_optimizer, whole_stepper = build(*exact)
    load_weights(tmp_path / "merged", [whole], whole_optimizer, groups)
    losses = [one.train(batches(), lr=0.0, wants_stop=False).loss for one in (stepper, whole_stepper)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    adapted, plain = dict(model.named_parameters()), dict(whole.named_parameters())
    names = [name.removesuffix("adapter.a") for name in adapted if name.endswith("adapter.a")]
    assert len(names) == 2 * (2 + 2 * max(1, config.model.num_experts)), "two layers: qkv, proj, and fc1 and fc2 of each expert"
    for name in names:
        a_rK, b_PNr, weight_NK = adapted[f"{name}adapter.a"], adapted[f"{name}adapter.b"], plain[f"{name}weight"]
        b_Nr, grad_b_Nr, grad_NK = b_PNr.flatten(end_dim=1), b_PNr.main_grad.flatten(end_dim=1), weight_NK.main_grad
        scale = 8 / 4
        for ours, theirs in ((a_rK.main_grad, scale * b_Nr.t() @ grad_NK), (grad_b_Nr, scale * grad_NK @ a_rK.t())):
            assert (ours - theirs).norm() <= 1e-3 * theirs.norm(), name


@pytest.mark.parametrize("kind", [(), DENSE])
def test_export_adds_the_adapters_and_a_resume_has_them(kind, build, groups, tmp_path):
    transformers = pytest.importorskip("transformers")
    config, model, optimizer, stepper = build(*LORA, *kind)
    for _ in range(4):
        stepper.train(batches(), lr=0.05, wants_stop=False)
    folder = saved(config, model, optimizer, groups, tmp_path / "step_0000004", 4)
    _, other, other_optimizer, other_stepper = build(*LORA, *kind, "seed=7")
    load_checkpoint(folder, load_state(folder), [other], other_optimizer, groups)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert stepper.train(batches(), lr=0.05, wants_stop=False) == other_stepper.train(batches(), lr=0.05, wants_stop=False)
    export_hf(folder, tmp_path / "hf")
    assert open_weights(folder).model.lora_rank == 0
    tokens = next(batches()).tokens_BS
    stop_groups()
    ours = checkpoint_logits(folder, tokens, "fp32")
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)(tokens).logits[..., :2000]
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    plain = load_state(folder).model.model_copy(update={"lora_rank": 0})
    with pytest.raises(CheckpointError, match="belongs to no part of the model"):  # the adapters really are in the folder
        (folder / "state.json").write_text(load_state(folder).model_copy(update={"model": plain}).model_dump_json())
        open_weights(folder)
    from megatron_jmed.config import ParallelConfig
    from megatron_jmed.parallel import World, start_groups

    start_groups(ParallelConfig(), World(0, 1, 0), seed=1234)  # for the fixture to stop


def test_adapters_of_another_rank_are_not_taken_for_these():
    words = load_config("tiny").model
    adapted = CheckpointState(step=1, tokens=1, model=words.model_copy(update={"lora_rank": 4}), has_optimizer=True)
    for other in (words, words.model_copy(update={"lora_rank": 8})):
        with pytest.raises(CheckpointError, match="holds adapters"):
            check_same_model(ModelConfig, adapted, other)
    check_same_model(ModelConfig, adapted, adapted.model)
    check_same_model(ModelConfig, adapted.model_copy(update={"model": words}), adapted.model)


@pytest.mark.parametrize(("changes", "said"), [
    (["precision.backend=te", "precision.compute=bf16"], 'set precision.backend="jmed"'),
    (["precision.backend=jmed", "kernels.swiglu=true"], "without their adapters"),
    (["parallel.pp=2", "model.tied_embeddings=true"], "needs parallel.pp=1"),
    (["parallel.etp=2"], "needs parallel.etp of 1 or parallel.tp=1"),
    (["model.lora_targets=[]"], "lora_targets"),
    (['model.lora_targets=["router"]'], "lora_targets"),
])
def test_wrong_combinations_are_refused(changes, said):
    with pytest.raises(ConfigError) as error:
        load_config("tiny", [*LORA, *changes])
    assert said in str(error.value)


@pytest.mark.parametrize("layout", ["parallel.ep=2", "parallel.tp=2 parallel.etp=2 parallel.ep=1 parallel.sequence_parallel=true",
                                    "parallel.pp=2 parallel.ep=1", "parallel.tp=2 parallel.ep=2 parallel.sequence_parallel=true"])
def test_dry_run_builds_what_the_arithmetic_says(layout, capsys):
    config = load_config("tiny", [*LORA, *layout.split()])
    assert not problems(config, 4)
    print_plan(config, 4)
    assert "parameters of rank 4 are trained" in capsys.readouterr().out

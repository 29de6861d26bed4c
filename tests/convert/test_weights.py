"""Weights go from Hugging Face to a checkpoint and back without losing a bit, compute the same logits on both sides, and
whatever is wrong is named and leaves no target that looks finished."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralForCausalLM

import megatron_jmed.parallel  # noqa: F401  (the CPU patches come before Megatron-Core)
from megatron_jmed.config import recipe_config
from megatron_jmed.convert.hf import INDEX_NAME
from megatron_jmed.convert.names import rows
from megatron_jmed.convert.torch_dist import CheckpointReader
from megatron_jmed.convert.weights import _check_tokenizer, export_hf, import_hf
from megatron_jmed.errors import CheckpointError
from megatron_jmed.model.build import build_data_parallel_model
from megatron_jmed.run_folder import STATE_NAME, CheckpointState, load_state
from megatron_jmed.train.checkpoint import load_weights, save_checkpoint
from megatron_jmed.train.optimizer import build_optimizer

VOCABULARY, PADDED = 300, 384
LAYER, EXPERT = "model.layers.1.", "model.layers.1.block_sparse_moe.experts.2."


@pytest.fixture(scope="module")
def checkpoint(mixtral, tmp_path_factory) -> Path:
    """The imported folder; do not change it."""
    folder = tmp_path_factory.mktemp("imported") / "checkpoint"
    import_hf(mixtral, folder)
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def assert_equal_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


# ---- to the bit


def test_import_then_export_gives_every_tensor_back(mixtral, checkpoint, tmp_path):
    export_hf(checkpoint, tmp_path / "hf", tokenizer=None)
    assert_equal_bits(tensors_of(tmp_path / "hf"), tensors_of(mixtral))


def test_imported_state_is_of_step_0_without_optimizer(mixtral, checkpoint):
    state = load_state(checkpoint)
    assert (state.step, state.tokens, state.has_optimizer, state.source) == (0, 0, False, str(mixtral))
    assert (state.model.vocab_size, state.model.num_experts) == (VOCABULARY, 4)


def test_padding_rows_of_the_vocabulary_are_zero(checkpoint):
    reader = CheckpointReader(checkpoint)
    for key in ("embedding.word_embeddings.weight", "output_layer.weight"):
        tensor = reader.read(key)
        assert tensor.shape == (PADDED, 32)
        assert tensor[VOCABULARY:].eq(0).all() and tensor[:VOCABULARY].ne(0).any(dim=1).all()


def test_files_of_transformers_5_import_like_those_of_4(mixtral, checkpoint, change_tensors, tmp_path):
    """Written by hand: all experts of a layer in two tensors, and the layer's name."""

    def as_style_5(tensors):
        new = {name: tensor for name, tensor in tensors.items() if "block_sparse_moe" not in name}
        for layer in range(2):
            old = f"model.layers.{layer}.block_sparse_moe"
            experts = [[tensors[f"{old}.experts.{e}.w{part}.weight"] for part in (1, 2, 3)] for e in range(4)]
            new[f"model.layers.{layer}.mlp.gate.weight"] = tensors[f"{old}.gate.weight"]
            new[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.stack([torch.cat([w1, w3]) for w1, _, w3 in experts])
            new[f"model.layers.{layer}.mlp.experts.down_proj"] = torch.stack([w2 for _, w2, _ in experts])
        return new

    folder = change_tensors(as_style_5)
    assert len(tensors_of(folder)) < len(tensors_of(mixtral))
    import_hf(folder, tmp_path / "checkpoint")
    ours, theirs = CheckpointReader(tmp_path / "checkpoint"), CheckpointReader(checkpoint)
    assert ours.weight_keys() == theirs.weight_keys() == {row.key for row in rows(load_state(checkpoint).model)}
    assert all(torch.equal(ours.read(row.key), theirs.read(row.key)) for row in rows(load_state(checkpoint).model))


def test_shards_with_an_index_import_like_one_file(mixtral, checkpoint, copy, tmp_path):
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, copy / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (copy / INDEX_NAME).write_text(json.dumps(index))
    import_hf(copy, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "hf", tokenizer=None)
    assert_equal_bits(tensors_of(tmp_path / "hf"), tensors_of(mixtral))


def test_bf16_stays_bf16_and_can_be_exported_as_fp32(mixtral, change_tensors, tmp_path):
    folder = change_tensors(lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    import_hf(folder, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "hf", tokenizer=None)
    assert_equal_bits(tensors_of(tmp_path / "hf"), tensors_of(folder))
    assert json.loads((tmp_path / "hf/config.json").read_text())["torch_dtype"] == "bfloat16"
    export_hf(tmp_path / "checkpoint", tmp_path / "wide", tokenizer=None, dtype="fp32")
    assert_equal_bits(tensors_of(tmp_path / "wide"), {n: t.bfloat16().float() for n, t in tensors_of(mixtral).items()})


# ---- the same model


def their_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    model = MixtralForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(tokens).logits


def our_logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(tokens.size(1)).expand_as(tokens)
    with torch.no_grad():
        logits = model.eval()(tokens, positions, attention_mask=None)
    assert logits.shape == (*tokens.shape, PADDED)
    return logits[..., :VOCABULARY]


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def build(small_config, checkpoint, groups):
    """build(): (model, optimizer) of the imported checkpoint's words, with random weights."""
    config = small_config().model_copy(update={"model": load_state(checkpoint).model})
    (model,) = build_data_parallel_model(config, groups)
    return model, build_optimizer(config, [model], groups)


def test_imported_model_computes_the_logits_of_transformers(mixtral, checkpoint, build, groups, tokens):
    model, optimizer = build
    expected = their_logits(mixtral, tokens)
    assert (our_logits(model, tokens) - expected).abs().max() > 0.1
    load_weights(checkpoint, [model], optimizer, groups)
    torch.testing.assert_close(our_logits(model, tokens), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


def test_exported_model_computes_our_logits_in_transformers(checkpoint, build, groups, tokens, tmp_path):
    model, optimizer = build
    optimizer.step()  # gradients of zero: Adam's moments come into being, as in any saved run
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    words = load_state(checkpoint).model
    state = CheckpointState(step=1, tokens=1, model=words, has_optimizer=True)
    save_checkpoint(tmp_path / "step_0000001", state, [model], optimizer, groups)
    export_hf(tmp_path / "step_0000001", tmp_path / "hf", tokenizer=None)
    assert MixtralForCausalLM.from_pretrained(tmp_path / "hf").lm_head.weight.shape == (VOCABULARY, 32)
    torch.testing.assert_close(their_logits(tmp_path / "hf", tokens), our_logits(model, tokens), rtol=1e-4, atol=1e-4)


def test_imported_checkpoint_holds_what_megatron_core_asks_for_and_nothing_else(checkpoint, build, groups):
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.validation import StrictHandling
    from megatron.core.utils import unwrap_model

    sharded = unwrap_model(build[0]).sharded_state_dict(metadata={"dp_cp_group": groups.dp_cp})
    sharded = {key: value for key, value in sharded.items() if not key.endswith("_extra_state")}
    loaded = dist_checkpointing.load({"model": sharded}, str(checkpoint), strict=StrictHandling.RAISE_ALL)
    assert set(loaded["model"]) == set(sharded)
    reader = CheckpointReader(checkpoint)
    assert torch.equal(loaded["model"]["output_layer.weight"], reader.read("output_layer.weight"))


# ---- what is wrong is named, and leaves nothing


def refused_import(source: Path, tmp_path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        import_hf(source, tmp_path / "target")
    assert not (tmp_path / "target" / STATE_NAME).exists()
    return str(error.value)


@pytest.mark.parametrize("name", [LAYER + "self_attn.k_proj.weight", EXPERT + "w3.weight", "lm_head.weight",
                                  LAYER + "block_sparse_moe.gate.weight"])
def test_missing_tensor_is_named(name, change_tensors, tmp_path):
    folder = change_tensors(lambda tensors: {key: value for key, value in tensors.items() if key != name})
    assert f"no tensor {name}" in refused_import(folder, tmp_path)


def test_extra_tensors_are_named(change_tensors, tmp_path):
    extra = {LAYER + "self_attn.q_proj.bias": torch.zeros(32), "model.layers.2.input_layernorm.weight": torch.zeros(32)}
    message = refused_import(change_tensors(lambda tensors: tensors | extra), tmp_path)
    assert all(name in message for name in extra)


@pytest.mark.parametrize(("name", "shape"), [
    (LAYER + "self_attn.q_proj.weight", (32, 31)), (EXPERT + "w2.weight", (48, 32)), (EXPERT + "w1.weight", (47, 32)),
    ("model.embed_tokens.weight", (299, 32)), ("model.embed_tokens.weight", (301, 32)), ("model.norm.weight", (1,)),
])
def test_tensor_of_another_shape_is_named_with_both_shapes(name, shape, change_tensors, tmp_path):
    right = []

    def reshape(tensors):
        right.append(list(tensors[name].shape))
        return tensors | {name: torch.zeros(shape)}

    message = refused_import(change_tensors(reshape), tmp_path)
    assert f"tensor {name} has shape {list(shape)}; the config asks for {right[0]}" in message


@pytest.mark.parametrize(("num_experts", "named"), [(3, "experts.3.w1.weight"), (5, "experts.4.w1.weight")])
def test_another_number_of_experts_than_the_config_says_is_named(num_experts, named, change_words, change_tensors, tmp_path):
    def with_router_of_that_size(tensors):
        return {key: torch.zeros(num_experts, 32) if key.endswith("gate.weight") else value for key, value in tensors.items()}

    change_words(num_local_experts=num_experts)
    assert named in refused_import(change_tensors(with_router_of_that_size), tmp_path)


@pytest.mark.parametrize("num_experts", [3, 5])
def test_stacked_experts_of_another_number_than_the_config_says_are_named(num_experts, change_tensors, tmp_path):
    def stacked(tensors):
        new = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
        for layer in range(2):
            new[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.zeros(num_experts, 96, 32)
            new[f"model.layers.{layer}.mlp.experts.down_proj"] = torch.zeros(num_experts, 32, 48)
        return new

    message = refused_import(change_tensors(stacked), tmp_path)
    assert "model.layers.0.mlp.experts.gate_up_proj" in message and str(num_experts) in message


@pytest.mark.parametrize("words", [{"sliding_window": 128}, {"hidden_act": "gelu"},
                                   {"rope_scaling": {"type": "linear", "factor": 2.0}}])
def test_config_that_cannot_be_converted_stops_the_import(words, change_words, tmp_path):
    assert "can be converted" in refused_import(change_words(**words), tmp_path)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_truncated_safetensors_are_named(keep, copy, tmp_path):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    assert str(path) in refused_import(copy, tmp_path)


def test_shard_that_is_not_there_is_named(copy, tmp_path):
    names = load_file(copy / "model.safetensors")
    (copy / INDEX_NAME).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}))
    assert "model-00001-of-00001.safetensors" in refused_import(copy, tmp_path)


def test_tensor_that_only_the_index_knows_is_named(copy, tmp_path):
    names = [*load_file(copy / "model.safetensors"), "model.layers.0.self_attn.q_proj.bias"]
    path = copy / "model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if key != "lm_head.weight"}, path)
    (copy / INDEX_NAME).write_text(json.dumps({"weight_map": dict.fromkeys(names, path.name)}))
    message = refused_import(copy, tmp_path)
    assert str(path) in message and "lm_head.weight" in message


def test_folder_without_safetensors_is_refused(copy, tmp_path):
    (copy / "model.safetensors").unlink()
    message = refused_import(copy, tmp_path)
    assert str(copy) in message and INDEX_NAME in message


def test_existing_checkpoint_is_not_replaced(mixtral, tmp_path):
    import_hf(mixtral, tmp_path / "target")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "target").iterdir()}
    with pytest.raises(CheckpointError, match=str(tmp_path / "target")):
        import_hf(mixtral, tmp_path / "target")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "target").iterdir()} == before


def test_import_never_removes_a_folder_of_other_files(mixtral, tmp_path):
    """Such as the folder that holds all checkpoints, given by mistake for a new one in it."""
    precious = tmp_path / "target" / "step_0000100" / "weights"
    precious.parent.mkdir(parents=True)
    precious.write_text("a month of work")
    assert str(tmp_path / "target") in refused_import(mixtral, tmp_path)
    assert precious.read_text() == "a month of work"


def refused_export(source: Path, tmp_path: Path, tokenizer: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        export_hf(source, tmp_path / "target", tokenizer)
    assert not (tmp_path / "target").exists()
    return str(error.value)


def test_export_into_a_folder_with_files_is_refused_and_leaves_them(checkpoint, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target/notes").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        export_hf(checkpoint, tmp_path / "target", tokenizer=None)
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["notes"]


def test_export_into_an_empty_folder_works(checkpoint, tmp_path):
    (tmp_path / "target").mkdir()
    export_hf(checkpoint, tmp_path / "target", tokenizer=None)
    assert (tmp_path / "target/config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_unfinished_checkpoint_is_not_exported(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    (folder / STATE_NAME).unlink()
    assert "never finished" in refused_export(folder, tmp_path)


def test_checkpoint_of_other_tensors_than_its_state_says_is_refused_with_all_of_them(checkpoint, tmp_path, write_stacks):
    reader = CheckpointReader(checkpoint)
    tensors = {row.key: reader.read(row.key) for row in rows(load_state(checkpoint).model)}
    del tensors["decoder.layers.mlp.router.weight"]
    tensors["decoder.final_layernorm.weight"] = torch.zeros(31)
    tensors["output_layer.weight"] = torch.zeros(VOCABULARY - 1, 32)
    tensors["decoder.layers.mlp.shared_experts.linear_fc1.weight"] = torch.zeros(1)
    write_stacks(tmp_path / "checkpoint", tensors, load_state(checkpoint))
    message = refused_export(tmp_path / "checkpoint", tmp_path)
    for part in ("decoder.layers.mlp.router.weight is missing", "decoder.final_layernorm.weight has shape [31]",
                 "output_layer.weight has shape [299, 32]", "shared_experts.linear_fc1.weight belongs to no part"):
        assert part in message


def test_truncated_checkpoint_is_named(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    for path in folder.glob("*.distcp"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(folder) in refused_export(folder, tmp_path)


def test_truncated_checkpoint_starts_no_training(checkpoint, build, groups, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    for path in folder.glob("*.distcp"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    model, optimizer = build
    with pytest.raises(CheckpointError, match=str(folder)):
        load_weights(folder, [model], optimizer, groups)


def test_export_writes_the_tokenizer_and_its_special_ids(checkpoint, token_folder, tmp_path, write_stacks):
    small = tmp_path / "small.model"
    shutil.copyfile(token_folder / "tokenizer.model", small)
    model = load_state(checkpoint).model.model_copy(update={"vocab_size": 2000})
    reader = CheckpointReader(checkpoint)
    tensors = {row.key: reader.read(row.key) for row in rows(load_state(checkpoint).model)}
    for row in rows(load_state(checkpoint).model):
        if row.has_vocabulary:
            tensors[row.key] = torch.zeros(2048, 32)
    write_stacks(tmp_path / "checkpoint", tensors, load_state(checkpoint).model_copy(update={"model": model}))
    export_hf(tmp_path / "checkpoint", tmp_path / "hf", small)
    words = json.loads((tmp_path / "hf/config.json").read_text())
    assert (words["vocab_size"], words["bos_token_id"], words["eos_token_id"], words["pad_token_id"]) == (2000, 1, 2, 4)
    assert (tmp_path / "hf/tokenizer.model").read_bytes() == small.read_bytes()


def test_tokenizer_with_more_pieces_than_the_model_has_is_refused(checkpoint, token_folder, tmp_path):
    message = refused_export(checkpoint, tmp_path, token_folder / "tokenizer.model")
    assert "2000 pieces" in message and "300" in message


def test_tokenizer_of_another_vocabulary_is_refused_but_not_padding(token_folder):
    tokenizer, model = token_folder / "tokenizer.model", recipe_config("tiny").model
    for vocabulary, divisor in ((2000, 128), (2048, 128), (2016, 8)):  # the last is padded to another multiple than ours
        _check_tokenizer(tokenizer, model.model_copy(update={"vocab_size": vocabulary, "vocab_divisor": divisor}))
    with pytest.raises(CheckpointError, match="2000 pieces, the model's vocabulary 2100: not its tokenizer"):
        _check_tokenizer(tokenizer, model.model_copy(update={"vocab_size": 2100}))

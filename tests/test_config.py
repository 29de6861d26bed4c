"""A config is whole, frozen and right, or refused with every problem at once and what would work."""

import pytest
from pydantic import ValidationError

from megatron_jmed.config import load_config, problems, recipe_config, save_config
from megatron_jmed.errors import ConfigError


def refusal(*changes: str, what: str = "tiny") -> str:
    with pytest.raises(ConfigError) as error:
        load_config(what, list(changes))
    return str(error.value)


def test_unknown_recipe_is_refused_with_the_nearest_and_all():
    message = refusal(what="llmjp_8x13")
    assert "did you mean 'llmjp_8x13b'?" in message
    assert "llmjp_8x13b, llmjp_8x13b_fp8, llmjp_8x13b_sft, llmjp_8x1p8b, tiny, tiny_sft" in message


@pytest.mark.parametrize(("change", "place", "right"), [
    ("optim.peek_lr=1e-4", "optim.peek_lr", "peak_lr"),
    ("optm.peak_lr=1e-4", "optm", "optim"),
    ("model.mcor={}", "model.mcor", "mcore"),
    ('data.blend=[{name="a", pth="b", weight=1}]', "data.blend.0.pth", "path"),
])
def test_misspelt_word_is_refused_with_the_nearest(change, place, right):
    assert f"{place}: no such word, did you mean '{right}'?" in refusal(change)


@pytest.mark.parametrize("change", ["model.num_layers=four", "model.num_layers=2.5", "optim.peak_lr=nan", "parallel.tp=0",
                                    "budget.recompute=sometimes", "data.valid_ratio=0.5", "log.tensorboard=perhaps"])
def test_wrong_type_or_range_is_refused_with_word_and_value(change):
    word, value = change.split("=")
    message = refusal(change)
    assert word in message and value in message


@pytest.mark.parametrize("change", ["optim.peak_lr", "=3", "name.first=a"])
def test_what_is_no_change_is_refused(change):
    assert repr(change) in refusal(change)


def test_all_unknown_words_and_types_are_reported_at_once():
    message = refusal("optim.peek_lr=1", "model.num_layers=four", "budget.seq_len=8")
    assert "3 problems" in message
    assert all(word in message for word in ("optim.peek_lr", "model.num_layers", "budget.seq_len"))


def test_all_contradictions_are_reported_at_once():
    message = refusal("parallel.ep=3", "optim.min_lr=1", "budget.micro_batch_size=3", "budget.seq_length=1024")
    assert "4 problems" in message
    assert all(word in message for word in ("parallel.ep=3", "optim.min_lr=1", "micro_batch_size=3", "seq_length=1024"))


def test_missing_words_are_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"name": "x", "run_folder": "runs/x"}')
    message = refusal(what=str(path))
    assert all(f"{word}: must be given" in message for word in ("init", "model", "optim", "budget"))


@pytest.mark.parametrize(("name", "text", "said"), [
    ("none.toml", None, "no such file"),
    ("half.toml", 'recipe = "tiny', "half.toml"),
    ("half.json", '{"name": ', "half.json"),
    ("nameless.toml", "seed = 1", "must name a recipe"),
    ("wrong.toml", 'recipe = "tini"', "did you mean 'tiny'?"),
])
def test_unusable_experiment_file_is_refused(name, text, said, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    assert said in refusal(what=str(tmp_path / name))


def test_toml_experiment_changes_only_what_it_says(tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_text('recipe = "llmjp_8x13b"\nname = "warmer"\n[optim]\npeak_lr = 3e-4\n[model.mcore]\nmoe_router_fusion = true\n')
    config, base = load_config(str(path)), recipe_config("llmjp_8x13b")
    assert (config.name, config.optim.peak_lr, config.model.mcore) == ("warmer", 3e-4, {"moe_router_fusion": True})
    assert config.optim.min_lr == base.optim.min_lr
    changed = {"name": config.name, "optim": config.optim, "model": config.model}
    assert base.model_copy(update=changed) == config


def test_dotted_changes_win_over_the_experiment_file(tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_text('recipe = "tiny"\nseed = 1\n[optim]\npeak_lr = 1e-3\n')
    config = load_config(str(path), ["optim.peak_lr=2e-3", "seed=2"])
    assert (config.optim.peak_lr, config.seed) == (2e-3, 2)


def test_dotted_changes_take_numbers_strings_lists_and_tables():
    config = load_config("tiny", [
        "budget.total_tokens=1e6",
        "run_folder=runs/a folder=odd",
        'log.wandb_project="jmed"',
        "log.tensorboard=true",
        'data.blend=[{name="a", path="tokens/a", weight=2, lang="ja"}]',
        "model.mcore.moe_router_fusion=false",
    ])
    assert config.budget.total_tokens == 1_000_000
    assert config.run_folder == "runs/a folder=odd"
    assert config.log.wandb_project == "jmed" and config.log.tensorboard is True
    assert [(s.name, s.path, s.weight, s.lang) for s in config.data.blend] == [("a", "tokens/a", 2.0, "ja")]
    assert config.model.mcore == {"moe_router_fusion": False}


def test_saved_config_with_changes_loads_equal(tmp_path):
    config = load_config("llmjp_8x13b", ["optim.peak_lr=1.1e-5", "name=医療", "model.mcore.moe_router_fusion=true"])
    save_config(config, tmp_path / "config.json")
    assert load_config(str(tmp_path / "config.json")) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("section", [None, "model", "optim", "data", "budget", "watch"])
def test_config_is_frozen(section):
    config = recipe_config("tiny")
    target = getattr(config, section) if section else config
    word = next(iter(type(target).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(target, word, getattr(target, word))


# ---- what cannot work together


def test_ep_that_does_not_divide_the_experts_is_refused_with_those_that_do():
    assert "parallel.ep=3 does not divide model.num_experts=8; choose from [1, 2, 4, 8]" in refusal("parallel.ep=3")


def test_ep_1_needs_etp_equal_to_tp():
    changes = ["parallel.tp=2", "parallel.ep=1", "parallel.sequence_parallel=true"]
    assert "set parallel.etp=2 or parallel.ep of at least 2" in refusal(*changes)
    assert load_config("tiny", [*changes, "parallel.etp=2"]).parallel.etp == 2


def test_experts_with_tensor_parallelism_need_sequence_parallelism():
    assert "needs parallel.sequence_parallel=true" in refusal("parallel.tp=2")


def test_one_expert_a_token_is_refused():
    assert "teaches its router nothing; use at least 2" in refusal("model.router_topk=1")


DENSE = ("model.num_experts=0", "model.router_topk=0", "parallel.ep=1")


def test_dense_model_has_no_expert_words():
    message = refusal("model.num_experts=0", "parallel.etp=2")
    assert "3 problems" in message
    for word, value, right in (("model.router_topk", 2, 0), ("parallel.ep", 2, 1), ("parallel.etp", 2, 1)):
        assert f"{word}={value} without experts (model.num_experts=0); set {word}={right}" in message
    assert load_config("tiny", [*DENSE]).model.num_experts == 0


def test_experts_that_get_no_token_are_refused():
    assert "model.router_topk=0 sends no token to any of model.num_experts=8" in refusal("model.router_topk=0")


def test_tensor_parallelism_of_a_dense_model_needs_no_sequence_parallelism_but_divides_its_ffn():
    assert load_config("tiny", [*DENSE, "parallel.tp=2"]).parallel.tp == 2
    message = refusal(*DENSE, "parallel.tp=2", "model.ffn_hidden_size=127")
    assert "parallel.tp=2 does not divide model.ffn_hidden_size=127" in message and "problems" not in message


def test_a_watch_that_could_never_raise_an_alarm_is_refused():
    assert "watch.min_steps=64 is more than watch.window_steps=32" in refusal("watch.min_steps=64", "watch.window_steps=32")
    assert load_config("tiny", ["watch.min_steps=32", "watch.window_steps=32"]).watch.window_steps == 32


def test_an_action_that_an_alarm_does_not_have_is_refused():
    assert "watch.loss_spike='skip_step'" in refusal("watch.loss_spike=skip_step")  # the update came before the loss was judged


def test_fp8_without_transformer_engine_is_refused():
    message = refusal("precision.compute=fp8", "precision.backend=local", what="llmjp_8x13b")
    assert 'needs precision.backend="te" or "jmed"' in message


FP8 = ("precision.compute=fp8", "precision.backend=jmed")
FP8_TE = ("precision.compute=fp8", "precision.backend=te")


@pytest.mark.parametrize(("changes", "said"), [
    ((*FP8, "precision.fp8_recipe=delayed"), 'precision.fp8_recipe="delayed" is not built into precision.backend="jmed"'),
    ((*FP8, "model.num_layers=2"), "bf16_first_layers + bf16_last_layers = 2 leaves none of model.num_layers=2 in fp8"),
    ((*FP8, "precision.bf16_first_layers=4"), "= 5 leaves none of model.num_layers=4"),
    (FP8_TE, "Transformer Engine would compute weight gradients in fp8 all the same; set precision.fp8_wgrad=true"),
    ((*FP8_TE, "precision.fp8_recipe=delayed"), "bf16_first_layers=1, bf16_last_layers=1; set both to 0"),
])
def test_fp8_that_would_be_another_than_it_says_is_refused(changes, said):
    assert said in refusal(*changes)


@pytest.mark.parametrize("changes", [
    FP8, (*FP8, "precision.fp8_recipe=tensorwise", "precision.fp8_wgrad=true"), (*FP8_TE, "precision.fp8_wgrad=true"),
    (*FP8_TE, "precision.fp8_recipe=delayed", "precision.bf16_first_layers=0", "precision.bf16_last_layers=0"),
    ("precision.compute=bf16", "precision.fp8_recipe=delayed", "precision.backend=jmed", "model.num_layers=2"),
])
def test_fp8_that_is_what_it_says_is_taken(changes):
    assert load_config("tiny", list(changes)).precision.backend in ("jmed", "te")


def test_attention_within_documents_is_refused_where_transformer_engine_would_attend_across():
    message = refusal("data.attention=document", "precision.backend=te")
    assert 'data.attention="document" is built into precision.backend="local" and "jmed"' in message
    assert load_config("tiny", ["data.attention=document"]).data.attention == "document"


@pytest.mark.parametrize(("change", "said"), [
    ("parallel.tp=3", "parallel.tp=3 does not divide model.num_attention_heads=4; choose from [1, 2, 4]"),
    ("parallel.pp=3", "parallel.pp=3 does not divide model.num_layers=4; choose from [1, 2, 4]"),
    ("parallel.vpp=2", "parallel.vpp=2 needs parallel.pp of at least 2; set parallel.vpp=1"),
    ("parallel.cp=3", "budget.seq_length=128 is not a multiple of 2 x parallel.cp = 6; nearest that work: [126, 132]"),
    ("parallel.sequence_parallel=true", "needs parallel.tp of at least 2"),
    ("parallel.overlap_param_gather=true", "needs parallel.overlap_grad_reduce=true"),
    ("model.router_topk=9", "model.router_topk=9 is more than model.num_experts=8"),
    ("budget.total_tokens=100", "budget.total_tokens=100 is less than one step of 2048 tokens"),
    ("optim.warmup_tokens=245760", "leaves nothing of budget.total_tokens=245760"),
    ('data.blend=[{name="a", path="x", weight=1}, {name="a", path="y", weight=1}]', "'a' is used twice"),
    ("data.skip_steps=[[7, 3]]", "data.skip_steps: [7, 3] ends before it begins; write [3, 7]"),
    ("data.skip_steps=[0]", "data.skip_steps: 0 is not within the run's steps, 1 to 120"),
    ("data.skip_steps=[3, [120, 121]]", "data.skip_steps: [120, 121] is not within the run's steps, 1 to 120"),
    ("data.skip_steps=[[1, 60], [50, 120]]", "data.skip_steps leaves none of the 120 steps"),
    ('data.skip_steps=["a"]', "data.skip_steps.0"),
])
def test_contradiction_is_refused_with_its_numbers(change, said):
    assert said in refusal(change)


@pytest.mark.parametrize(("said", "ranges"), [
    ("[]", []), ("[5]", [(5, 5)]), ("[[3, 4], 5, [9, 12], 1, [10, 11]]", [(1, 1), (3, 5), (9, 12)]), ("[7, 7]", [(7, 7)])])
def test_skipped_steps_are_those_said_in_any_order(said, ranges, tmp_path):
    config = load_config("tiny", [f"data.skip_steps={said}"])
    data = config.data
    assert data.skipped_ranges() == ranges
    skipped = [step for step in range(1, 121) if data.is_skipped(step)]
    assert skipped == [step for first, last in ranges for step in range(first, last + 1)]
    for step in (0, 1, 4, 5, 10, 120):
        assert data.num_skipped(step) == sum(one <= step for one in skipped)
    save_config(config, tmp_path / "config.json")
    assert load_config(str(tmp_path / "config.json")) == config


def test_ranks_that_the_layout_does_not_divide_are_refused():
    config = load_config("llmjp_8x13b", ["parallel.tp=2", "parallel.sequence_parallel=true", "parallel.ep=4"])
    found = problems(config, world_size=60)
    assert [("parallel.tp x pp x cp = 8 does not divide the 60 ranks" in p, "use a multiple of 8" in p) for p in found[:1]] == [
        (True, True)]
    assert "parallel.ep x etp x pp = 16 does not divide the 60 ranks" in found[1] and len(found) == 2
    assert problems(config, world_size=64) == []


def test_global_batch_that_the_ranks_do_not_divide_is_refused_with_the_nearest():
    config = load_config("llmjp_8x13b", ["budget.global_batch_size=1000", "budget.micro_batch_size=2"])
    (found,) = problems(config, world_size=64)
    assert "budget.global_batch_size=1000 is not a multiple of budget.micro_batch_size x data-parallel ranks = 2 x 16" in found
    assert "nearest that work: [992, 1024]" in found
    for works in (992, 1024):
        again = load_config("llmjp_8x13b", [f"budget.global_batch_size={works}", "budget.micro_batch_size=2"])
        assert problems(again, world_size=64) == []


def test_context_and_sequence_parallelism_split_the_sequence_together():
    layout = ["parallel.cp=2", "parallel.tp=2", "parallel.sequence_parallel=true"]
    assert "not a multiple of 2 x parallel.cp x parallel.tp = 8" in refusal(*layout, "budget.seq_length=100")
    assert load_config("tiny", [*layout, "budget.seq_length=104"]).parallel.cp == 2
    assert load_config("tiny", ["parallel.cp=2", "budget.seq_length=100"]).parallel.cp == 2


def test_chunks_that_do_not_divide_the_layers_are_refused_with_those_that_do():
    message = refusal("parallel.pp=2", "parallel.vpp=3")
    assert "parallel.pp x vpp = 2 x 3 does not divide model.num_layers=4; choose parallel.vpp from [1, 2]" in message


def test_interleaving_needs_micro_batches_in_multiples_of_the_stages():
    layout = ["parallel.ep=1", "parallel.pp=2", "parallel.vpp=2", "budget.micro_batch_size=2"]
    (found,) = problems(load_config("tiny", [*layout, "budget.global_batch_size=6"]), world_size=2)
    assert "multiples of parallel.pp=2, and there are 3; budget.global_batch_size that work: [4, 8]" in found
    for works in (4, 8):
        assert problems(load_config("tiny", [*layout, f"budget.global_batch_size={works}"]), world_size=2) == []


# ---- what follows from the words


@pytest.mark.parametrize(("tp", "rows"), [(1, 99_584), (2, 99_584), (4, 99_840), (8, 100_352)])
def test_vocabulary_of_llmjp_is_padded_to_128_times_tp(tp, rows):
    changes = [f"parallel.tp={tp}", f"parallel.sequence_parallel={str(tp > 1).lower()}"]
    assert load_config("llmjp_8x13b", changes).padded_vocab_size == rows


def test_79_6_billion_tokens_are_18978_steps():
    config = recipe_config("llmjp_8x13b")
    assert (config.tokens_per_step, config.num_steps) == (4_194_304, 18_978)
    assert config.num_steps * config.tokens_per_step <= config.budget.total_tokens

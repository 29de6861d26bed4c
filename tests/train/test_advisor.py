"""The search finds what trying everything finds, fits what it recommends, and says with numbers why the rest is not better."""

import itertools
from dataclasses import replace

import pytest

from megatron_jmed.config import load_config, problems
from megatron_jmed.errors import ConfigError
from megatron_jmed.train import advisor
from megatron_jmed.train.advisor import Layout, advise, layout_of
from megatron_jmed.train.cost import step_time
from megatron_jmed.train.estimate import GIB, worst_stage
from megatron_jmed.train.machine import H100

SMALL = replace(H100, gpu_gib=0.015, reserve_gib=0.0)


@pytest.fixture(scope="module")
def large():
    """8x13B on 64 GPUs without context parallelism, whatever the trainer has learned about it."""
    config = load_config("llmjp_8x13b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(advisor, "problems", lambda config, world: problems(config, world)
                      or ["parallel.cp: not in this test"] * (config.parallel.cp > 1))
        return config, advise(config, 64)


def test_finds_what_trying_everything_finds():
    config = load_config("tiny", ["budget.global_batch_size=32"])
    tried = []
    for words in itertools.product((1, 2, 4, 8), (1, 2, 4), (1, 2, 4), (1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8),
                                   advisor.MICRO_BATCHES, advisor.RECOMPUTE):
        layout = Layout(*words)
        changed = layout.applied(config)
        if problems(changed, 8) or (layout.vpp > 1 and (layout.pp == 1 or 4 // layout.pp % layout.vpp)):
            continue
        if worst_stage(changed, 8, SMALL).total <= 0.015 * GIB:
            tried.append(step_time(changed, 8, SMALL).total)
    advice = advise(config, 8, SMALL)
    assert 0 < advice.num_fitting < advice.num_legal  # the limit is one that decides
    assert advice.best[0].time.total == pytest.approx(min(tried), abs=1e-6)


def test_what_is_recommended_is_allowed_and_fits_and_is_ranked(large):
    _, advice = large
    for candidate in advice.best:
        changed = load_config("llmjp_8x13b", candidate.layout.changes())
        assert problems(changed, 64) == []
        assert worst_stage(changed, 64).total <= H100.gpu_gib * GIB
        assert layout_of(changed) == candidate.layout
    times = [candidate.time.total for candidate in advice.best]
    assert times == sorted(times) and len(times) == 5


def test_no_neighbour_is_better_and_each_says_why(large):
    _, advice = large
    assert {neighbour.change.split()[0] for neighbour in advice.neighbours} == {
        "tp", "pp", "vpp", "ep", "etp", "cp", "micro_batch_size", "recompute"}
    for neighbour in advice.neighbours:
        assert neighbour.verdict.startswith(("not allowed: ", "does not fit: ", "slower: "))
    verdicts = {neighbour.change: neighbour.verdict for neighbour in advice.neighbours}
    assert "of 79.6 GiB (activations" in verdicts["tp 1"]
    assert verdicts["recompute selective"].startswith("slower: ") and "(recompute +" in verdicts["recompute selective"]


def test_golden_advice_for_8x13b_on_64_gpus(large):
    _, advice = large
    assert advice.best[0].layout == Layout(2, 2, 2, 8, 1, 1, 1, "none")
    assert advice.best[0].gib == pytest.approx(76.0, abs=0.1)
    assert advice.best[0].time.total == pytest.approx(18.77, abs=0.02)


def test_less_memory_is_never_faster():
    config = load_config("llmjp_8x13b")
    some, little = (advise(config, 64, replace(H100, gpu_gib=gib)) for gib in (60.0, 40.0))
    assert little.num_fitting < some.num_fitting
    assert little.best[0].gib <= 40.0 < some.best[0].gib <= 60.0
    assert little.best[0].time.total > some.best[0].time.total


def test_a_model_that_fits_nowhere_is_said_so_with_the_number():
    with pytest.raises(ConfigError, match=r"does not fit 8 GPUs of 79.6 GiB: of \d+ layouts the smallest needs 157\.\d GiB a rank "
                                          r"\(optimizer 102\.2.*parallel.tp=8 parallel.pp=1.*take more GPUs"):
        advise(load_config("llmjp_8x13b"), 8)


def test_a_world_that_nothing_divides_is_said_so():
    with pytest.raises(ConfigError, match="no layout is allowed; as it stands: .*pp = 32 does not divide the 7 ranks"):
        advise(load_config("llmjp_8x13b"), 7)


def test_what_the_trainer_refuses_is_not_searched_and_what_it_learns_is(monkeypatch):
    config = load_config("llmjp_8x1p8b", ["budget.seq_length=4096"])

    def all_cp(allowed):
        monkeypatch.setattr(advisor, "problems", lambda config, world: [
            problem for problem in problems(config.model_copy(update={"parallel": config.parallel.model_copy(update={
                "cp": 1 if allowed else config.parallel.cp})}), world) if allowed or "parallel.cp" not in problem]
            + (["parallel.cp: refused"] if not allowed and config.parallel.cp > 1 else []))
        return {layout.cp for layout in advisor.legal_layouts(config, 8, H100)}

    assert all_cp(allowed=False) == {1}
    assert all_cp(allowed=True) == {1, 2, 4, 8}


def test_a_dense_model_gets_no_expert_words():
    config = load_config("llmjp_8x13b", ["model.num_experts=0", "model.router_topk=0", "parallel.ep=1"])
    best = advise(config, 64).best[0].layout
    assert (best.ep, best.etp) == (1, 1)

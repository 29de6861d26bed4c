"""The printed plan: its numbers, what does not fit, and how it is refused; the tool as a user starts it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_jmed.config import load_config
from megatron_jmed.errors import ConfigError
from megatron_jmed.train.estimate import GIB, layers_in_flight, stage_memory, worst_stage
from megatron_jmed.train.machine import BALANCED, H100
from megatron_jmed.train.plan import Limits, num_segments, plan_lines, run_lines

TOOL = Path(__file__).parents[2] / "tools" / "plan_run.py"


def plan(worlds, *changes, machine=H100, limits=Limits()):
    return "\n".join(plan_lines(load_config("llmjp_8x13b", list(changes)), worlds, machine, limits))


def test_memory_has_every_recompute_choice_and_says_by_how_much_it_does_not_fit():
    lines = plan([64]).splitlines()
    none, selective, full = (next(line for line in lines if f"64  {choice}" in line) for choice in ("none", "selective*", "full"))
    assert none.endswith("83.30   DOES NOT FIT 79.6: 3.7 too much")
    assert selective.endswith("72.20") and full.endswith("40.07")


def test_parts_add_up_to_the_total():
    memory = stage_memory(load_config("llmjp_8x13b"), 64, 3)
    assert memory.reserve == pytest.approx(3 * GIB + 0.05 * memory.peak)
    assert memory.total == pytest.approx(memory.weights + memory.gradients + memory.optimizer + memory.activations + memory.reserve
                                         + max(memory.head, memory.rebuilt + max(memory.dispatcher, memory.layer_gradients)))


@pytest.mark.parametrize(("compute", "bytes_a_parameter"), [("fp32", 4 + 4 + 8), ("bf16", 2 + 4 + 12)])
def test_state_of_one_rank_is_so_many_bytes_a_parameter(compute, bytes_a_parameter):
    memory = stage_memory(load_config("tiny", ["parallel.ep=1", f"precision.compute={compute}"]), 1, 0)
    assert memory.state == bytes_a_parameter * memory.params_on_rank


def test_fp8_keeps_each_matrix_twice_more():
    bf16, fp8 = (stage_memory(load_config(recipe), 64, 1) for recipe in ("llmjp_8x13b", "llmjp_8x13b_fp8"))
    assert fp8.weights - bf16.weights == 2 * 10 * (4 * 5120 * 5120 + 3 * 5120 * 13_824)


def test_fp8_of_our_own_without_its_cache_is_planned_and_built_like_bf16():
    from megatron_jmed.train.dry_run import built_stage_parameters

    changes = ["precision.backend=jmed", "model.num_layers=4", "kernels.fp8_weight_cache=false"]
    bf16, fp8 = (load_config("tiny", [*changes, f"precision.compute={compute}"]) for compute in ("bf16", "fp8"))
    assert stage_memory(fp8, 2, 0) == stage_memory(bf16, 2, 0)
    assert built_stage_parameters(fp8, 2) == [stage_memory(fp8, 2, 0).params_on_rank]


@pytest.mark.parametrize(("pp", "vpp", "stage", "layers"), [
    (1, 1, 0, 40), (4, 1, 0, 40), (4, 1, 3, 10), (2, 2, 0, 50), (4, 2, 0, 55), (4, 2, 3, 25),
])
def test_layers_in_flight_follow_the_schedule(pp, vpp, stage, layers):
    assert layers_in_flight(load_config("llmjp_8x13b", [f"parallel.pp={pp}", f"parallel.vpp={vpp}"]), 64, stage) == layers


def test_no_more_is_in_flight_than_there_is():
    config = load_config("llmjp_8x13b", ["budget.global_batch_size=32"])  # two micro-batches on each of 16 copies
    assert layers_in_flight(config, 64, 0) == 20


def test_the_fullest_stage_is_the_first_or_the_last():
    for changes in ((), ("budget.recompute=full",), ("budget.recompute=full", "model.vocab_size=999999")):
        config = load_config("llmjp_8x13b", list(changes))
        stages = [stage_memory(config, 64, stage).total for stage in range(4)]
        assert worst_stage(config, 64).total == max(stages)


def test_time_at_the_stated_efficiency_is_worked_out_by_hand():
    line = next(line for line in plan([64], limits=Limits(efficiency=0.45)).splitlines() if "stated  " in line)
    step = 135.2e9 * 1024 * 4096 / (64 * 989e12 * 0.45)
    assert f"{step:.2f}" in line and " 445 " in line
    hours = 135.2e9 * 79.6e9 / (989e12 * 0.45) / 3600
    assert float(line.split()[-1].replace(",", "")) == pytest.approx(hours, rel=0.001)


def test_segments_leave_time_for_starting_and_saving():
    assert num_segments(23.5 * 3600, 24, H100) == 1
    assert num_segments(23.6 * 3600, 24, H100) == 2
    assert num_segments(1, 24, H100) == 1
    assert " segments" in plan([64], limits=Limits(hours_limit=12)) and " segments" not in plan([64])


@pytest.mark.parametrize(("quota", "kept", "said"), [
    (50, 3, "the quota holds all 38: budget.keep_checkpoints=38 loses none"),
    (5, 3, "3 kept and one being written: 4.097 TB, of a quota of 5 TB"),
    (4, 3, "DOES NOT FIT, 0.09717 TB too much; set budget.keep_checkpoints=2"),
    (2, 3, "two checkpoints need 2.049 TB"),
    (100, 100, "100 kept and one being written: 38.92 TB, of a quota of 100 TB"),
])
def test_checkpoints_are_held_against_the_quota(quota, kept, said):
    config = load_config("llmjp_8x13b", [f"budget.keep_checkpoints={kept}"])
    printed = "\n".join(run_lines(config, Limits(quota_tb=quota)))
    assert said in printed
    assert ("DOES NOT FIT" in printed) == (quota < 4.097)


def test_worlds_that_cannot_be_are_named_and_the_others_planned():
    printed = plan([64, 24])
    assert "cannot run  on 24 ranks: parallel.ep x etp x pp = 32 does not divide the 24 ranks" in printed
    assert "     64  none" in printed and "     24  none" not in printed


def test_worlds_that_cannot_be_at_all_are_refused():
    with pytest.raises(ConfigError, match="on 24 or 7 ranks: 3 problems"):
        plan([24, 7])


def test_balanced_machine_reserves_nothing():
    memory = stage_memory(load_config("llmjp_8x13b"), 64, 0, BALANCED)
    assert memory.reserve == 0 and memory.total < stage_memory(load_config("llmjp_8x13b"), 64, 0, replace(H100)).total


def run_tool(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_tool_plans_and_advises_without_torch_megatron_or_the_corpus_libraries():
    program = f"""
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "megatron", "numpy", "orjson"):
            raise ModuleNotFoundError(f"{{name}} is not on a login node", name=name)
sys.meta_path.insert(0, Refuse())
for arguments in (["--world", "8", "16", "--quota-tb", "1", "--hours-limit", "24"], ["--advise", "--world", "8"]):
    sys.argv = ["plan_run.py", "llmjp_8x1p8b", *arguments]
    try:
        runpy.run_path({str(TOOL)!r}, run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, end.code
assert "torch" not in sys.modules
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert "token sets on disk were not looked at (numpy is not installed here)" in answer.stdout
    assert "changes     parallel.tp=" in answer.stdout and "llmjp_8x1p8b as it is" in answer.stdout


@pytest.mark.parametrize(("arguments", "said"), [
    (("llmjp_8x13", "--world", 64), "did you mean 'llmjp_8x13b'?"),
    (("llmjp_8x13b", "--world", 0), "--world: 0 is not a number of GPUs"),
    (("llmjp_8x13b", "--world", 64, "--efficiency", 45), "--efficiency=45: a share of the peak"),
    (("llmjp_8x13b", "--world", 64, "--hours-limit", 0.5), "starting and saving alone take 0.5 h"),
    (("llmjp_8x13b", "--world", 64, "--quota-tb", 0, "--imbalance", 0.5), "--quota-tb=0.0: must be more than 0"),
    (("llmjp_8x13b", "--world", 64, "--gpu-gib", "nan"), "--gpu-gib=nan: must be more than 0"),
    (("llmjp_8x13b", "--world", 63), "does not divide the 63 ranks"),
    (("llmjp_8x13b", "--advise", "--world", 8), "the smallest needs 157.0 GiB a rank"),
])
def test_mistakes_are_said_in_one_line(arguments, said):
    answer = run_tool(*arguments)
    assert answer.returncode == 2 and said in answer.stderr and "Traceback" not in answer.stderr
    assert answer.stderr.startswith("error: ") and answer.stdout == ""

"""Does the classifier say why, where, and whether it is worth another attempt?

The texts in `failures/` come from real torchrun jobs that really failed so (failures/make.sh); lines.tsv holds what GPUs,
networks and schedulers print, in the shortest form that they use.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from launch.failure import classify

TEXTS = Path(__file__).parent / "failures"

# text -> (kind, does it come back, rank)
REAL = {
    "memory": ("host memory", True, "1"),
    "killed": ("host memory", True, "1"),
    "full_disk": ("full disk", False, "1"),
    "program": ("program", False, "1"),
    "segfault": ("crash", False, "1"),
    "user_error": ("user error", False, "1"),
    "peer_gone": ("network", True, "0"),
    "unreachable": ("network", True, ""),
}

LINES = [line.split("\t") for line in (TEXTS / "lines.tsv").read_text().splitlines()[1:]]


@pytest.mark.parametrize("name", REAL)
def test_real_failures(name: str):
    kind, comes_back, rank = REAL[name]
    failure = classify((TEXTS / f"{name}.txt").read_text(), code=1)
    assert (failure.kind, failure.comes_back, failure.rank) == (kind, comes_back, rank), failure


@pytest.mark.parametrize(("kind", "comes_back", "rank", "line"), LINES, ids=[f"{line[0]}-{n}" for n, line in enumerate(LINES)])
def test_what_is_printed(kind: str, comes_back: str, rank: str, line: str):
    # the step before, and what all other ranks say when one has gone
    others = "[rank6]: torch.distributed.DistBackendError: Connection closed by peer [10.0.0.1]:9"
    text = f"{line}\n{others}" if kind == "network" else f"{others}\n{line}\n{others}"
    failure = classify(text, code=1)
    assert (failure.kind, failure.comes_back) == (kind, comes_back == "yes"), failure
    assert failure.rank == rank


def test_one_line_names_host_rank_and_phase(tmp_path: Path):
    (tmp_path / "heartbeats").mkdir()
    (tmp_path / "heartbeats/rank_0005.json").write_text(json.dumps({"host": "node002.cluster", "step": 40, "phase": "train"}))
    log = tmp_path / "job.out"
    log.write_text("[rank1]: KeyError: of an earlier segment\n")
    begin = log.stat().st_size
    log.write_text(log.read_text() + "\n".join([
        '[rank5]:   File "site-packages/megatron/core/pipeline_parallel/schedules.py", line 450, in backward_step',
        '[rank5]:   File "site-packages/torch/autograd/__init__.py", line 340, in backward', LINES[0][-1]]))
    command = [sys.executable, "-m", "launch.failure", str(tmp_path), "--code", "1", "--log", str(log), "--from", str(begin)]
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert said.returncode == 1 and said.stderr == ""
    line, host = said.stdout.splitlines()
    assert line.startswith("GPU memory: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
    assert "(on node002 rank 5 in the backward pass after step 40); what to do: more budget.recompute" in line
    assert host == "host="  # the node is not at fault
    assert (tmp_path / "failures.txt").read_text().endswith(f" {line}\n")


def test_the_host_that_the_scheduler_names_is_avoided():
    failure = classify("srun: error: Node failure on node004\nsrun: error: node001: task 0: Killed", 1)
    assert (failure.kind, failure.host) == ("hardware", "node004")


@pytest.mark.parametrize(("code", "comes_back"), [(137, True), (143, True), (1, False), (2, False)])
def test_without_any_text_the_exit_code_decides(code: int, comes_back: bool):
    failure = classify("step 3\n", code)
    assert failure.kind == "unknown" and failure.comes_back == comes_back and str(code) in str(failure)

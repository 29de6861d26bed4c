"""A way to train several runs in one group of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def train_runs(token_folder):
    """train_runs(num_ranks, [[recipe, change, ...], ...]): train them one after the other; fails with their output."""

    def train(num_ranks: int, runs: list[list[str]]) -> str:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"] if num_ranks > 1 else []
        command = [sys.executable, *launcher, str(Path(__file__).with_name("train_runs.py")), json.dumps(runs)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(command, cwd=token_folder, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    return train


@pytest.fixture(scope="session")
def step_records(token_folder):
    """step_records(run): the training lines of its metrics.jsonl by step."""

    def read(run: str) -> dict[int, dict]:
        lines = (token_folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
        return {record["step"]: record for record in map(json.loads, lines) if "loss" in record}

    return read

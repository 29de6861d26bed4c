"""Short runs of the tiny recipe in this process, alone, started where the token sets of `token_folder` lie."""

import json
from pathlib import Path

from megatron_jmed.config import load_config
from megatron_jmed.parallel import World
from megatron_jmed.run_folder import RunFolder
from megatron_jmed.train.loop import train
from megatron_jmed.train.preflight import check_before_start

TINY = ["tiny", "parallel.ep=1", "model.num_layers=2", "budget.eval_every_tokens=0", "optim.warmup_tokens=0",
        "optim.schedule=constant"]
TOKENS_A_STEP = 2048


def tiny_run(folder: Path, steps: int, *changes: str) -> RunFolder:
    """Train until `steps` are done; the loss stays at one rate, so that a longer horizon changes no step."""
    config = load_config(TINY[0], [*TINY[1:], f"run_folder={folder}", f"budget.total_tokens={steps * TOKENS_A_STEP}", *changes])
    token_sets, checkpoint, _ = check_before_start(config, 1)
    train(config, World(0, 1, 0), token_sets, checkpoint)
    return RunFolder(folder)


def losses(run_folder: RunFolder) -> list[float]:
    """The training loss of every step in metrics.jsonl."""
    lines = map(json.loads, run_folder.metrics.read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]

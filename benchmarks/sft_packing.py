"""What does packing conversations gain, how full are the rows, and is what is learnt the same?

`python benchmarks/sft_packing.py MEDQUAD LLMJP_MODEL FOLDER`: MEDQUAD is MedQuAD as JSON lines whose text is a question, a blank
line and an answer; FOLDER holds the tokenizer of examples/00_tiny.sh as tokenizer.model, and gets everything that is made. Blocks
of steps on packed and on padded rows take turns on one tiny model, so that both see the same machine.
"""

import gzip
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from megatron_jmed.config import RunConfig, load_config
from megatron_jmed.corpus.chat_tokens import ChatSettings, tokenize_chat
from megatron_jmed.corpus.indexed import read_index
from megatron_jmed.data.packing import packing
from megatron_jmed.data.pretrain import batches, build_data
from megatron_jmed.data.sources import load_token_sets
from megatron_jmed.model.build import build_data_parallel_model
from megatron_jmed.parallel import World, device, start_groups, stop_groups
from megatron_jmed.train import step as step_module
from megatron_jmed.train.optimizer import build_optimizer
from megatron_jmed.train.step import Stepper

BLOCKS, STEPS_A_BLOCK, LENGTH = 6, 2, 1024


def main() -> None:
    medquad, llmjp, folder = map(Path, sys.argv[1:])
    with gzip.open(medquad, "rt", encoding="utf-8") as lines, open(folder / "chat.jsonl", "w", encoding="utf-8") as chat:
        for line in lines:
            question, _, answer = json.loads(line)["text"].partition("\n\n")
            if question.strip() and answer.strip():
                chat.write(json.dumps({"instruction": question, "output": answer}) + "\n")
    fill(folder, llmjp)
    groups = start_groups(load_config("tiny_sft", ["parallel.ep=1"]).parallel, World(0, 1, 0), 1234)
    speed(folder, groups)
    parity(folder, groups)
    stop_groups()


def fill(folder: Path, llmjp: Path) -> None:
    begun = time.perf_counter()
    manifest = tokenize_chat(folder / "chat.jsonl", folder / "llmjp", ChatSettings(tokenizer=llmjp, overwrite=True))
    seconds = time.perf_counter() - begun
    lengths = np.array(read_index(folder / "llmjp/tokens.idx").lengths, dtype=np.int64)
    print(f"tokenised: {len(lengths):,} conversations, {manifest.counts.tokens:,} tokens in {seconds:.1f} s; tokens of one: "
          f"median {np.median(lengths):.0f}, mean {lengths.mean():.0f}, longest {lengths.max():,}")
    for length in (1024, 2048, 4096, 8192):
        kept = lengths[lengths <= length + 1]
        begun = time.perf_counter()
        rows = packing(kept, length).num_rows
        seconds = time.perf_counter() - begun
        filled = (kept - 1).sum() / length
        print(f"S={length}: {len(lengths) - len(kept):,} too long; {rows:,} packed rows filled to {filled / rows:.2%}, padded "
              f"{filled / len(kept):.2%}; packed in {seconds:.2f} s")


def run_config(folder: Path, pack: bool, rows: int, chat: str, *changes: str) -> RunConfig:
    return load_config("tiny_sft", [
        "parallel.ep=1", f'run_folder="{folder / "run"}"', f"budget.seq_length={LENGTH}", f"budget.global_batch_size={rows}",
        f"model.max_position_embeddings={LENGTH}", f"budget.total_tokens={rows * LENGTH * BLOCKS * STEPS_A_BLOCK * 2}",
        "model.aux_loss_coeff=0", "optim.warmup_tokens=0", f"data.pack={str(pack).lower()}",
        f'data.blend=[{{name="chat", path="{folder / chat}", weight=1}}]', *changes])


def stepper_of(config: RunConfig, groups, model, optimizer):
    data = build_data(config, load_token_sets(config))
    found = batches(config, data.train, groups, 0, config.num_steps, device())
    return Stepper(config, groups, model, optimizer, ("chat",)), found


def speed(folder: Path, groups) -> None:
    tokenize_chat(folder / "chat.jsonl", folder / "tiny", ChatSettings(
        tokenizer=folder / "tokenizer.model", max_tokens=LENGTH + 1, too_long="drop", overwrite=True))
    config = run_config(folder, True, 4, "tiny")
    model = build_data_parallel_model(config, groups)
    optimizer = build_optimizer(config, model, groups)
    kinds, seconds, tokens = {}, {"packed": [], "padded": []}, {"packed": [], "padded": []}
    for name in seconds:
        kinds[name] = stepper_of(run_config(folder, name == "packed", 4, "tiny"), groups, model, optimizer)
    for block in range(BLOCKS):
        for name, (stepper, found) in kinds.items():
            for _ in range(STEPS_A_BLOCK):
                of_step = [next(found) for _ in range(2)]
                begun = time.perf_counter()
                stepper.train(iter(of_step), 1e-4, False)
                if block:
                    seconds[name].append(time.perf_counter() - begun)
                    tokens[name].append(sum(int(batch.tokens_BS.numel() - padding(batch)) for batch in of_step))
    for name in seconds:
        rate = sum(tokens[name]) / sum(seconds[name])
        print(f"{name}: {statistics.median(seconds[name]):.3f} s a step of 4 rows of {LENGTH}, filled to "
              f"{sum(tokens[name]) / len(tokens[name]) / 4 / LENGTH:.1%}: {rate:,.0f} tokens of conversations a second")
    ratio = (sum(tokens["packed"]) / sum(seconds["packed"])) / (sum(tokens["padded"]) / sum(seconds["padded"]))
    print(f"packed / padded: {ratio:.2f}")


def padding(batch) -> int:
    """Tokens of the last document of each row where it is all end marks, as what is left over is."""
    count = 0
    for tokens_S, document_S in zip(batch.tokens_BS, batch.document_BS, strict=True):
        last_S = document_S == document_S.max()
        count += int(last_S.sum()) if bool((tokens_S[last_S] == 2).all()) else 0
    return count


def parity(folder: Path, groups) -> None:
    """The gradient of one step over 48 conversations, packed and one a row; and what averaging by micro-batch would give."""
    lines = (folder / "chat.jsonl").read_text(encoding="utf-8").splitlines()[: 48 * 3 : 3]
    (folder / "few.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = tokenize_chat(folder / "few.jsonl", folder / "few", ChatSettings(
        tokenizer=folder / "tokenizer.model", max_tokens=LENGTH + 1, too_long="drop", overwrite=True))
    num = made.counts.documents
    rows = packing(np.array(read_index(folder / "few/tokens.idx").lengths, dtype=np.int64), LENGTH).num_rows
    one = "budget.micro_batch_size=1"
    for kind, words in (("with experts", ()), ("dense", ("model.num_experts=0", "model.router_topk=0"))):
        model = build_data_parallel_model(run_config(folder, True, rows, "few", one, *words), groups)
        optimizer = build_optimizer(run_config(folder, True, rows, "few", one, *words), model, groups)
        gradients = {}
        for name, pack, size in (("packed", True, rows), ("padded", False, num)):
            for rule in ("step", "micro-batch"):
                stepper, found = stepper_of(run_config(folder, pack, size, "few", one, *words), groups, model, optimizer)
                of_step = [next(found) for _ in range(size)]
                if rule == "micro-batch":
                    of_step = [step_module.Batch(**{**vars(batch), "mean_loss_weight": None}) for batch in of_step]
                numbers = stepper.train(iter(of_step), 0.0, False)
                parts = [parameter.main_grad.flatten() for parameter in model[0].parameters()]
                gradients[name, rule] = torch.cat(parts).double().clone(), numbers.loss
        loss = gradients["packed", "step"][1]
        for rule in ("step", "micro-batch"):
            (ours, our_loss), (theirs, _) = gradients["padded", rule], gradients["packed", rule]
            print(f"{kind}, {num} conversations in {rows} rows, averaged by {rule}: gradients packed and padded differ by "
                  f"{float((ours - theirs).norm() / theirs.norm()):.1e} of their norm, losses by {abs(our_loss / loss - 1):.1e}")


if __name__ == "__main__":
    main()

"""Do transformers and our model give the same logits? `python benchmarks/logits_parity.py RUN HF_FOLDER` on one rank.

Tokens are drawn at random over the whole vocabulary; fp32 on both sides. Prints the largest absolute difference.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from megatron_jmed.config import load_config
from megatron_jmed.errors import run_tool
from megatron_jmed.run_folder import RunFolder
from megatron_jmed.train.logits import checkpoint_logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("hf_folder", type=Path)
    arguments = parser.parse_args()
    folder = RunFolder(arguments.run)
    config = load_config(str(folder.config))
    torch.manual_seed(0)
    tokens_BS = torch.randint(config.model.vocab_size, (2, config.budget.seq_length))
    ours_BSV = checkpoint_logits(folder.latest_checkpoint(), tokens_BS, "fp32")
    theirs = AutoModelForCausalLM.from_pretrained(arguments.hf_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs_BSV = theirs(tokens_BS).logits
    difference = (ours_BSV - theirs_BSV).abs().max().item()
    same = (ours_BSV.argmax(-1) == theirs_BSV.argmax(-1)).all().item()
    print(f"{tokens_BS.numel()} tokens, {config.model.vocab_size} logits each: largest difference {difference:.2e}, "
          f"largest logit {theirs_BSV.abs().max().item():.2f}, same argmax everywhere: {same}")


if __name__ == "__main__":
    run_tool(main)

"""Are two folders the same model? Hugging Face, checkpoint, run or legacy folders in any pairing.

Compares every tensor by checksum and, with --logits, what both compute for a text: transformers on the Hugging Face side,
our model on the checkpoint's. The last line is the verdict; exit code 0: the same, 1: not the same, 2: cannot be compared.
"""

import argparse
import sys
from pathlib import Path

import torch

from megatron_jmed.convert.source import Weights, open_weights
from megatron_jmed.convert.stored import prefer_huge_pages
from megatron_jmed.convert.tokenizer import leaves_out_bos, token_ids
from megatron_jmed.convert.torch_dist import CheckpointWeights
from megatron_jmed.convert.verify import LogitsComparison, compare, compare_logits
from megatron_jmed.convert.weights import DTYPES, num_workers
from megatron_jmed.errors import CheckpointError, run_tool

# How far logits may lie apart, as a part of the largest: rounding of 24 and 8 bits over some tens of layers. In bf16 the
# median token decides, since a rounding can send a token to another expert.
TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2}


def main() -> None:
    prefer_huge_pages()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path, metavar="A")
    parser.add_argument("b", type=Path, metavar="B")
    parser.add_argument("--logits", type=Path, metavar="TEXT", help="also compare logits on this text file")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="SentencePiece model; default: tokenizer.model in A or B")
    parser.add_argument("--tokens", type=int, default=512, metavar="N", help="read so many of the text's tokens; default 512")
    parser.add_argument("--compute", choices=tuple(DTYPES), default="fp32", help="number format of the logits' computation")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="pieces of the tokenizer, for legacy folders")
    parser.add_argument("--workers", type=int, metavar="N", help="threads; default: cores, while memory stays below 12 GiB")
    arguments = parser.parse_args()
    a, b = (open_weights(folder, arguments.vocab_size) for folder in (arguments.a, arguments.b))
    comparison = compare(a, b, num_workers(arguments.workers, a.model, a.dtype))
    *lines, verdict = comparison.lines()
    print(*lines, sep="\n")
    if not arguments.logits:
        end(verdict, comparison.is_equal)
    problems = [] if comparison.is_equal else [verdict.removeprefix("DIFFERENT: ")]
    problems += [f"{w.name}: its tokenizer puts no <s> in front" for w in (a, b) if leaves_out_bos(w.hf_files)]
    logits = logits_of_both(a, b, arguments)
    print(*logits.lines(), sep="\n")
    apart, whose = (logits.median_relative, " for the median token") if arguments.compute == "bf16" else (
        logits.largest_relative, "")
    if not apart <= TOLERANCES[arguments.compute]:
        problems.append(f"logits differ by {apart:.2g} of the largest{whose}, more than {TOLERANCES[arguments.compute]:g}"
                        + (", though all tensors are equal: routing, rotary embedding or norms differ"
                           if comparison.is_equal else ""))
    if problems:
        end("DIFFERENT: " + "; ".join(problems), False)
    end(f"{verdict}; logits agree within {apart:.2g} of the largest{whose}", True)


def end(verdict: str, is_equal: bool) -> None:
    print(verdict)
    sys.exit(0 if is_equal else 1)


def logits_of_both(a: Weights, b: Weights, arguments: argparse.Namespace) -> LogitsComparison:
    found = (folder / "tokenizer.model" for folder in (a.hf_files, b.hf_files) if folder)
    tokenizer = arguments.tokenizer or next((path for path in found if path.exists()), None)
    if tokenizer is None:
        raise CheckpointError("neither folder has a tokenizer.model; name one with --tokenizer")
    if arguments.tokens < 2:
        raise CheckpointError(f"--tokens {arguments.tokens}: read at least 2, <s> and one of the text")
    ids = token_ids(tokenizer, arguments.logits)[: min(arguments.tokens, a.model.max_position_embeddings)]
    if max(ids) >= a.model.vocab_size:
        raise CheckpointError(f"{tokenizer}: gives token {max(ids)}, the model has {a.model.vocab_size}: not its tokenizer")
    tokens_BS = torch.tensor([ids])
    return compare_logits(*(logits_of(weights, tokens_BS, arguments.compute) for weights in (a, b)), tokens_BS)


def logits_of(weights: Weights, tokens_BS: torch.Tensor, compute: str) -> torch.Tensor:
    """[1, S, V]: of a checkpoint by our model, of a Hugging Face folder by transformers."""
    if isinstance(weights, CheckpointWeights):
        from megatron_jmed.train.logits import checkpoint_logits

        return checkpoint_logits(weights.folder, tokens_BS, compute)
    if weights.hf_files is None:
        raise CheckpointError(f"{weights.name}: a legacy folder computes nothing by itself; import it, then compare the checkpoint")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(weights.hf_files, dtype=DTYPES[compute]).eval()
    with torch.no_grad():
        return model(tokens_BS).logits.float()


if __name__ == "__main__":
    run_tool(main)

#!/usr/bin/env bash
# Instruction tuning: invented conversations that teach 40 facts -> tokens with a loss weight each -> the demo's model, tuned on what
# the assistant says alone, on two ranks -> a Hugging Face folder, and the untuned one beside it to compare; then the same with
# adapters (LoRA), of which 1/17 of the weights are trained. Where 00_tiny.sh has made runs/tiny; run it again and it goes on or skips.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd) run=runs/tiny_sft
data=$repo/examples/data tools=$repo/tools
export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore
mkdir -p $run
[ -e runs/tiny/done ] || { echo "runs/tiny is not there; run examples/00_tiny.sh in this folder first" >&2; exit 2; }

echo "== conversations"
python "$tools/check_chat.py" "$data/chat" --show 1
python "$tools/tokenize_chat.py" "$data/chat" $run/tokens --tokenizer runs/tiny/tokenizer.model --max-tokens 257

echo "== all weights tuned, and exported"
torchrun --standalone --nproc-per-node 2 -m megatron_jmed.train tiny_sft
[ -e $run/hf ] || python "$tools/export_hf.py" $run $run/hf --tokenizer runs/tiny/tokenizer.model
[ -e $run/base_hf ] || python "$tools/export_hf.py" runs/tiny $run/base_hf --tokenizer runs/tiny/tokenizer.model
echo "the tuned model is at $PWD/$run/hf, the one before at $PWD/$run/base_hf"

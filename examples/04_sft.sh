#!/usr/bin/env bash
# Instruction tuning: invented conversations that teach 40 facts -> tokens with a loss weight each -> the demo's model, tuned on what
# the assistant says alone, on two ranks -> a Hugging Face folder with its chat template, and that of the untuned model to compare.
# Where 00_tiny.sh has made runs/tiny; run it again and it goes on or skips.
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
export_hf() { [ -e "$2" ] || python "$tools/export_hf.py" "$1" "$2" --tokenizer runs/tiny/tokenizer.model --chat-template llmjp; }
export_hf $run $run/hf
export_hf runs/tiny $run/base_hf
echo "the tuned model is at $PWD/$run/hf, the one before at $PWD/$run/base_hf"

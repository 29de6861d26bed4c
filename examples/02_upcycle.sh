#!/usr/bin/env bash
# From a dense model to a mixture of experts: train a small dense parent, upcycle it (Drop-Upcycling), prove that both kinds of
# folder hold the same model and compute the same logits, and train the mixture on. Run it again and it goes on or skips.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd) work=runs/upcycle steps=$((60 * 2048))
data=$repo/examples/data tools=$repo/tools
export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore
mkdir -p $work runs/tiny

[ -e runs/tiny/tokenizer.model ] ||
  python "$tools/train_tokenizer.py" "$data/texts_ja.jsonl" "$data/texts_en.jsonl.gz" runs/tiny/tokenizer.model --vocab-size 2000
python "$tools/tokenize_corpus.py" "$data/texts_ja.jsonl" runs/tiny/tokens/texts_ja --tokenizer runs/tiny/tokenizer.model
python "$tools/tokenize_corpus.py" "$data/texts_en.jsonl.gz" runs/tiny/tokens/texts_en --tokenizer runs/tiny/tokenizer.model

echo "== the dense parent, as a Hugging Face folder"
python -m megatron_jmed.train tiny model.num_experts=0 model.router_topk=0 parallel.ep=1 \
  run_folder=$work/dense budget.total_tokens=$steps
[ -e $work/dense_hf ] || python "$tools/export_hf.py" $work/dense $work/dense_hf --tokenizer runs/tiny/tokenizer.model

echo "== eight experts, half of each drawn anew: as a checkpoint and as a Hugging Face folder"
[ -e $work/moe/state.json ] || python "$tools/upcycle_dense.py" $work/dense_hf $work/moe
[ -e $work/moe_hf ] || python "$tools/upcycle_dense.py" $work/dense_hf $work/moe_hf --to hf
head -n 8 "$data/texts_ja.jsonl" > $work/text.txt
python "$tools/verify_checkpoint.py" $work/moe $work/moe_hf --logits $work/text.txt --tokens 256

echo "== training goes on"
torchrun --standalone --nproc-per-node 2 -m megatron_jmed.train tiny run_folder=$work/trained init=$work/moe \
  model.aux_loss_coeff=0.02 budget.total_tokens=$steps
echo "the upcycled and trained model is at $PWD/$work/trained"

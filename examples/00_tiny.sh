#!/usr/bin/env bash
# The whole story at tiny size: invented Japanese and English texts -> tokens -> a small MoE trained on two ranks ->
# Hugging Face folder -> an exam -> one report. A few minutes on two CPU cores; run it again and it goes on or skips.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd) run=runs/tiny
data=$repo/examples/data tools=$repo/tools
export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore
mkdir -p $run

echo "== tokenizer and tokens"
[ -e $run/tokenizer.model ] ||
  python "$tools/train_tokenizer.py" "$data/texts_ja.jsonl" "$data/texts_en.jsonl.gz" $run/tokenizer.model --vocab-size 2000
python "$tools/tokenize_corpus.py" "$data/texts_ja.jsonl" $run/tokens/texts_ja --tokenizer $run/tokenizer.model
python "$tools/tokenize_corpus.py" "$data/texts_en.jsonl.gz" $run/tokens/texts_en --tokenizer $run/tokenizer.model

echo "== training: 8 experts over two ranks"
torchrun --standalone --nproc-per-node 2 -m megatron_jmed.train tiny

echo "== Hugging Face folder and back"
rm -rf $run/hf $run/imported
python "$tools/export_hf.py" $run $run/hf --tokenizer $run/tokenizer.model
python "$tools/import_hf.py" $run/hf $run/imported

echo "== exam and report"
python "$tools/take_exam.py" $run/hf "$data/exam" $run/scores/invented_exam.json
python "$tools/write_report.py" $run
echo "the report is at $PWD/$run/report.html"

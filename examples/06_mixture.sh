#!/usr/bin/env bash
# Which mixture makes the better model, and how sure are we? A design of mixtures and three seeds of the base -> a tiny MoE for each
# (with CLUSTER, of launch/clusters: as a sweep there) -> a cloze exam of held-out text -> one page; run again, it goes on:
# 06_mixture.sh [MIXTURES] [STEPS] [CLUSTER]
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd) study=runs/mixture step=2048 data=$repo/examples/data
tools=$repo/tools mixtures=${1:-12} steps=${2:-120} cluster=${3:-}
export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore && mkdir -p $study

echo "== tokens, and an exam of the tenth of the texts that no run trains on"
[ -e $study/tokenizer.model ] ||
  python "$tools/train_tokenizer.py" "$data/texts_ja.jsonl" "$data/texts_en.jsonl.gz" $study/tokenizer.model --vocab-size 2000
python "$tools/tokenize_corpus.py" "$data/texts_ja.jsonl" $study/tokens/texts_ja --tokenizer $study/tokenizer.model
python "$tools/tokenize_corpus.py" "$data/texts_en.jsonl.gz" $study/tokens/texts_en --tokenizer $study/tokenizer.model
python "$tools/make_cloze.py" "$data/texts_ja.jsonl" "$data/texts_en.jsonl.gz" $study/cloze.jsonl --questions 60 --valid-ratio 0.1

echo "== the runs: those that are done are skipped"
python "$tools/design_mixtures.py" "$data/mixture.toml" tiny $study --runs "$mixtures" --tokens $((steps * step)) model.num_layers=2 \
  parallel.ep=1 budget.save_every_tokens=$((steps * step)) budget.eval_every_tokens=$((steps * step / 4)) optim.warmup_tokens=$((4 * step))
blends=("$study"/blends/*.toml) sweep=$repo/launch/sweep.py
[ -z "$cluster" ] || (IFS=, && python "$sweep" --folder $study/runs --grid "@${blends[*]}" --cluster "$cluster" --nodes 1 --yes --wait)
for blend in "${blends[@]}"; do
  run=$study/runs/$(basename "$blend" .toml)
  [ -e "$run/done" ] || python -m megatron_jmed.train "$blend"
  [ -e "$run/hf" ] || python "$tools/export_hf.py" "$run" "$run/hf" --tokenizer $study/tokenizer.model
  [ -e "$run/scores/cloze.json" ] ||
    python "$tools/take_exam.py" "$run/hf" $study/cloze.jsonl "$run/scores/cloze.json" --template minimal --batch-size 8
done
python "$tools/analyze_mixture.py" $study/runs --target "exam cloze" --out $study --design $study/design.json --plan "$data/mixture.toml" \
  --tokenizer $study/tokenizer.model --terms "$data/medical_terms.txt" --exam-words $study/cloze.jsonl

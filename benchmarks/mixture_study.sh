#!/usr/bin/env bash
# A mixture study of real text at a tiny size (benchmarks/mixture.md): `mixture_study.sh CORPORA STUDY [MIXTURES] [STEPS]
# [CLUSTER]`, where CORPORA holds medquad_en.jsonl.gz, pubmedqa_en.jsonl.zst, jmed_llm_ja.jsonl.zst and wac_ja.jsonl. Run it again and it
# goes on or skips. With a cluster (launch/clusters) the runs are a sweep there.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd) corpora=$1 study=$2 mixtures=${3:-12} steps=${4:-150} cluster=${5:-} step=2048
tools=$repo/tools model=$study/tokenizer.model texts=$study/texts
export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore
mkdir -p "$texts"
first() { [ -e "$texts/$1.jsonl" ] || (set +o pipefail; $2 "$corpora/$3" | head -n "$4" > "$texts/$1.part" && mv "$texts/$1.part" "$texts/$1.jsonl"); }
first medquad_en zcat medquad_en.jsonl.gz 3000
first pubmedqa_en zstdcat pubmedqa_en.jsonl.zst 1000
first jmed_ja zstdcat jmed_llm_ja.jsonl.zst 6000
first wac_ja cat wac_ja.jsonl 3000
names=(medquad_en pubmedqa_en jmed_ja wac_ja)
files=("${names[@]/#/$texts/}") files=("${files[@]/%/.jsonl}")
[ -e "$model" ] || python "$tools/train_tokenizer.py" "${files[@]}" "$model" --vocab-size 6000
{
  printf 'total_tokens = %d\nvalid_ratio = 0.05\n[langs]\nja = [0.05, 0.95]\n' $((steps * step))
  for name in "${names[@]}"; do
    domain=medical; [ "$name" = wac_ja ] && domain=general
    printf '[[sources]]\nname = "%s"\npath = "%s"\nlang = "%s"\ndomain = "%s"\n' "$name" "$study/tokens/$name" "${name##*_}" $domain
  done
} > "$study/plan.toml"
for name in "${names[@]}"; do
  python "$tools/tokenize_corpus.py" "$texts/$name.jsonl" "$study/tokens/$name" --tokenizer "$model"
done
[ -e "$study/cloze.jsonl" ] || python "$tools/make_cloze.py" "${files[@]}" "$study/cloze.jsonl" --questions 150 --valid-ratio 0.05
python "$tools/design_mixtures.py" "$study/plan.toml" tiny "$study" --runs "$mixtures" model.num_layers=2 model.vocab_size=6000 \
  parallel.ep=1 budget.save_every_tokens=$((steps * step)) budget.eval_every_tokens=$((steps * step / 3)) optim.warmup_tokens=$((8 * step))
blends=("$study"/blends/*.toml)
[ -z "$cluster" ] || (IFS=, && exec python "$repo/launch/sweep.py" tiny --folder "$study/runs" --grid "@${blends[*]}" --nodes 1 \
  --cluster "$cluster" --job-name mixture --yes --wait)
for blend in "${blends[@]}"; do
  run=$study/runs/$(basename "$blend" .toml)
  [ -e "$run/done" ] || python -m megatron_jmed.train "$blend"
  [ -e "$run/hf" ] || python "$tools/export_hf.py" "$run" "$run/hf" --tokenizer "$model"
  [ -e "$run/scores/cloze.json" ] ||
    python "$tools/take_exam.py" "$run/hf" "$study/cloze.jsonl" "$run/scores/cloze.json" --template minimal --batch-size 8
done
python "$tools/analyze_mixture.py" "$study/runs" --target "exam cloze" --method per_byte --out "$study" --design "$study/design.json" \
  --plan "$study/plan.toml" --tokenizer "$model" --exam-words "$study/cloze.jsonl"

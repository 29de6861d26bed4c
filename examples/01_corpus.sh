#!/usr/bin/env bash
# From raw text to tokens with every document accounted for: clean, mask, deduplicate, keep the exam out, tokenise, plan the
# blend, describe. On the invented texts of examples/data; each stage is a folder with a manifest; run it again and it skips.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd) work=runs/corpus
data=$repo/examples/data tools=$repo/tools
mkdir -p $work/raw
cp "$data"/texts_ja.jsonl "$data"/texts_en.jsonl.gz $work/raw/

python "$tools/clean_corpus.py" $work/raw $work/clean
python "$tools/mask_corpus.py" $work/clean $work/masked
python "$tools/dedup_corpus.py" $work/masked $work/unique
python "$tools/decontaminate_corpus.py" $work/unique $work/fit --exams "$data/exam"

[ -e $work/tokenizer.model ] || python "$tools/train_tokenizer.py" $work/fit $work/tokenizer.model --vocab-size 2000
python "$tools/tokenize_corpus.py" $work/fit $work/tokens --tokenizer $work/tokenizer.model
python "$tools/check_blend.py" "$data/blend.toml" || echo "(the plan names the token sets of examples/00_tiny.sh; run that first)"
python "$tools/describe_corpus.py" $work/tokens $work/datasheet --tokenizer $work/tokenizer.model --terms "$data/medical_terms.txt"
echo "the datasheet is at $PWD/$work/datasheet/datasheet.html"

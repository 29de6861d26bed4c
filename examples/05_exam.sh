#!/usr/bin/env bash
# An exam on the tuned model of 04_sft.sh and on the model before: 40 questions in words, and partly in templates, that no conversation
# had; by the options' likelihood and by written answers; paired comparison; report, model card, a page that compares the runs.
# Where 00_tiny.sh and 04_sft.sh have made runs/tiny and runs/tiny_sft; run it again and it only scores and writes anew.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd) run=runs/tiny_sft
exam=$repo/examples/data/qa_exam.jsonl tools=$repo/tools
export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore
[ -e $run/hf ] || { echo "$run/hf is not there; run examples/04_sft.sh in this folder first" >&2; exit 2; }

sit() { python "$tools/take_exam.py" "$run/$1" "$exam" "$run/scores/$2.json" --chat "${@:3}"; }
for template in standard english; do
  echo "== likelihood, template $template: before, and after against before"
  sit base_hf before_$template --template $template --tokens 0
  sit hf after_$template --template $template --tokens 614400 --base $run/scores/before_$template.json
done
echo "== written answers"
sit base_hf before_written --way generate --max-new-tokens 24 --batch-size 8 --tokens 0
sit hf after_written --way generate --max-new-tokens 24 --batch-size 8 --tokens 614400 --base $run/scores/before_written.json
echo "== every checkpoint of the tuning, for the curve in the report"
python "$tools/exam_checkpoints.py" $run "$exam" --tokenizer runs/tiny/tokenizer.model --chat
echo "== as a task of lm-evaluation-harness, report, model card, comparison"
python "$tools/export_lm_eval.py" "$exam" $run/lm_eval --name qa_exam
python "$tools/write_report.py" $run --card $run/hf
python "$tools/write_report.py" runs/tiny $run --compare $run/comparison.html
echo "the report is at $PWD/$run/report.html, the comparison at $PWD/$run/comparison.html, the model card at $PWD/$run/hf/README.md"

#!/usr/bin/env bash
# Continued pre-training of LLM-jp-3 8x13B (LREC 2026), from the plan to a job that runs for days.
#
#   bash examples/03_pretrain_8x13b.sh                    rehearse every step with the tiny model, on two ranks of this machine
#   bash examples/03_pretrain_8x13b.sh generic_h100 8     prepare the real run for 8 nodes of that cluster and print its job;
#                                                         add --yes to submit it
#
# The real run wants, in the folder in which this is started: tokens/NAME for every source of the blend (tools/tokenize_corpus.py)
# and checkpoints/llmjp_8x13b (tools/import_hf.py, from the Hugging Face folder of LLM-jp-3 8x13B).
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python}
say() { printf '\n== %s\n' "$*"; }

if [ $# -ge 2 ]; then
  cluster=$1 nodes=$2
  shift 2
  say "the plan: memory, time, disk, epochs"
  "$python" "$repo/tools/plan_run.py" llmjp_8x13b --world $((nodes * 8))
  say "the index cache, on this node, so that no GPU waits for it"
  "$python" "$repo/tools/build_index_cache.py" llmjp_8x13b
  say "the job"
  exec "$python" "$repo/launch/submit.py" llmjp_8x13b --cluster "$cluster" --nodes "$nodes" "$@"
fi

export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore
run=runs/rehearsal tokens_a_step=2048
# Saves every 8 steps, milestones of weights alone every 16. The rate stays constant until the last horizon is known.
words=(tiny "run_folder=$run" "optim.warmup_tokens=$((4 * tokens_a_step))" "budget.save_every_tokens=$((8 * tokens_a_step))"
       "budget.weights_every_tokens=$((16 * tokens_a_step))" "budget.eval_every_tokens=$((16 * tokens_a_step))")
first=(optim.schedule=constant "budget.total_tokens=$((24 * tokens_a_step))")
last=(optim.schedule=wsd "optim.decay_tokens=$((8 * tokens_a_step))" "budget.total_tokens=$((40 * tokens_a_step))")
train() { "$python" -m torch.distributed.run --standalone --nproc-per-node=2 -m megatron_jmed.train "${words[@]}" "$@"; }

if [ ! -e runs/tiny/tokens/texts_en/manifest.json ]; then
  say "tokens of the invented texts"
  data=$repo/examples/data
  mkdir -p runs/tiny
  "$python" "$repo/tools/train_tokenizer.py" "$data/texts_ja.jsonl" "$data/texts_en.jsonl.gz" runs/tiny/tokenizer.model --vocab-size 2000
  "$python" "$repo/tools/tokenize_corpus.py" "$data/texts_ja.jsonl" runs/tiny/tokens/texts_ja --tokenizer runs/tiny/tokenizer.model
  "$python" "$repo/tools/tokenize_corpus.py" "$data/texts_en.jsonl.gz" runs/tiny/tokens/texts_en --tokenizer runs/tiny/tokenizer.model
fi

say "the plan of the real run on 64, 128 and 256 GPUs"
"$python" "$repo/tools/plan_run.py" llmjp_8x13b --world 64 128 256
say "and of this rehearsal, with the index cache built ahead"
"$python" -m megatron_jmed.train "${words[@]}" "${first[@]}" --dry-run 2
"$python" "$repo/tools/build_index_cache.py" "${words[@]}" "${first[@]}"

say "train, and stop as a scheduler would: save and end at a signal"
train "${first[@]}" & job=$!
while ! grep -qs '"step": 10,' $run/metrics.jsonl; do
  kill -0 "$job" || { echo "the training ended too early" >&2; exit 1; }
  sleep 0.2
done
touch $run/stop
wait "$job"
cat $run/stopped

say "the same command goes on, to the bit, from where it was"
train "${first[@]}"

say "the loss still falls: a longer horizon in the same run and the same order of documents, and a decay at its end (WSD)"
train "${last[@]}"

say "what has it read? the documents of step 10, and all of it by source"
"$python" "$repo/tools/list_documents.py" runs/tiny/tokens/texts_ja runs/tiny/tokens/texts_en
"$python" "$repo/tools/replay_data.py" $run --steps 10
"$python" "$repo/tools/replay_data.py" $run --read-until end

say "the average of the last checkpoints, as a model to export"
"$python" "$repo/tools/average_checkpoints.py" $run/weights/step_0000016 $run/weights/step_0000032 --target $run/average
"$python" "$repo/tools/export_hf.py" $run/average $run/hf_average --tokenizer runs/tiny/tokenizer.model

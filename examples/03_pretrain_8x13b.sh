#!/usr/bin/env bash
# Continued pre-training of LLM-jp-3 8x13B. `03_pretrain_8x13b.sh CLUSTER NODES [--yes]` plans, indexes and (with --yes) submits the
# real run; it wants tokens/SOURCE for each source of the blend and checkpoints/llmjp_8x13b (tools/import_hf.py) where it is started.
# Without arguments: a rehearsal of its days with the tiny model on two ranks here, where 00_tiny.sh has made runs/tiny.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd) run=runs/rehearsal step=2048  # tokens
export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore
if [ $# -ge 2 ]; then
  python "$repo/tools/plan_run.py" llmjp_8x13b --world $(($2 * 8))
  python "$repo/tools/build_index_cache.py" llmjp_8x13b
  exec python "$repo/launch/submit.py" llmjp_8x13b --cluster "$1" --nodes "$2" "${@:3}"
fi
words=(tiny "run_folder=$run" optim.warmup_tokens=$((4 * step)) budget.save_every_tokens=$((8 * step))
       budget.weights_every_tokens=$((16 * step)) budget.eval_every_tokens=$((16 * step)))
first=(optim.schedule=constant budget.total_tokens=$((24 * step)))
longer=(optim.schedule=wsd optim.decay_tokens=$((8 * step)) budget.total_tokens=$((40 * step)))
train() { torchrun --standalone --nproc-per-node 2 -m megatron_jmed.train "${words[@]}" "$@"; }
echo "== the plan of the real run, and the rehearsal's index"
python "$repo/tools/plan_run.py" llmjp_8x13b --world 64 128 256
python "$repo/tools/build_index_cache.py" "${words[@]}" "${first[@]}"
echo "== train; stopped by hand, the same command goes on; a longer horizon goes on further, and decays at its end"
(until grep -qs '"step": 10,' $run/metrics.jsonl; do sleep 0.2; done; touch $run/stop) & train "${first[@]}"; wait
train "${first[@]}"
train "${longer[@]}"
echo "== what it has read, and the mean of its last weights as a model"
python "$repo/tools/list_documents.py" runs/tiny/tokens/texts_ja runs/tiny/tokens/texts_en
python "$repo/tools/replay_data.py" $run --steps 10; python "$repo/tools/replay_data.py" $run --read-until end
python "$repo/tools/average_checkpoints.py" $run/weights/step_0000016 $run/weights/step_0000032 --target $run/average
python "$repo/tools/export_hf.py" $run/average $run/hf --tokenizer runs/tiny/tokenizer.model

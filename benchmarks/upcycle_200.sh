#!/usr/bin/env bash
# Does an upcycled model learn faster than plain copies of its parent, or than one from scratch? In an empty folder where
# examples/02_upcycle.sh has run: a dense parent of 200 steps, then 200 steps of each arm with three seeds (of the router, the
# resampling and the data order). Prints the mean validation loss over both sources at the end of each run.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd) work=runs/upcycle_200 budget="budget.total_tokens=$((200 * 2048))"
export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore
mkdir -p $work
dense="model.num_experts=0 model.router_topk=0"
one="parallel.ep=1 budget.eval_every_tokens=$((50 * 2048)) model.aux_loss_coeff=0.02"
# shellcheck disable=SC2086
python -m megatron_jmed.train tiny $dense $one run_folder=$work/dense "$budget" > $work/dense.log
for seed in 1 2 3; do
  for arm in drop copy noise scratch; do
    init=random
    if [ $arm != scratch ]; then
      init=$work/$arm$seed
      [ -e "$init/state.json" ] || python "$repo/tools/upcycle_dense.py" $work/dense "$init" --method $arm --seed $seed >/dev/null
    fi
    # shellcheck disable=SC2086
    python -m megatron_jmed.train tiny $one run_folder=$work/run_$arm$seed init="$init" seed=$seed "$budget" > "$work/$arm$seed.log"
    echo "$arm seed $seed: $(grep -o 'validation loss .*' "$work/$arm$seed.log" | sed 's/validation loss //' | tr '\n' ' ')"
  done
done

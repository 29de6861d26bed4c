# shellcheck shell=bash disable=SC2154,SC2034   # one script in several files: variables of the others
# How does one segment of a training job run, end at its time limit and come back? Sourced by train.sbatch and train_qsub.sh.
# In: $run, $JOB_NUMBER, $ATTEMPT; RUN/config.json and RUN/launch_env.sh. The files in RUN, not exit codes, say what happened:
# `done` (token budget read), `stopped` (a checkpoint was made because somebody or an alarm asked), `stalled` (a rank made no
# progress and the ranks ended themselves), checkpoints/step_N/state.json.
# Out: RUN/segments.jsonl, one line at the start and one at the end of each segment; RUN/halted, why no later segment shall run.
# Exit codes (megatron_jmed/exit_codes.py): 0 done; 3 stopped because a person or an alarm asked; 2 the job was prepared
# wrongly; 75 stalled and not coming back; anything else is a failure.
# It comes back at the time limit, when preempted or stalled, and after a failure that another attempt can mend
# (launch/failure.py), until MAX_IDLE_SEGMENTS attempts in a row have brought no new whole checkpoint.
# A scheduler (launch/schedulers/*.sh) gives: job_nodes, each_node, each_rank, is_running, is_preempted, next_segment.

limit_note='time limit'   # tells the stop file that this script wrote from one that a person touched

log() { echo "$(date '+%F %T') job $JOB_NUMBER: $*"; }

note() {   # note EVENT OUTCOME CODE: one line of RUN/segments.jsonl; OUTCOME is one of our own words
  printf '{"event": "%s", "time": "%s", "job": "%s", "attempt": %d, "submission": %d, "step": %d, "nodes": "%s", "outcome": "%s", "code": %d}\n' \
    "$1" "$(date -u '+%FT%TZ')" "$JOB_NUMBER" "$ATTEMPT" "$SUBMISSION" "$(latest_step)" "${hosts:-}" "$2" "$3" >> "$run/segments.jsonl"
}

ask_to_save() {
  [ -e "$run/stop" ] && return   # a person was first: the job shall not come back
  is_limit_near=1
  log "the time limit is near, asking for a checkpoint"
  echo "$limit_note of job $JOB_NUMBER" > "$run/stop"
}

latest_step() {   # of the newest whole checkpoint; 0 without one
  local state step=0
  for state in "$run"/checkpoints/step_*/state.json; do
    [ -e "$state" ] && step=${state%/state.json} && step=$((10#${step##*_}))
  done
  echo "$step"
}

idle_segments() {   # how many segments of this submission began at the newest checkpoint
  grep -c "^{\"event\": \"start\".* \"submission\": $SUBMISSION, \"step\": $(latest_step)," "$run/segments.jsonl"
}

halt() {   # halt CODE WHY: end this segment, and with it all that may be queued behind it
  log "$2"
  echo "$2" > "$run/halted"
  note end halted "$1"
  exit "$1"
}

come_back() {   # come_back CODE [BAD_HOSTS]: the next segment, elsewhere than on the bad hosts; or end with this code
  local idle
  if [ -n "${is_ended_by_scheduler:-}" ] || ! is_running; then
    log "cancelled or past the limit: does not come back"
    note end cancelled "$1"
    exit "$1"
  fi
  idle=$(idle_segments)
  [ "$idle" -lt "$MAX_IDLE_SEGMENTS" ] || halt "$1" "no new checkpoint in $idle attempt(s) at step $(latest_step): does not come back"
  log "comes back, goes on from step $(latest_step)"
  note end "comes back" "$1"
  next_segment "${2:-}"
  exit "$1"
}

pick_nodes() {   # the gate: sets $hosts, a comma-separated list of NUM_NODES nodes that are fit
  local all fit gate="$run/gate/$JOB_NUMBER.$ATTEMPT" limit=(timeout --kill-after=5 "$GATE_SECONDS")
  all=$(job_nodes | paste -sd, -)
  if [ -z "$HAS_GATE" ]; then
    hosts=$(cut -d, -f"1-$NUM_NODES" <<< "$all")
    return
  fi
  # What fails on one node must not end the measuring on the others; the files say what came of it.
  # shellcheck disable=SC2016
  local check=(bash -c '"$@" || exit 0' check "${CONTAINER[@]}" "$PYTHON" -m)
  mkdir -p "$gate"
  date +%s.%N > "$gate/begun"
  each_node "$all"
  "${limit[@]}" "${start[@]}" "${check[@]}" launch.check_node "$gate" "$run/gate.json"
  "$HOST_PYTHON" -m launch.gate "$gate" "$run/gate.json" --nodes "$all" --wanted "$NUM_NODES" || return
  hosts=$(cat "$gate/good")
  [ -n "$HAS_NETWORK_GATE" ] && [ "$NUM_NODES" -gt 1 ] || return 0
  fit=$(cat "$gate/fit")
  each_node "$fit"
  MASTER_ADDR=${fit%%,*} MASTER_PORT=$((MASTER_PORT + 1)) "${limit[@]}" "${start[@]}" "${check[@]}" launch.check_network "$gate"
  "$HOST_PYTHON" -m launch.gate "$gate" "$run/gate.json" --nodes "$all" --wanted "$NUM_NODES" --network || return
  hosts=$(cat "$gate/good")
}

train() {   # the ranks, until they end; a signal that comes meanwhile only interrupts the waiting
  local pid
  export MASTER_ADDR=${hosts%%,*} MASTER_PORT
  # An ignored signal stays ignored through exec: the launcher never dies of one that is sent to the whole job, and the
  # ranks are safe until they install their own handlers. The rendezvous id must differ from the last attempt's.
  # shellcheck disable=SC2016
  local guard=(bash -c 'trap "" USR1 USR2 TERM; exec "$@"' launcher "${CONTAINER[@]}" "$PYTHON")
  if [ "$RANK_LAUNCHER" = torchrun ]; then
    each_node "$hosts"
    "${start[@]}" "${guard[@]}" -m torch.distributed.run --nnodes="$NUM_NODES" --nproc-per-node="$NPROC_PER_NODE" \
      --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-id="$JOB_NUMBER.$ATTEMPT" \
      "${TORCHRUN_OPTIONS[@]}" -m megatron_jmed.train "$run/config.json" &
  else
    each_rank "$hosts"
    "${start[@]}" "${guard[@]}" -m megatron_jmed.train "$run/config.json" &
  fi
  pid=$!
  while kill -0 "$pid" 2> /dev/null; do wait "$pid"; done   # a trapped signal ends "wait" early: wait again
  wait "$pid"
}

run_segment() {
  local step_before code verdict output output_begin=0
  trap ask_to_save USR1
  trap 'is_ended_by_scheduler=1; log "TERM: cancelled, time limit or preemption; the scheduler decides what follows"' TERM
  [ -r "$run/launch_env.sh" ] || { log "$run has no launch_env.sh; prepare it with launch/submit.py" >&2; exit 2; }
  # shellcheck source=/dev/null
  . "$run/launch_env.sh"
  set -uo pipefail          # only now: module and venv scripts read unset variables
  [ "$run" -ef "$RUN_FOLDER" ] || { log "$run was prepared as $RUN_FOLDER; run launch/submit.py again" >&2; exit 2; }
  # shellcheck source=/dev/null
  . "$run/code/launch/schedulers/$SCHEDULER.sh"

  step_before=$(latest_step)
  log "attempt $ATTEMPT on $(job_nodes | paste -sd' ' -), checkpoint at step $step_before"
  [ -e "$run/done" ] && { log "already done"; exit 0; }
  [ -e "$run/halted" ] && { log "$(cat "$run/halted"); nothing to do: submit again when it is mended"; exit 3; }
  grep -qs "^$limit_note" "$run/stop" && rm -f "$run/stop"   # of an attempt that died
  [ -e "$run/stop" ] && { log "$run/stop is there: remove it to train"; exit 3; }
  rm -f "$run/stopped" "$run/stalled"
  note start "" 0
  if [ "$(idle_segments)" -gt "$MAX_IDLE_SEGMENTS" ]; then   # the scheduler itself brings a job back when its node dies
    halt 1 "no new checkpoint in $MAX_IDLE_SEGMENTS attempt(s) at step $step_before: does not start again"
  fi
  pick_nodes || { log "too few fit nodes"; come_back 1 "$(cat "$run/gate/$JOB_NUMBER.$ATTEMPT/bad")"; }
  [ -n "${is_limit_near:-}" ] && { log "the time limit is near already"; come_back 1; }

  output=$(readlink -f "/proc/$$/fd/1")
  [ -f "$output" ] && output_begin=$(stat -c %s "$output")
  train
  code=$?

  [ -e "$run/done" ] && { log "done at step $(latest_step)"; note end "done" 0; exit 0; }
  if [ -e "$run/stopped" ]; then
    if [ -n "${is_limit_near:-}" ] || is_preempted; then come_back 1; fi
    if [ -n "${is_ended_by_scheduler:-}" ]; then   # another node died, or somebody cancelled: the scheduler knows what follows
      log "saved at step $(latest_step) when the scheduler ended the job"
      note end ended 3
      exit 3
    fi
    halt 3 "stopped at step $(latest_step), $(cut -d' ' -f2- "$run/stopped"): does not come back"
  fi
  if [ -e "$run/stalled" ]; then
    log "stalled after step $(head -n 1 "$run/stalled")"
    come_back 75
  fi
  [ "$code" -ne 0 ] || code=1
  if verdict=$("$HOST_PYTHON" -m launch.failure "$run" --code "$code" --log "$output" --from "$output_begin"); then
    log "${verdict%%$'\n'*}"
    come_back "$code" "${verdict##*host=}"
  fi
  halt "$code" "${verdict%%$'\n'*}; last checkpoint at step $(latest_step): does not come back"
}

#!/bin/bash
# One segment of a training job under PBS or AGE: what RUN/job.sh, which launch/submit.py writes, starts.
# These schedulers signal a job late or not at all before they end it, so a clock of our own asks for the checkpoint.

run=${1:?usage: train_qsub.sh RUN_FOLDER}
JOB_NUMBER=${PBS_JOBID:-${JOB_ID:?neither PBS nor AGE started this}}
JOB_NUMBER=${JOB_NUMBER%%[!0-9]*}
ATTEMPT=1
mkdir -p "$run/logs"
exec >> "$run/logs/${PBS_JOBNAME:-$JOB_NAME}-$JOB_NUMBER.out" 2>&1   # appended to, and readable while the job runs
# shellcheck source=launch/segment.sh
. "$run/code/launch/segment.sh" || { echo "$run has no code/launch/segment.sh; prepare it with launch/submit.py" >&2; exit 2; }
limit_seconds=$(sed -n 's/^SAVE_AFTER_SECONDS=//p' "$run/launch_env.sh")
(trap 'kill "$sleep_pid"; exit' TERM; sleep "$limit_seconds" & sleep_pid=$!; wait "$sleep_pid"; kill -USR1 $$) > /dev/null 2>&1 &
clock_pid=$!
trap 'kill "$clock_pid"' EXIT   # and with it its sleep, which would keep the job alive
run_segment

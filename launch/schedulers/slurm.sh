# shellcheck shell=bash disable=SC2154,SC2034   # one script in several files: variables of the others
# What segment.sh needs of Slurm.

job_nodes() { scontrol show hostnames "$SLURM_JOB_NODELIST"; }

each_node() {   # each_node HOST,HOST: the words in $start start what follows them once on each
  local count=${1//[!,]/}
  start=(srun --kill-on-bad-exit=1 --export=ALL --nodelist="$1" --nodes=$((${#count} + 1)) --ntasks=$((${#count} + 1))
         --ntasks-per-node=1 "${SRUN_OPTIONS[@]}")
}

each_rank() {   # each_rank HOST,HOST: the words in $start start what follows them once for each rank
  start=(srun --kill-on-bad-exit=1 --export=ALL --nodelist="$1" --nodes="$NUM_NODES" --ntasks=$((NUM_NODES * NPROC_PER_NODE))
         --ntasks-per-node="$NPROC_PER_NODE" "${SRUN_OPTIONS[@]}")
}

is_preempted() { scontrol -o show job "$SLURM_JOB_ID" | grep -q ' PreemptTime=[0-9]'; }

# "scontrol requeue" revives even a job that its user has just cancelled, so the state is looked at first.
is_running() { [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; }

next_segment() {   # next_segment BAD_HOSTS: this job again, or, to keep away from hosts, a new one like it
  if [ -n "$1" ]; then
    echo "$1" | tr ',' '\n' >> "$run/bad_nodes"
    "${SUBMIT[0]}" --exclude="$(sort -u "$run/bad_nodes" | paste -sd, -)" --dependency="afterany:$SLURM_JOB_ID" "${SUBMIT[@]:1}"
  elif [ "$COME_BACK" = requeue ]; then
    scontrol requeue "$SLURM_JOB_ID" && sleep 600   # Slurm ends us in here; ending ourselves would mean COMPLETED
  fi
}

# shellcheck shell=bash disable=SC2154,SC2034   # one script in several files: variables of the others
# What segment.sh needs where mpirun starts the processes, and the next segment is queued already (qsub -W depend, -hold_jid).
# PBS gives the nodes in $PBS_NODEFILE, one line for each MPI process; AGE in $PE_HOSTFILE, "host slots queue processors".

job_nodes() { awk '!seen[$1]++ { print $1 }' "${PBS_NODEFILE:-$PE_HOSTFILE}"; }

exports() {   # mpirun hands to other hosts only the variables that it is told
  local name
  for name in "${EXPORTS[@]}" MASTER_ADDR MASTER_PORT; do printf '%s\n' -x "$name"; done
}

each_node() {   # each_node HOST,HOST: the words in $start start what follows them once on each
  local count=${1//[!,]/} names
  mapfile -t names < <(exports)
  start=(mpirun --host "${1//,/:1,}:1" -np $((${#count} + 1)) --map-by ppr:1:node --bind-to none "${names[@]}" "${MPIRUN_OPTIONS[@]}")
}

each_rank() {   # each_rank HOST,HOST: the words in $start start what follows them once for each rank
  local names
  mapfile -t names < <(exports)
  start=(mpirun --host "${1//,/:$NPROC_PER_NODE,}:$NPROC_PER_NODE" -np $((NUM_NODES * NPROC_PER_NODE))
         --map-by "ppr:$NPROC_PER_NODE:node" --bind-to none "${names[@]}" "${MPIRUN_OPTIONS[@]}")
}

is_preempted() { false; }

is_running() { true; }

next_segment() { :; }   # the next job of the chain is held for the end of this one

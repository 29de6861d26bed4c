"""What a run will cost on N GPUs, or which layout it should have: arithmetic on the config, no torch and no GPU.

`python tools/plan_run.py llmjp_8x13b --world 64 128 256 --quota-tb 50 --hours-limit 24`: memory a rank by part and recompute
choice, step and wall time, GPU-hours, queue segments, checkpoint bytes, epochs by source.
`python tools/plan_run.py llmjp_8x13b --advise --world 64 --gpu-gib 79.6`: the fastest layouts that fit, and why their neighbours
are not better. What the numbers assume stands in megatron_jmed/train/machine.py, how far off they are in benchmarks/plan.md.
"""

import argparse
from dataclasses import replace

from megatron_jmed.config import load_config
from megatron_jmed.errors import ConfigError, run_tool
from megatron_jmed.train.advisor import advise
from megatron_jmed.train.machine import H100
from megatron_jmed.train.plan import Limits, advice_lines, plan_lines


def main() -> None:
    words = _arguments()
    config = load_config(words.config, words.changes)
    machine = replace(H100, gpu_gib=words.gpu_gib, gpus_per_node=words.gpus_per_node, imbalance=words.imbalance)
    limits = Limits(words.efficiency, words.quota_tb, words.hours_limit)
    _check(words)
    for world in words.world if words.advise else ():
        for line in advice_lines(config, advise(config, world, machine, words.best), world, machine):
            print(line)
    if not words.advise:
        for line in plan_lines(config, words.world, machine, limits):
            print(line)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="recipe name, .toml experiment, or config.json of a run")
    parser.add_argument("changes", nargs="*", help="changes such as parallel.pp=2")
    parser.add_argument("--world", type=int, nargs="+", required=True, metavar="N", help="numbers of GPUs")
    parser.add_argument("--advise", action="store_true", help="search for the fastest layout that fits")
    parser.add_argument("--best", type=int, default=5, metavar="N", help="layouts that --advise shows (default: %(default)s)")
    parser.add_argument("--gpu-gib", type=float, default=H100.gpu_gib, help="memory of a GPU (default: %(default)s)")
    parser.add_argument("--gpus-per-node", type=int, default=H100.gpus_per_node, help="default: %(default)s")
    parser.add_argument("--imbalance", type=float, default=H100.imbalance,
                        help="tokens of the busiest rank's experts over the mean (default: %(default)s)")
    parser.add_argument("--efficiency", type=float, default=Limits.efficiency,
                        help="share of the 989 TFLOP/s of an H100 that whole steps reach (default: %(default)s)")
    parser.add_argument("--quota-tb", type=float, help="disk for checkpoints, in TB")
    parser.add_argument("--hours-limit", type=float, help="time limit of one job, in hours")
    return parser.parse_intermixed_args()


def _check(words: argparse.Namespace) -> None:
    shortest = H100.segment_overhead_seconds / 3600
    # "not more than" also refuses nan
    wrong = [text for text, is_wrong in (
        (f"--world: {min(words.world)} is not a number of GPUs; it starts at 1", min(words.world) < 1),
        (f"--best={words.best}: show at least 1", words.best < 1),
        (f"--gpu-gib={words.gpu_gib:g}: must be more than 0", not words.gpu_gib > 0),
        (f"--gpus-per-node={words.gpus_per_node}: must be at least 1", words.gpus_per_node < 1),
        (f"--imbalance={words.imbalance:g}: the busiest rank has at least the mean, 1", not words.imbalance >= 1),
        (f"--efficiency={words.efficiency:g}: a share of the peak, above 0 and at most 1", not 0 < words.efficiency <= 1),
        (f"--quota-tb={words.quota_tb}: must be more than 0", words.quota_tb is not None and not words.quota_tb > 0),
        (f"--hours-limit={words.hours_limit}: starting and saving alone take {shortest:g} h of a job; give it more",
         words.hours_limit is not None and not words.hours_limit > shortest),
    ) if is_wrong]
    if wrong:
        raise ConfigError("; ".join(wrong))


if __name__ == "__main__":
    run_tool(main)

"""From a plan (token budget, target shares, epoch caps) to the weights of a blend, or what keeps the plan from working.

How a plan is written is said at the top of megatron_jmed/corpus/blend_plan.py; examples/data/blend.toml is one.
"""

import argparse
from pathlib import Path

from megatron_jmed.corpus.blend import solve_blend
from megatron_jmed.corpus.blend_plan import load_plan, load_sources
from megatron_jmed.corpus.blend_text import blend_table, blend_toml
from megatron_jmed.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, metavar="PLAN.toml")
    parser.add_argument("--tokens", type=int, metavar="N", help="token budget instead of the plan's total_tokens")
    parser.add_argument("--toml", action="store_true", help="print the lines for an experiment instead of the table")
    words = parser.parse_args()
    plan = load_plan(words.plan, words.tokens)
    blend = solve_blend(plan, load_sources(plan))
    print(blend_toml(blend) if words.toml else blend_table(blend))


if __name__ == "__main__":
    run_tool(main)

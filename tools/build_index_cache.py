"""Build the index cache of a run ahead, alone on a CPU node, so that its training starts without building.

Run it in the folder from which the training will be started, with the same CONFIG and the same changes. Killed at any
moment it leaves nothing that a training would take for whole; a cache that is already there is left as it is.
"""

import argparse
import time

from megatron_jmed.config import ParallelConfig, load_config
from megatron_jmed.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="recipe name, .toml experiment, or config.json of a run")
    parser.add_argument("changes", nargs="*", help="changes such as budget.total_tokens=2000000000")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.changes)

    from megatron_jmed.data.index_cache import cache_bytes
    from megatron_jmed.data.pretrain import build_data
    from megatron_jmed.data.sources import load_token_sets
    from megatron_jmed.parallel import World, start_groups, stop_groups

    token_sets = load_token_sets(config)
    start_groups(ParallelConfig(), World(0, 1, 0), config.seed)
    start = time.perf_counter()
    data = build_data(config, token_sets)
    seconds = time.perf_counter() - start
    stop_groups()
    num_documents = sum(token_set.num_documents for token_set in token_sets)
    print(f"{data.index_cache}: {len(data.train):,} sequences for training, {len(data.valid or ()):,} for validation, of "
          f"{num_documents:,} documents in {len(token_sets)} token sets; {cache_bytes(data.index_cache):,} bytes, {seconds:.1f} s")


if __name__ == "__main__":
    run_tool(main)

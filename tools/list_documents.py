"""Write down what the documents of token sets are called (SET.listing beside each), for tools/replay_data.py.

The documents are read again from where the token set was made from; they must be unchanged. Once per token set; a listing
that is there is left as it is.
"""

import argparse
from pathlib import Path

from megatron_jmed.corpus.listing import list_documents, listing_folder
from megatron_jmed.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("token_sets", nargs="+", type=Path, metavar="TOKEN_SET")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes; default 1")
    arguments = parser.parse_args()
    for token_set in arguments.token_sets:
        listing = list_documents(token_set, arguments.workers)
        groups = ", ".join("/".join(group) for group in listing.details["groups"][:8])
        print(f"{listing_folder(token_set)}: {listing.counts.documents:,} documents of {groups}")


if __name__ == "__main__":
    run_tool(main)

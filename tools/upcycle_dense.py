"""Dense model (Hugging Face, checkpoint or legacy folder) -> mixture of experts by Drop-Upcycling, as either kind of folder."""

import argparse
from pathlib import Path

from megatron_jmed.convert.source import open_weights
from megatron_jmed.convert.stored import prefer_huge_pages
from megatron_jmed.convert.upcycle import Upcycled, UpcycleSettings
from megatron_jmed.convert.weights import export_weights, import_weights
from megatron_jmed.errors import run_tool


def main() -> None:
    prefer_huge_pages()
    default = UpcycleSettings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="DENSE_FOLDER")
    parser.add_argument("target", type=Path, metavar="TARGET")
    parser.add_argument("--to", choices=("checkpoint", "hf"), default="checkpoint", help="what to write; default: checkpoint")
    parser.add_argument("--experts", type=int, default=default.num_experts, metavar="N")
    parser.add_argument("--topk", type=int, default=default.router_topk, metavar="N")
    parser.add_argument("--method", choices=("drop", "copy", "noise"), default=default.method)
    parser.add_argument("--ratio", type=float, default=default.ratio, help="share of each expert that is drawn anew (drop)")
    parser.add_argument("--noise", type=float, default=default.noise, help="deviation of the noise in the weights' own (noise)")
    parser.add_argument("--router-std", type=float, default=default.router_std, help="deviation of the new router's weights")
    parser.add_argument("--aux-loss-coeff", type=float, default=default.aux_loss_coeff)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--workers", type=int, metavar="N", help="threads; default: cores, while memory stays below 12 GiB")
    arguments = parser.parse_args()
    settings = UpcycleSettings(
        num_experts=arguments.experts, router_topk=arguments.topk, method=arguments.method, ratio=arguments.ratio,
        noise=arguments.noise, router_std=arguments.router_std, aux_loss_coeff=arguments.aux_loss_coeff, seed=arguments.seed)
    weights = Upcycled(open_weights(arguments.source), settings)
    if arguments.to == "hf":
        export_weights(weights, arguments.target, workers=arguments.workers)
    else:
        import_weights(weights, arguments.target, arguments.workers)
    print(f"{arguments.target}: {settings.num_experts} experts, top-{settings.router_topk}, made by {settings.method!r}"
          + (f" with ratio {settings.ratio}" if settings.method == "drop" else ""))


if __name__ == "__main__":
    run_tool(main)

"""Do transformers and our model compute the same at real widths, on real text?

`python benchmarks/weights_logits.py FOLDER TEXT TOKENIZER` writes random weights with the widths of 8x1.8B (2 layers), as a
mixture and as a dense model, imports each, and runs tools/verify_checkpoint.py --logits in fp32 and bf16.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from weights_speed import TOOLS, write_random

from megatron_jmed.config import recipe_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("tokenizer", type=Path)
    arguments = parser.parse_args()
    words = {"num_layers": 2, "vocab_size": 99584}
    for name, more in (("mixtral", {}), ("llama", {"num_experts": 0, "router_topk": 0})):
        hf, checkpoint = arguments.folder / f"{name}_hf", arguments.folder / name
        if not hf.exists():
            write_random(hf, recipe_config("llmjp_8x1p8b").model.model_copy(update=words | more))
            subprocess.run([sys.executable, str(TOOLS / "import_hf.py"), str(hf), str(checkpoint)], check=True)
        for compute in ("fp32", "bf16"):
            print(f"== {name}, {compute}", flush=True)
            subprocess.run([sys.executable, str(TOOLS / "verify_checkpoint.py"), str(hf), str(checkpoint), "--logits",
                            str(arguments.text), "--tokenizer", str(arguments.tokenizer), "--compute", compute], check=False)


if __name__ == "__main__":
    main()

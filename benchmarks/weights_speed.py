"""How long do conversions take beside a plain copy of the same bytes, and how much memory do they need?

`python benchmarks/weights_speed.py FOLDER [--model 8x13b|8x1.8b] [--layers N]` writes random weights of real widths as a
Hugging Face folder (shards by the safetensors library), then times, each as a process of its own: cp, import,
export and verify; every write is on the disk (fsync) before its clock stops. The last import
runs on one core under a limit on its address space.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from megatron_jmed.config import ModelConfig, recipe_config
from megatron_jmed.convert.hf import INDEX_NAME
from megatron_jmed.convert.hf_config import hf_config
from megatron_jmed.convert.names import rows
from megatron_jmed.convert.weights import default_workers, memory_bound_bytes

TOOLS = Path(__file__).parents[1] / "tools"
RECIPE = {"8x13b": "llmjp_8x13b", "8x1.8b": "llmjp_8x1p8b"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=tuple(RECIPE), default="8x13b")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--limit-gib", type=float, default=12.0, help="of the last import's address space")
    arguments = parser.parse_args()
    words = {"num_layers": arguments.layers, "vocab_size": 99584}
    model = recipe_config(RECIPE[arguments.model]).model.model_copy(update=words)
    hf, checkpoint, again, limited = (arguments.folder / name for name in ("hf", "checkpoint", "again", "limited"))
    write_random(hf, model)
    gib = sum(path.stat().st_size for path in hf.iterdir()) / 2**30
    workers = default_workers(model, torch.bfloat16)
    bound = memory_bound_bytes(model, torch.bfloat16, workers)
    print(f"{arguments.model}, {arguments.layers} layers: {gib:.2f} GiB; {workers} workers, bound {bound / 2**30:.2f} GiB",
          flush=True)
    copy_script = f"cp -r {hf} {arguments.folder}/copy && sync -f {arguments.folder}/copy"
    run("plain copy", ["bash", "-c", copy_script], gib)
    run("import", [sys.executable, str(TOOLS / "import_hf.py"), str(hf), str(checkpoint)], gib)
    run("export", [sys.executable, str(TOOLS / "export_hf.py"), str(checkpoint), str(again)], gib)
    run("verify source against export", [sys.executable, str(TOOLS / "verify_checkpoint.py"), str(hf), str(again)], gib)
    run("plain copy again", ["bash", "-c", copy_script.replace("/copy", "/copy2")], gib)
    shutil.rmtree(arguments.folder / "copy")
    shutil.rmtree(arguments.folder / "copy2")
    shutil.rmtree(again)
    run(f"import on 1 core, at most {arguments.limit_gib} GiB of addresses",
        ["taskset", "-c", "0", sys.executable, str(TOOLS / "import_hf.py"), str(hf), str(limited)], gib, arguments.limit_gib)


def write_random(folder: Path, model: ModelConfig) -> None:
    """Shards of one layer each, with norms near 1 and everything else N(0, 0.02^2)."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    weight_map, number = {}, 0
    for part in range(-1, model.num_layers):
        tensors = {}
        for row in rows(model):
            for index, names in row.slices(model):
                if (index[0] if index else -1) != part:
                    continue
                centre = 1.0 if "layernorm" in row.key else 0.0
                whole = (centre + torch.randn(row.slice_shape(model, model.vocab_size)) * 0.02).to(torch.bfloat16)
                for name, tensor in zip(names, row.split(whole, model), strict=True):
                    tensors[name] = tensor.contiguous().clone()
        number += 1
        file = f"model-{number:05d}-of-{model.num_layers + 1:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(hf_config(model, torch.bfloat16, {}, {})))
    os.sync()


def run(name: str, command: list[str], gib: float, limit_gib: float | None = None) -> None:
    """One process: seconds, GiB a second, processor seconds and largest resident memory."""
    def limit() -> None:
        if limit_gib:
            size = int(limit_gib * 2**30)
            resource.setrlimit(resource.RLIMIT_AS, (size, size))

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOOLS.parent)}
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=limit,
                               env=environment)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begin
    last = out.strip().splitlines()[-1:]
    print(f"{name:45s} {seconds:7.1f} s  {gib / seconds:5.2f} GiB/s  {usage.ru_utime + usage.ru_stime:6.1f} CPU-s  "
          f"peak {usage.ru_maxrss / 2**20:5.2f} GiB  exit {os.waitstatus_to_exitcode(status)}  {last}", flush=True)


if __name__ == "__main__":
    main()

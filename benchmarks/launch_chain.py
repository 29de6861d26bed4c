"""Segments that Slurm's time limit ends, against an undisturbed run: `python benchmarks/launch_chain.py FOLDER [LIMIT]`.

FOLDER gets the tokens and both runs of the recipe `tiny` on two fake nodes of a private Slurm (tests/launch/private_slurm.py), real
trainer, gloo. Prints when each segment began and ended, and whether every loss and gradient norm is the same to the bit.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests" / "launch")]

from private_slurm import ENDED, PrivateSlurm  # noqa: E402

NUM_STEPS, TOKENS_A_STEP = 300, 2048


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

    def run(*words: object, env: dict[str, str] | None = None) -> str:
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=folder, env=environment | (env or {}), capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        return done.stdout

    data, tools = REPOSITORY / "examples" / "data", REPOSITORY / "tools"
    texts = {"texts_ja": data / "texts_ja.jsonl", "texts_en": data / "texts_en.jsonl.gz"}
    run(tools / "train_tokenizer.py", *texts.values(), "tokenizer.model", "--vocab-size", 2000)
    for name, path in texts.items():
        run(tools / "tokenize_corpus.py", path, f"runs/tiny/tokens/{name}", "--tokenizer", "tokenizer.model", "--workers", 1)
    slurm = PrivateSlurm(2)
    slurm.start()
    try:
        words = ["tiny", f"budget.total_tokens={NUM_STEPS * TOKENS_A_STEP}", "budget.eval_every_tokens=0", "--cluster", "local",
                 "--nodes", 2, "--yes"]
        for name, limit in (("chain", (sys.argv[2:] or ["00:02:00"])[0]), ("plain", "01:00:00")):
            begun = time.monotonic()
            own = [f"run_folder=runs/{name}", "--time", limit, "--job-name", name]
            job = slurm.remember(run(REPOSITORY / "launch/submit.py", *words, *own, env=slurm.env))
            state = slurm.wait_state(job, *ENDED, seconds=1800)
            restarts = slurm.field(job, "Restarts")
            print(f"{name}: {state} after {time.monotonic() - begun:.0f} s, limit {limit}, restarts {restarts}")
            for line in (folder / "runs" / name / "segments.jsonl").read_text().splitlines():
                event = json.loads(line)
                print(f"  {event['time']} {event['event']:5} attempt {event['attempt']} step {event['step']} {event['outcome']}",
                      flush=True)
    finally:
        slurm.stop()
    chain, plain = (numbers(folder / "runs" / name / "metrics.jsonl") for name in ("chain", "plain"))
    print(f"{len(chain)} steps; losses and gradient norms are {'the same to the bit' if chain == plain else 'NOT the same'}")


def numbers(path: Path) -> list[tuple]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [(record["step"], record["loss"], record["grad_norm"]) for record in records if "loss" in record]


if __name__ == "__main__":
    main()

"""Does a run survive whatever happens to it, and end with the same weights?

`python benchmarks/fault_campaign.py FOLDER [--chains 6] [--seed 0]` trains a small MoE on two ranks under torchrun, once
undisturbed, then again and again with faults: each chain is one run that is broken seven times, each time in another way, at
a random moment, and then goes on by the same command. Each attempt must end by itself, and each chain with the reference's
checkpoint, byte for byte. Prints a line a fault and a summary; FOLDER needs the tokens of examples/00_tiny.sh
(runs/tiny/tokens). Repeatable: the seed decides order and moments (in steps; the machine's speed decides the rest).
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from megatron_jmed.run_folder import RunFolder

RANK = Path(__file__).with_name("fault_rank.py")
STEPS, SAVE_EVERY, TOKENS = 96, 4, 2048
CONFIG = ["tiny", "model.num_layers=2", f"budget.total_tokens={STEPS * TOKENS}", f"budget.save_every_tokens={SAVE_EVERY * TOKENS}",
          "budget.eval_every_tokens=0", "watch.stall_seconds=20"]
KINDS = ("kill one rank", "kill all ranks", "kill all ranks in a save", "SIGTERM to all ranks", "SIGUSR2 to one rank", "stop file",
         "SIGSTOP of one rank", "disk full", "NaN in the gradients", "bit flip in the newest checkpoint",
         "newest checkpoint cut", "file of the newest checkpoint deleted")


@dataclass
class Attempt:
    """A process group that trains; `folder` is its run."""

    folder: RunFolder
    changes: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    file_blocks: int = 0

    def __enter__(self) -> "Attempt":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(RANK), *CONFIG,
                   f"run_folder={self.folder.path}", *self.changes]
        if self.file_blocks:  # a file may not grow beyond this, as on a full disk
            command = ["bash", "-c", f'ulimit -f {self.file_blocks}; exec "$@"', "bash", *command]
        self.starts_before = num_starts(self.folder)
        self.log = open(self.folder.path.with_suffix(".log"), "ab")
        self.process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment}, stdout=self.log,
                                        stderr=self.log, start_new_session=True)
        return self

    def __exit__(self, *_exc) -> None:
        self.log.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def ranks(self) -> list[int]:
        """The process ids of the ranks: torchrun's children."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children if b"fault_rank" in Path(f"/proc/{child}/cmdline").read_bytes()]

    def wait_for_step(self, step: int) -> None:
        """Until this attempt, and not the one before it, has done `step`."""
        self.wait_until(lambda: num_starts(self.folder) > self.starts_before and last_step(self.folder) >= step)

    def wait_until(self, condition) -> None:
        while not condition():
            if self.process.poll() is not None:
                raise SystemExit(f"ended too early, see {self.folder.path.with_suffix('.log')}")
            time.sleep(0.005)

    def wait_for_end(self) -> int:
        return self.process.wait(timeout=300)


def num_starts(folder: RunFolder) -> int:
    return len(json.loads(folder.run.read_text())["starts"]) if folder.run.exists() else 0


def last_step(folder: RunFolder) -> int:
    """The newest step in metrics.jsonl."""
    if not folder.metrics.exists():
        return 0
    steps = [0]
    for line in folder.metrics.read_text().splitlines():
        try:
            steps.append(json.loads(line)["step"])
        except (ValueError, KeyError):
            continue
    return max(steps)


def saved_step(folder: RunFolder) -> int:
    latest = folder.latest_checkpoint()
    return int(latest.name.removeprefix("step_")) if latest else 0


def inject(kind: str, folder: RunFolder, rng: random.Random) -> dict:
    """One attempt with one fault, until it has ended by itself; what was seen."""
    saved = saved_step(folder)
    step = saved + rng.randint(SAVE_EVERY + 1, 2 * SAVE_EVERY + 2)
    environment = {"NAN_STEP": str(step - saved)} if kind.startswith("NaN") else {}
    if "newest" in kind:
        spoil(kind, folder.latest_checkpoint(), rng)
        saved = saved_step_before(folder)
        step = saved + 1
    with Attempt(folder, environment=environment, file_blocks=300 if kind == "disk full" else 0) as attempt:
        if kind not in ("disk full", "NaN in the gradients"):
            attempt.wait_for_step(step)
            time.sleep(rng.uniform(0, 0.3))
        struck = time.monotonic()
        if strike(kind, attempt, folder):
            struck = time.monotonic()
        code = attempt.wait_for_end()
        seconds = time.monotonic() - struck
    reached = last_step(folder)
    return {"kind": kind, "exit": code, "seconds": seconds, "reached": reached, "saved": saved_step(folder),
            "lost": reached - saved_step(folder)}


def strike(kind: str, attempt: Attempt, folder: RunFolder) -> bool:
    ranks = [] if kind in ("disk full", "NaN in the gradients") else attempt.ranks()
    if kind == "kill all ranks in a save":
        attempt.wait_until(lambda: any(folder.checkpoints.glob("partial_*")))
    for rank in ranks if "all ranks" in kind else ranks[-1:]:
        if kind.startswith("kill"):
            os.kill(rank, signal.SIGKILL)
        elif kind.startswith("SIGTERM"):
            os.kill(rank, signal.SIGTERM)
        elif kind.startswith("SIGUSR2"):
            os.kill(rank, signal.SIGUSR2)
        elif kind.startswith("SIGSTOP"):
            os.kill(rank, signal.SIGSTOP)
    if kind == "stop file" or "newest" in kind:
        folder.stop.touch()
    return bool(ranks)


def spoil(kind: str, checkpoint: Path, rng: random.Random) -> None:
    path = rng.choice(sorted(checkpoint.glob("*.distcp")))
    if kind.startswith("bit flip"):
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif kind.startswith("newest checkpoint cut"):
        os.truncate(path, rng.randrange(path.stat().st_size))
    else:
        path.unlink()


def saved_step_before(folder: RunFolder) -> int:
    """The step of the checkpoint before the newest: where an attempt begins whose newest is damaged."""
    return int(folder.whole_checkpoints()[-2].name.removeprefix("step_"))


def content(folder: RunFolder) -> dict[str, list]:
    """The tensors' files of the last checkpoint, by size and SHA-256."""
    files = json.loads((folder.checkpoint(STEPS) / "files.json").read_text())
    return {name: value for name, value in files.items() if name.endswith(".distcp")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chains", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.chdir(arguments.folder)
    work = Path("runs/faults")
    work.mkdir(parents=True)
    rng, found = random.Random(arguments.seed), []
    with Attempt(RunFolder(work / "reference")) as attempt:
        assert attempt.wait_for_end() == 0
    reference = content(RunFolder(work / "reference"))
    deck: list[str] = []
    for chain in range(arguments.chains):
        folder = RunFolder(work / f"chain_{chain}")
        for _ in range(7):
            deck = deck or rng.sample(KINDS, len(KINDS))
            kind = deck.pop()
            if "newest" in kind and len(folder.whole_checkpoints()) < 2:
                deck.insert(0, kind)
                kind = "kill one rank"
            if saved_step(folder) + 2 * SAVE_EVERY + 2 >= STEPS:
                deck.append(kind)
                break
            found.append(inject(kind, folder, rng))
            print(f"chain {chain}  {kind:38s} exit {found[-1]['exit']:3d} after {found[-1]['seconds']:5.1f} s, at step "
                  f"{found[-1]['reached']}, saved {found[-1]['saved']}", flush=True)
        with Attempt(folder) as attempt:
            code = attempt.wait_for_end()
        same = code == 0 and content(folder) == reference
        print(f"chain {chain}  ends with {code}, weights and moments {'EQUAL to the bit' if same else 'DIFFERENT'}", flush=True)
        if not same:
            sys.exit(1)
    for kind in KINDS:
        of_kind = [f for f in found if f["kind"] == kind]
        if of_kind:
            print(f"{kind:38s} {len(of_kind)} times, exit {sorted({f['exit'] for f in of_kind})}, ended within "
                  f"{max(f['seconds'] for f in of_kind):.1f} s, steps lost {sum(f['lost'] for f in of_kind)}")
    print(f"{len(found)} faults, {len(found)} recoveries, {sum(f['lost'] for f in found)} steps trained twice; "
          f"{arguments.chains} chains equal to the undisturbed run")


if __name__ == "__main__":
    main()

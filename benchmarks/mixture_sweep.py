"""The mixture study with its runs as a sweep on a private Slurm: `python benchmarks/mixture_sweep.py CORPORA STUDY`.

Runs benchmarks/mixture_study.sh on two fake nodes of one core (tests/launch/private_slurm.py). When three runs are done it kills
the script that waits for the sweep; when two more are half trained it pulls the plug of one's node and requeues the other; then it
gives the same command again and does nothing more. Prints what the sweep said, and how many segments each run took.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests" / "launch")]

from private_slurm import PrivateSlurm, wait_for  # noqa: E402


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # by way of `finally`
    corpora, study = (Path(word).absolute() for word in sys.argv[1:3])
    slurm = PrivateSlurm(2, SLURM_CI_NODE_TIMEOUT="10", SLURM_CI_CPUS="1")
    slurm.start()
    try:
        begun = time.monotonic()
        with start(corpora, study, slurm) as waiting:
            wait_for(lambda: len(list(study.glob("runs/*/done"))) >= 3 or waiting.poll() is not None, 3600, "three runs")
            os.killpg(waiting.pid, signal.SIGKILL)
        print(f"{time.monotonic() - begun:.0f} s: killed the script that waited", flush=True)
        wait_for(lambda: half_trained(study) == 2, 600, "two runs")
        jobs = dict(line.split() for line in slurm.command("squeue", "--noheader", "--states=R", "--format=%N %A").splitlines())
        print(f"running: {jobs}; the plug of node002 is pulled, the run on node001 requeued", flush=True)
        slurm.node("fail", "node002")
        slurm.command("scontrol", "requeue", jobs["node001"])
        time.sleep(5)
        slurm.node("up", "node002")
        with start(corpora, study, slurm) as waiting:
            code = waiting.wait()
        print(f"{time.monotonic() - begun:.0f} s: exit code {code}")
    finally:
        slurm.stop()
    for run in sorted(path.parent for path in study.glob("runs/*/segments.jsonl")):
        events = [json.loads(line) for line in (run / "segments.jsonl").read_text().splitlines()]
        steps = Counter(json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line)
        print(f"{run.name}: {sum(event['event'] == 'start' for event in events)} segment(s), last {events[-1]['outcome']}, "
              f"{len(steps)} steps, {sum(number > 1 for number in steps.values())} of them twice")


def half_trained(study: Path) -> int:
    """Runs that are between step 50 and their last."""
    metrics = [path for path in study.glob("runs/*/metrics.jsonl") if not (path.parent / "done").exists()]
    return sum(50 <= path.read_text().count('"loss"') < 140 for path in metrics)


def start(corpora: Path, study: Path, slurm: PrivateSlurm) -> subprocess.Popen:
    environment = os.environ | slurm.env | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(REPOSITORY / "benchmarks/mixture_study.sh"), str(corpora), str(study), "12", "150", "local"]
    return subprocess.Popen(command, cwd=study.parent, env=environment, start_new_session=True)


if __name__ == "__main__":
    main()

"""A trainer without torch, for what lies between Slurm and the job script; a cluster file that starts it."""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SAVE_EVERY = 40  # steps; 20 of them a second

STAND_IN = """#!{python} -SE
# Takes torchrun's arguments; the first task plays rank 0: 20 steps a second, a checkpoint every 40 and when asked.
import os, pathlib, signal, sys, time
if sys.argv[1:2] == ["-m"] and sys.argv[2].startswith("launch."):  # the gate and the reasons of failures are the real ones
    os.execv("{python}", ["{python}", *sys.argv[1:]])
if not sys.argv[1].startswith("-"):  # a tool of tools/
    os.execv("{python}", ["{python}", *sys.argv[1:]])
asked = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda *_: asked.append(1))
run, step, last = pathlib.Path(sys.argv[-1]).parent, 0, {num_steps}
if os.environ["SLURM_PROCID"] != "0":
    while not asked and not (run / "stopped").exists() and not (run / "done").exists():
        time.sleep(0.1)
    sys.exit(0)
if (run / "fill").exists():  # a checkpoint on a disk that is too small
    pathlib.Path((run / "fill").read_text(), "checkpoint").write_bytes(bytes(1 << 20))
print("the key is there" if os.environ.get("WANDB_API_KEY") else "no key", flush=True)
saved = sorted(run.glob("checkpoints/step_*/state.json"))
step = int(saved[-1].parent.name[5:]) if saved else 0
def save():
    (run / f"checkpoints/step_{{step:07d}}").mkdir(parents=True, exist_ok=True)
    (run / f"checkpoints/step_{{step:07d}}/state.json").write_text("{{}}")
while step < last and not asked and not (run / "stop").exists():
    time.sleep(0.05)
    step += 1
    print("step", step, flush=True)
    if step % {save_every} == 0:
        save()
save()
if step == last:
    (run / "done").write_text(f"{{step}}\\n")
else:
    (run / "stopped").write_text(f"{{step}} because somebody asked\\n")
(run / "stop").unlink(missing_ok=True)
"""


def stand_in_cluster(folder: Path, num_steps: int = 100_000, gate: str = "enabled = false", **words: str) -> Path:
    """The local cluster with the stand-in as its python; `words` go into its file as they stand."""
    python = folder / "stand_in"
    python.write_text(STAND_IN.format(python=sys.executable, num_steps=num_steps, save_every=SAVE_EVERY))
    python.chmod(0o755)
    local = (REPOSITORY / "launch" / "clusters" / "local.toml").read_text()
    more = "".join(f"{name} = {value}\n" for name, value in ({"max_idle_segments": "1"} | words).items())
    local = local.replace("\nranks_per_node", f'\npython = "{python}"\n{more}ranks_per_node', 1)
    path = folder / "stand_in.toml"
    path.write_text(local.replace("[gate]", f"[gate]\n{gate}"))
    return path

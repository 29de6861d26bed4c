"""A throw-away Slurm cluster on this machine, for tests: start, follow jobs, stop."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).resolve().parent / "slurm"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")


def why_absent() -> str | None:
    """What is missing for a private cluster; None if it can be started."""
    if not shutil.which("slurmctld", path=os.environ["PATH"] + ":/usr/sbin"):
        return "slurmctld is not installed (Debian: apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "the private Slurm cluster needs root: its nodes are namespaces"
    if subprocess.run(["unshare", "--pid", "--fork", "--uts", "--mount", "true"], capture_output=True).returncode:
        return "unshare is not allowed here (a container without CAP_SYS_ADMIN?): the nodes of the cluster are namespaces"
    return None


class PrivateSlurm:
    """Some fake nodes; `env` is what Slurm's commands need to find them."""

    def __init__(self, num_nodes: int = 2, **settings: str):
        self.folder = tempfile.mkdtemp(prefix="slurm")  # short: munge's socket lies in it, and AF_UNIX ends at 107 letters
        self.env = {"SLURM_CI_DIR": self.folder, "SLURM_CI_PORT": str(_free_port()), "SLURM_CI_GRACE": "60",
                    "SLURM_CI_NODES": str(num_nodes), "SLURM_CONF": f"{self.folder}/slurm.conf", **settings}
        self._jobs: list[str] = []

    def start(self) -> None:
        started = subprocess.run([SCRIPTS / "start-slurm.sh"], env=os.environ | self.env, capture_output=True, text=True,
                                 timeout=60)
        if started.returncode:
            self.stop()
            raise RuntimeError(f"start-slurm.sh failed:\n{started.stdout}{started.stderr}")

    def stop(self) -> None:
        for job in self._jobs:
            self.command("scancel", job, check=False)
        subprocess.run([SCRIPTS / "stop-slurm.sh"], env=os.environ | self.env, timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self, *words: str, check: bool = True) -> str:
        return subprocess.run(words, env=os.environ | self.env, check=check, capture_output=True, text=True, timeout=60).stdout

    def node(self, what: str, name: str) -> None:
        """Boot a node, pull its plug (noticed after the timeout), or pull it and have Slurm notice at once: up, down, fail."""
        subprocess.run([SCRIPTS / "node.sh", what, name], env=os.environ | self.env, check=True, timeout=30)

    def on_node(self, name: str, *command: str) -> str:
        """Run a command in the namespaces of a node, as its administrator."""
        parent = Path(self.folder, "run", f"{name}.init").read_text().strip()
        (pid,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return subprocess.run(["nsenter", "--target", pid, "--mount", "--uts", *command], check=True, capture_output=True,
                              text=True, timeout=30).stdout

    def remember(self, submitted: str) -> str:
        """The job id that submit.py printed."""
        job = re.search(r"submitted   job (\d+)", submitted)[1]
        self._jobs.append(job)
        return job

    def field(self, job: str, name: str) -> str:
        return re.search(rf" {name}=(\S+)", self.command("scontrol", "-o", "show", "job", job))[1]

    def wait_state(self, job: str, *states: str, seconds: float = 60) -> str:
        return wait_for(lambda: state if (state := self.field(job, "JobState")) in states else "", seconds,
                        f"job {job} in {states}")

    def start_requeued(self, job: str) -> None:
        """Start a requeued job now, instead of after the lifetime of its credential."""
        self.wait_state(job, "PENDING", seconds=120)
        time.sleep(2)  # the new credential must be younger than the old one
        self.command("scontrol", "update", f"JobId={job}", "StartTime=now")


def wait_for(condition, seconds: float, what: str) -> str:
    """The first true answer of `condition`, asked every 0.2 s; TimeoutError otherwise."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := condition():
            return answer
        time.sleep(0.2)
    raise TimeoutError(f"waited {seconds} s for {what}")


def _free_port() -> int:
    """A port such that it and the ports of up to four nodes (101 to 104 above it) are free."""
    for port in range(16_820, 19_000, 7):
        if all(_is_free(number) for number in (port, *range(port + 101, port + 105))):
            return port
    raise RuntimeError("no free ports for a Slurm cluster between 16820 and 19102")


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        try:
            candidate.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True

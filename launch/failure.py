"""Why did the ranks of a segment fail, where, and what now? `python -m launch.failure RUN --code N --log FILE --from BYTE`

In: the segment's part of the job's output, the launcher's exit code, RUN/heartbeats. Out: one line "KIND: what happened, on which
host and rank, in which phase; what to do", which is also the last line of RUN/failures.txt, and a second line "host=HOST"
with the host that the next attempt should avoid, if any. Exit code 0: another attempt may succeed; 1: it would fail again.

One failure makes many messages: when one rank dies, all others report the network. So the rules stand in the order of causes,
the most specific first, and the first rule that any line matches decides, not the first line. Standard library of Python 3.9
only: where the ranks run in a container, this runs outside of it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from launch.check_node import HARDWARE_XIDS

# torch.save says "iostream error" or "unexpected pos" where the disk is full (seen with torch 2.13).
_MOST_BYTES = 8 << 20  # of the end of a log
_NETWORK = (
    r"NCCL WARN|NCCL error|nccl(System|Remote|Internal|Unhandled)\w*Error|NET/(IB|OFI|Socket)"
    r"|Watchdog caught collective operation timeout"
    r"|Connection (closed by peer|reset by peer|refused|timed out)|gloo[:/]|Rendezvous\w*Error|DistNetworkError|DistStoreError"
    r"|DistBackendError|Socket Timeout|No route to host|Name or service not known|Temporary failure in name resolution"
    r"|Broken pipe|client socket has (failed|timed out)|BrokenPipeError|Timed out (after|waiting)|store->get|TCPStore"
)
# An exception's last line, with the rank that torch puts before it; not those that only pass on another process's failure.
_EXCEPTION = (
    r"^(?:\[rank\d+\]:\s*|\[\w+\d+\]:\s*)?(?!\S*(?:ChildFailedError|SignalException|KeyboardInterrupt|SystemExit))"
    rf"(?!.*(?:{_NETWORK}))[A-Za-z_][\w.]*(?:Error|Exception)\b"
)


@dataclass(frozen=True)
class Rule:
    """A line that matches `pattern` means a failure of this kind."""

    kind: str
    pattern: str
    what_now: str
    comes_back: bool = False


RULES = [
    Rule("preemption", r"DUE TO PREEMPTION", "nothing: it comes back when there is room", True),
    Rule("time limit", r"DUE TO TIME LIMIT", "raise save_margin_seconds in the cluster file: the save did not fit", True),
    Rule(
        "hardware",
        r"DUE TO NODE FAILURE|Node failure on|node \S+ (is|went) down|Communication connection failure",
        "nothing: the node is left out",
        True,
    ),
    Rule(
        "hardware",
        rf"Xid \([^)]*\): ({'|'.join(map(str, sorted(HARDWARE_XIDS)))})\b|[Uu]ncorrectable (ECC|NVLink) error|fallen off the bus"
        r"|Unable to determine the device handle|system not yet initialized|CUDA-capable device\(s\) is/are busy"
        r"|no CUDA-capable device|Bus error.*nvidia|Hardware Error",
        "report the node to the site; the next attempt leaves it out",
        True,
    ),
    Rule(
        "GPU memory",
        r"torch\.(cuda\.)?OutOfMemoryError|CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|[Cc]uda failure.*out of memory",
        "more budget.recompute or parallel.pp, or a smaller budget.micro_batch_size: python tools/plan_run.py CONFIG --advise",
    ),
    Rule(
        "shared memory",
        r"out of shared memory|insufficient shared memory|No space left on device.*/dev/shm|/dev/shm.*No space left",
        "a larger /dev/shm (container: --shm-size), or fewer data.num_workers",
    ),
    Rule(
        "host memory",
        r"oom[-_]kill|Out [Oo]f [Mm]emory|OOM [Kk]illed|^(\[rank\d+\]:\s*)?MemoryError|Cannot allocate memory"
        r"|can't allocate memory|killed by signal: Killed",
        "more memory for the job (--mem), or fewer data.num_workers",
        True,
    ),
    Rule(
        "full disk",
        r"No space left on device|Disk quota exceeded|File too large|\[Errno (28|122)\]|iostream error|unexpected pos \d+ vs"
        r"|PytorchStreamWriter failed",
        "make room or raise the quota (budget.keep_checkpoints keeps fewer), then submit again",
    ),
    Rule(
        "file system",
        r"Stale file handle|Input/output error|Remote I/O error|Transport endpoint|transport endpoint shutdown"
        r"|Read-only file system|LustreError",
        "nothing, or report the file system to the site",
        True,
    ),
    Rule(
        "data",
        r"^error: .*(token set|data\.blend|\.bin\b|\.idx\b|shard|document)|CorpusError|index file .* (corrupt|damaged)",
        "mend the data, then submit again",
    ),
    Rule("user error", r"^error: ", "mend it, then submit again"),
    Rule(
        "environment",
        r"ModuleNotFoundError|ImportError|cannot open shared object file|command not found|Unable to locate a modulefile"
        r"|CUDA driver version is insufficient|forward compatibility was attempted|execve\(\)|could not open image"
        r"|GLIBC\S* not found|setup failed: ",
        "mend setup, python or container in the cluster file, then submit again",
    ),
    Rule(
        "crash",
        r"Segmentation fault|SIGSEGV|device-side assert|illegal memory access|SIGABRT.*(?!NCCL)|core dumped",
        "look at the log above this line; report it with the log",
    ),
    Rule("program", _EXCEPTION, "look at the traceback in the log; report it with the log"),
    Rule(
        "host memory",
        r"failed \(exitcode: -9\)",
        "probably the kernel took a process that was too large: more memory for the job (--mem), or fewer data.num_workers",
        True,
    ),
    Rule("network", _NETWORK, "nothing; if it repeats on one host, report that host to the site", True),
]


@dataclass(frozen=True)
class Failure:
    """What happened; `host`, `rank` and `phase` are empty where nothing says them."""

    kind: str
    evidence: str
    what_now: str
    comes_back: bool
    host: str = ""
    rank: str = ""
    phase: str = ""

    def __str__(self) -> str:
        where = [f"on {self.host}" * bool(self.host), f"rank {self.rank}" * bool(self.rank), f"in {self.phase}" * bool(self.phase)]
        place = " ".join(word for word in where if word)
        return f"{self.kind}: {self.evidence[:240]}{f' ({place})' if place else ''}; what to do: {self.what_now}"


def classify(text: str, code: int, run: Path | None = None) -> Failure:
    """The failure that a segment's output and exit code tell of."""
    lines = text.splitlines()
    for rule in RULES:
        pattern = re.compile(rule.pattern)
        for number, line in enumerate(lines):
            if pattern.search(line):
                return _located(rule, lines, number, run)
    named = {2: "the job was prepared wrongly", 137: "killed (SIGKILL)", 143: "ended by a signal (SIGTERM)"}
    comes_back = code in (137, 143)
    return Failure(
        "unknown",
        f"exit code {code}{f', {named[code]}' if code in named else ''}, and nothing known in the output",
        "look at the log above this line",
        comes_back,
    )


def _located(rule: Rule, lines: list[str], number: int, run: Path | None) -> Failure:
    line, block = lines[number], "\n".join(lines)
    rank = _first(r"\[rank(\d+)\]|\brank[ =](\d+)\b", line) or _rank_of_root_cause(block)
    host = _first(r"[Nn]ode failure on ([\w.-]+)|\bnode (\w+\d[\w.-]*)|slurmstepd-([\w.-]+):|srun: error: ([\w.-]+): task", line)
    beat = _heartbeat(run, rank) if run and rank else {}
    host = host or beat.get("host", "") or _first(r"^\s*host\s*:\s*(\S+)", _root_cause(block)) or _host_that_ended(lines)
    trace = "\n".join(lines[max(0, number - 40) : number])
    return Failure(rule.kind, _plain(line), rule.what_now, rule.comes_back, host.split(".")[0], rank, _phase(trace, beat))


def _root_cause(text: str) -> str:
    """torchrun's block about the rank that failed first; of several nodes' blocks the earliest."""
    blocks = re.findall(r"Root Cause \(first observed failure\):\n(.*?)(?:\n=+|\Z)", text, re.DOTALL)
    return min(blocks, key=lambda block: _first(r"time\s*:\s*(\S+)", block), default="")


def _rank_of_root_cause(text: str) -> str:
    return _first(r"^\s*rank\s*:\s*(\d+)", _root_cause(text))


def _host_that_ended(lines: list[str]) -> str:
    """The first host that srun says a task ended badly on."""
    return next((match[1] for line in lines if (match := re.match(r"srun: error: ([\w.-]+): task", line))), "")


def _phase(trace: str, beat: dict) -> str:
    """The pass from the traceback, else where the rank's heartbeat last was."""
    for word, pattern in (
        ("the optimizer's step", r"in step\b.*optim|/optimizer/|optimizer\.step"),
        ("the backward pass", r"autograd|\bbackward\b"),
        ("the forward pass", r"in forward\b|forward_step"),
    ):
        if re.search(pattern, trace):
            return f"{word} after step {beat['step']}" if beat else word
    return f"{beat['phase']} after step {beat['step']}" if beat else ""


def _heartbeat(run: Path, rank: str) -> dict:
    try:
        return json.loads((run / "heartbeats" / f"rank_{int(rank):04d}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _plain(line: str) -> str:
    """The message without torch's rank, times and log levels before it."""
    return re.sub(r"^(\[rank\d+\]:|\[\w+\d*\]:|[IWEF]\d{4} [\d:.]+ \S+ \S+\]|\S+ \S+ slurmstepd\S*:)\s*", "", line.strip()).strip()


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    return next((group for group in match.groups() if group), "") if match else ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m launch.failure")
    parser.add_argument("run", type=Path)
    parser.add_argument("--code", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True, help="the job's output; nothing is read where it is no file")
    parser.add_argument("--from", dest="begin", type=int, default=0, help="byte at which the segment's output begins")
    words = parser.parse_args()
    text = ""
    if words.log.is_file():
        with open(words.log, "rb") as stream:
            stream.seek(max(words.begin, words.log.stat().st_size - _MOST_BYTES))
            text = stream.read().decode("utf-8", errors="replace")
    failure = classify(text, words.code, words.run)
    with open(words.run / "failures.txt", "a", encoding="utf-8") as stream:
        print(f"{time.strftime('%FT%TZ', time.gmtime())} {failure}", file=stream)
    print(failure)
    print(f"host={failure.host if failure.kind == 'hardware' else ''}")
    sys.exit(not failure.comes_back)


if __name__ == "__main__":
    main()

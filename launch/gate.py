"""Which nodes are fit? `python -m launch.gate GATE_FOLDER GATE.json --nodes a,b,c --wanted 2 [--network]`

In: what check_node and check_network wrote, the cluster's expectations. Out: lines for the job's log, which name every bad node
and why, and the files `fit` (all that are), `good` (the first WANTED of them) and `bad`. Exit code 1 if too few are fit.
A node is bad if it did not answer, says itself that something failed, misses an expectation by more than the tolerance, is
that much slower than the median of the nodes where nothing is expected, has other libraries than most, or another clock.
Of a slow pair of nodes that one is bad which is in more slow pairs; of two alike, the later one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

Bad = dict[str, list[str]]


def main() -> None:
    words = _arguments()
    wanted = json.loads(words.expectations.read_text(encoding="utf-8"))
    nodes = words.nodes.split(",")
    found = {node: _read(words.folder / f"node_{node.split('.')[0]}.json") for node in nodes}
    bad = judge(found, wanted, begun=float((words.folder / "begun").read_text()), ended=time.time())
    if words.network:
        fit = (words.folder / "fit").read_text().strip().split(",")
        network = {node: _lines(words.folder / f"network_{node.split('.')[0]}.jsonl") for node in fit}
        for node, reasons in judge_network(network, wanted).items():
            bad.setdefault(node, []).extend(reasons)
        _print_network(network)
    for node, reasons in bad.items():
        print(f"gate: {node} is bad: {'; '.join(reasons)}")
    fit = [node for node in nodes if node not in bad]
    good = fit[: words.wanted]
    for name, hosts in (("fit", fit), ("good", good), ("bad", bad)):
        (words.folder / name).write_text(",".join(hosts) + "\n", encoding="utf-8")
    spared = f", {len(fit) - len(good)} spare" if len(fit) > len(good) else ""
    print(f"gate: {len(fit)} of {len(nodes)} node(s) are fit, {words.wanted} are needed{spared}{_summary(found, fit)}", flush=True)
    sys.exit(len(fit) < words.wanted)


def judge(found: dict[str, dict[str, Any] | None], wanted: dict[str, Any], begun: float, ended: float) -> Bad:
    """Why each bad node is bad; `found` holds each node's measurements, None if it did not answer."""
    bad: Bad = {node: [f"did not answer within {wanted['seconds']} s"] for node, measured in found.items() if measured is None}
    there = {node: measured for node, measured in found.items() if measured}
    for node, measured in there.items():
        reasons = [*measured["problems"], *_gpu_reasons(measured, wanted)]
        # it measured between these two moments of this machine's clock
        if (skew := max(begun - measured["time"], measured["time"] - ended, 0.0)) > wanted["clock_skew_seconds"]:
            reasons.append(f"its clock is off by at least {skew:.1f} s")
        bad[node] = reasons
    for word, unit in (("gemm_tflops", "TFLOP/s"), ("memory_gb_s", "GB/s"), ("local_mb_s", "MB/s"), ("shared_mb_s", "MB/s")):
        _add_slow(bad, there, word, unit, wanted)
    _add_other_versions(bad, there)
    return {node: reasons for node, reasons in bad.items() if reasons}


def _gpu_reasons(measured: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    gpus, reasons = measured.get("gpus") or [], list(measured.get("xids") or [])
    if wanted["gpus"] and len(gpus) != wanted["gpus"] and not measured["problems"]:
        reasons.append(f"{len(gpus)} GPUs, not {wanted['gpus']}")
    for gpu in gpus:
        name, memory = f"GPU {gpu['index']}", (gpu["memory_mib"] or 0) / 1024
        if wanted["gpu_memory_gib"] and memory < 0.97 * wanted["gpu_memory_gib"]:
            reasons.append(f"{name} has {memory:.1f} GiB, not {wanted['gpu_memory_gib']}")
        if gpu["ecc_errors"]:
            reasons.append(f"{name} has {gpu['ecc_errors']} uncorrected ECC errors")
        if wanted["sm_clock_mhz"] and (gpu["sm_clock_mhz"] or 0) < wanted["sm_clock_mhz"]:
            reasons.append(f"{name} runs at {gpu['sm_clock_mhz']} MHz ({gpu['temperature']} degrees), not {wanted['sm_clock_mhz']}")
    return reasons


def _add_slow(bad: Bad, there: dict[str, dict[str, Any]], word: str, unit: str, wanted: dict[str, Any]) -> None:
    """The slowest device of a node counts."""
    values = {
        node: min(value) if isinstance(value, list) else value for node, measured in there.items() if (value := measured.get(word))
    }
    if wanted[word] is None and len(values) < 3:
        return  # of two nodes that differ nobody knows which is right
    expected = wanted[word] or statistics.median(values.values())
    for node, value in values.items():
        if value < wanted["tolerance"] * expected:
            devices = there[node][word]
            where = f" (GPU {devices.index(value)})" if isinstance(devices, list) and len(devices) > 1 else ""
            than = "expected" if wanted[word] else "the median"
            bad[node].append(
                f"{word.rsplit('_', 2 if word.endswith('_s') else 1)[0]} {value:.4g} {unit}{where}, {than} is {expected:.4g}"
            )


def _add_other_versions(bad: Bad, there: dict[str, dict[str, Any]]) -> None:
    names = {name for measured in there.values() for name in measured["versions"]}
    for name in sorted(names):
        by_node = {node: measured["versions"].get(name, "") for node, measured in there.items()}
        ((most, _),) = Counter(by_node.values()).most_common(1)  # of equally many, the first node's
        for node, version in by_node.items():
            if version != most:
                bad[node].append(f"{name} is {version or 'missing'}, on most nodes {most or 'missing'}")


def judge_network(network: dict[str, list[dict[str, Any]]], wanted: dict[str, Any]) -> Bad:
    """Why each node is bad by what it exchanged; `network` holds each node's lines, none if it never began."""
    bad: Bad = {node: ["it did not reach the other nodes"] for node, lines in network.items() if not lines}
    if len(bad) == len(network):
        return bad  # nobody met anybody
    names = {node.split(".")[0]: node for node in network}
    seen: dict[frozenset[str], list[float]] = {}
    for node, lines in network.items():
        for line in lines:
            if abs(skew := line.get("clock_skew_seconds", 0.0)) > wanted["clock_skew_seconds"]:
                bad.setdefault(node, []).append(f"its clock is {skew:+.1f} s off the first node's")
            if "pair" in line:  # a line before the exchange, and one after it
                seen.setdefault(frozenset((node, names[line["pair"]])), []).extend([line["gb_s"]] if "gb_s" in line else [])
    speeds = {pair: min(values, default=0.0) for pair, values in seen.items()}
    expected = wanted["network_gb_s"] or (statistics.median(speeds.values()) if len(speeds) > 2 else 0.0)
    slow = {pair: speed for pair, speed in speeds.items() if speed < wanted["tolerance"] * expected or not speed}
    while slow:
        counts = Counter(node for pair in slow for node in pair)
        worst = max(counts, key=lambda node: (counts[node], list(network).index(node)))
        mine = {pair: speed for pair, speed in slow.items() if worst in pair}
        texts = [
            f"with {next(iter(pair - {worst}))} {f'{speed:.3g} GB/s' if speed else 'nothing came through'}"
            for pair, speed in mine.items()
        ]
        bad.setdefault(worst, []).append(f"slow pair(s): {', '.join(texts)}; expected {expected:.3g} GB/s")
        slow = {pair: speed for pair, speed in slow.items() if worst not in pair}
    return bad


def _print_network(network: dict[str, list[dict[str, Any]]]) -> None:
    pairs = {
        tuple(sorted((node.split(".")[0], line["pair"]))): line["gb_s"]
        for node, lines in network.items()
        for line in lines
        if "gb_s" in line
    }
    reduced = [line["all_reduce_gb_s"] for lines in network.values() for line in lines if "all_reduce_gb_s" in line]
    if pairs:
        slowest = min(pairs, key=pairs.get)
        together = f"; all-reduce {min(reduced):.3g} GB/s" if reduced else "; the all-reduce did not end"
        print(f"gate: {len(pairs)} pair(s), slowest {' and '.join(slowest)} with {pairs[slowest]:.3g} GB/s{together}")


def _summary(found: dict[str, dict[str, Any] | None], fit: list[str]) -> str:
    words = []
    for word, unit in (
        ("gemm_tflops", "TFLOP/s"),
        ("memory_gb_s", "GB/s"),
        ("local_mb_s", "MB/s local"),
        ("shared_mb_s", "MB/s shared"),
    ):
        values = [min(value) if isinstance(value, list) else value for node in fit if (value := (found[node] or {}).get(word))]
        if values:
            words.append(f"{min(values):.3g} to {max(values):.3g} {unit}")
    return f": {', '.join(words)}" if words else ""


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launch.gate")
    parser.add_argument("folder", type=Path)
    parser.add_argument("expectations", type=Path)
    parser.add_argument("--nodes", required=True)
    parser.add_argument("--wanted", type=int, required=True)
    parser.add_argument("--network", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Let every checkpoint of a run sit an exam: `python tools/exam_checkpoints.py RUN EXAM --tokenizer FILE`, also while it trains.

Takes RUN/weights/step_N (`budget.weights_every_tokens`) and RUN/checkpoints/step_N, exports each to a Hugging Face folder that is
deleted afterwards, and writes RUN/scores/NAME_step_N.json, which the report draws over tokens. What was examined is not examined
again; with `--watch SECONDS` it looks for new ones until the run is done.
"""

import argparse
import shutil
import time
from pathlib import Path

from megatron_jmed.convert.source import open_weights
from megatron_jmed.convert.weights import export_weights
from megatron_jmed.errors import ExamError, run_tool
from megatron_jmed.evaluate.prompt import TEMPLATES
from megatron_jmed.evaluate.sitting import SittingSettings, asked_questions, check_same_exam, take_exam
from megatron_jmed.run_folder import STATE_NAME, RunFolder, load_state

EXPORTS = "exam_hf"  # in the run folder, while an exam is taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("exam", type=Path, help="what tools/take_exam.py takes")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="FILE", help="SentencePiece model")
    parser.add_argument("--name", help="of the scores; default: the exam's")
    parser.add_argument("--template", choices=tuple(TEMPLATES), default="standard", help="words around the question")
    parser.add_argument("--chat", action="store_true", help="put the prompt into LLM-jp's chat template")
    parser.add_argument("--num-shots", type=int, default=0, help="solved examples before each question")
    parser.add_argument("--limit", type=int, help="ask only the first N questions")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="look again after so long, until the run is done")
    args = parser.parse_args()
    folder = RunFolder(args.run)
    if not folder.config.is_file():
        raise ExamError(f"{args.run}: no run folder; expected config.json in it")
    if args.watch is not None and not args.watch > 0:
        raise ExamError(f"--watch {args.watch:g}: give a number of seconds above 0")
    settings = {name: getattr(args, name) for name in ("template", "chat", "num_shots", "limit")}
    asked_questions(args.exam, SittingSettings(**settings))  # a bad exam is refused before anything is exported
    if args.watch is None and not saved_weights(folder):
        raise ExamError(f"{args.run}: the run has saved no weights yet; wait for them with --watch SECONDS")
    examined: set[str] = set()
    while True:
        is_done = folder.done.exists()  # asked first: what the run wrote before it was done is still looked at
        for checkpoint in [path for path in saved_weights(folder) if path.name not in examined]:
            examine(checkpoint, folder, args.exam, args.tokenizer, args.name or args.exam.resolve().stem, settings)
            examined.add(checkpoint.name)
        shutil.rmtree(folder.path / EXPORTS, ignore_errors=True)
        if args.watch is None or is_done:
            return
        time.sleep(args.watch)


def saved_weights(folder: RunFolder) -> list[Path]:
    """Whole checkpoints and saved weights, one for each step, oldest first."""
    states = [path for root in (folder.checkpoints, folder.weights) for path in root.glob(f"step_*/{STATE_NAME}")]
    found = {path.parent.name: path.parent for path in states}
    return [found[name] for name in sorted(found)]


def examine(checkpoint: Path, folder: RunFolder, exam: Path, tokenizer: Path, name: str, settings: dict) -> None:
    target = folder.path / f"scores/{name}_{checkpoint.name}.json"
    if target.exists():
        check_same_exam(target, exam, SittingSettings(**settings))
        return
    state = load_state(checkpoint)
    exported = folder.path / f"{EXPORTS}/{checkpoint.name}"
    shutil.rmtree(exported, ignore_errors=True)  # of an examination that was killed
    try:
        export_weights(open_weights(checkpoint), exported, tokenizer)
        scores = take_exam(exported, exam, target, SittingSettings(step=state.step, tokens=state.tokens, **settings))
    finally:
        shutil.rmtree(exported, ignore_errors=True)
    s = scores["accuracy"][scores["methods"][0]]
    print(f"{target}: {s['num_correct']}/{s['num_scored']}, {state.tokens:,} tokens", flush=True)


if __name__ == "__main__":
    run_tool(main)

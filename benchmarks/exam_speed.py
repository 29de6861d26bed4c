"""How much faster is option scoring with the prompt computed once, and with questions in one batch, than the plain way?

`python benchmarks/exam_speed.py HF_FOLDER EXAM [--num 100]`: every way scores the same questions in turn, three rounds in one
process; the plain way is one forward an option over prompt and option. Prints seconds (the best round), ratios, largest difference.
"""

import argparse
import time
from collections.abc import Callable

import torch

from megatron_jmed.errors import run_tool
from megatron_jmed.evaluate.answer import why_not_scored
from megatron_jmed.evaluate.exam import load_exam
from megatron_jmed.evaluate.hf_model import HfModel, load_hf_model
from megatron_jmed.evaluate.prompt import Prompt, render_prompt
from megatron_jmed.evaluate.question import Question

NUM_ROUNDS = 3


@torch.inference_mode()
def score_plainly(model: HfModel, prompt: Prompt, options: tuple[str, ...]) -> list[float]:
    request = model._request(prompt.text, options)
    totals = []
    for continuation in request.continuations:
        ids = torch.tensor([request.prefix + continuation], device=model.model.device)
        log_p = model.model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        start = len(request.prefix)
        totals.append(sum(log_p[start + i - 1, token].item() for i, token in enumerate(continuation)))
    return totals


def in_groups(model: HfModel, prompts: list[Prompt], questions: list[Question], size: int) -> list[list[float]]:
    totals = []
    for start in range(0, len(prompts), size):
        group = questions[start : start + size]
        totals += [s.log_likelihoods for s in model.score_options(prompts[start : start + size], [q.choices for q in group])]
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("hf_folder")
    parser.add_argument("exam")
    parser.add_argument("--num", type=int, default=100)
    args = parser.parse_args()
    model = load_hf_model(args.hf_folder)
    questions = [q for q in load_exam(args.exam).questions if why_not_scored(q) is None][: args.num]
    prompts = [render_prompt(q) for q in questions]
    ways: dict[str, Callable[[], list[list[float]]]] = {
        "plain": lambda: [score_plainly(model, p, q.choices) for p, q in zip(prompts, questions, strict=True)],
        "prompt once": lambda: in_groups(model, prompts, questions, 1),
        "prompt once, 8 questions a batch": lambda: in_groups(model, prompts, questions, 8),
        "prompt once, 32 questions a batch": lambda: in_groups(model, prompts, questions, 32),
    }
    seconds: dict[str, float] = dict.fromkeys(ways, float("inf"))
    found = {}
    for _ in range(NUM_ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            found[name] = way()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    print(f"{len(questions)} questions, {sum(len(q.choices) for q in questions)} options, {torch.get_num_threads()} threads")
    for name, took in seconds.items():
        apart = max(abs(a - b) for x, y in zip(found["plain"], found[name], strict=True) for a, b in zip(x, y, strict=True))
        print(f"{name:36}{took:8.2f} s   {seconds['plain'] / took:5.2f} x   differs by at most {apart:.1e}")


if __name__ == "__main__":
    run_tool(main)

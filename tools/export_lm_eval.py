"""Write an exam as a task of EleutherAI's lm-evaluation-harness: `python tools/export_lm_eval.py EXAM FOLDER --name igakuqa`.

Then: lm_eval --model hf --model_args pretrained=HF_FOLDER --include_path FOLDER --tasks igakuqa
"""

import argparse
from pathlib import Path

from megatron_jmed.errors import ExamError, run_tool
from megatron_jmed.evaluate.lm_eval_task import export_task
from megatron_jmed.evaluate.prompt import TEMPLATES
from megatron_jmed.evaluate.sitting import SittingSettings, years_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exam", type=Path, help="what tools/take_exam.py takes")
    parser.add_argument("folder", type=Path, help="where the task is written")
    parser.add_argument("--name", help="of the task; default: the exam's")
    plain = [name for name, template in TEMPLATES.items() if not template.is_chat]
    parser.add_argument("--template", choices=plain, default="standard", help="words around the question (default standard)")
    parser.add_argument("--compare", choices=("choice", "letter"), default="choice", help="the choices' words (default) or letters")
    parser.add_argument("--num-shots", type=int, default=0, help="solved examples before each question (default 0)")
    parser.add_argument("--demos", type=Path, help="where they come from; default: the train files, else the exam's other years")
    parser.add_argument("--seed", type=int, default=42, help="which examples are drawn (default 42)")
    parser.add_argument("--years", type=years_of, help="such as 2018,2019; default: all")
    args = vars(parser.parse_args())
    exam, folder, name = args.pop("exam"), args.pop("folder"), args.pop("name")
    settings = SittingSettings(target=args.pop("compare"), **args)
    name = name or exam.resolve().stem
    if "/" in name:
        raise ExamError(f"--name {name}: the name of a task and of its files holds no slash")
    counts = export_task(exam, folder, name, settings)
    print(f"{folder / name}.yaml: " + ", ".join(f"{count} {reason}" for reason, count in counts.most_common()))


if __name__ == "__main__":
    run_tool(main)

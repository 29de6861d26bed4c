"""Exams during training: at given token counts the model answers sheets (data/exam_sheet.py), and its log-likelihoods are written.

In: sheets, the stepper. Out: RUN/exams/NAME_step_N.json, from which tools/score_exams.py makes scores (evaluate never meets train
but on disk). Invariant: training computes the same with and without exams.
"""

import time

from megatron_jmed.config import RunConfig
from megatron_jmed.data.exam_sheet import ExamSheet, load_sheet, num_sheet_steps, sheet_batches
from megatron_jmed.parallel import Groups, World, device
from megatron_jmed.run_folder import RunFolder, write_json
from megatron_jmed.train.step import Stepper


def load_sheets(config: RunConfig) -> list[ExamSheet]:
    """Those of the config; CorpusError for the first that cannot be answered."""
    return [load_sheet(path, config.model.vocab_size, config.budget.seq_length) for path in config.exams.sheets]


class Exams:
    """Answers every sheet when its time has come."""

    def __init__(self, config: RunConfig, world: World, groups: Groups, stepper: Stepper):
        self._config, self._world, self._groups, self._stepper = config, world, groups, stepper
        self._sheets = load_sheets(config)
        self._every = config.steps_of(config.exams.every_tokens) if config.exams.every_tokens else 0

    def are_due(self, step: int) -> bool:
        """After `step`; always after the last."""
        return bool(self._every) and (step % self._every == 0 or step == self._config.num_steps)

    def sit(self, step: int) -> None:
        """Answer all sheets and write the answers. Collective over all ranks, which must hold whole weights."""
        for sheet in self._sheets:
            begin = time.perf_counter()
            batches = sheet_batches(self._config, sheet, self._groups, device())
            answers = self._stepper.log_likelihoods(batches, num_sheet_steps(self._config, sheet), len(sheet.rows))
            if self._world.rank == 0:
                self._write(sheet, step, answers, time.perf_counter() - begin)

    def _write(self, sheet: ExamSheet, step: int, answers: list[float], seconds: float) -> None:
        folder = RunFolder(self._config.run_folder).exams
        folder.mkdir(exist_ok=True)
        write_json(folder / f"{sheet.name}_step_{step:07d}.json", {
            "sheet": sheet.path, "sheet_sha256": sheet.sha256, "step": step, "tokens": step * self._config.tokens_per_step,
            "precision": self._config.precision.compute, "log_likelihoods": answers,
        })
        print(f"step {step}/{self._config.num_steps}  exam {sheet.name}: {len(answers)} options answered in {seconds:.1f} s",
              flush=True)

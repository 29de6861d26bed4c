"""Token sets + blend -> the sequences of each step, through Megatron-Core's GPTDataset, or for conversations through sft.py.

Documents are packed one after the other into sequences of `seq_length`; attention and positions run across documents,
as in the pre-training of LLM-jp-3, or (`data.attention`) stay within each; the last token of a document learns the first
of the next either way. Invariant: which sequences step N reads depends on config, token sets and N alone, not on the number
of ranks or on where the run was interrupted: sequence i of the global order belongs to step i // global_batch_size. So it
can be said of any step, without a log of it (replay.py), and a step that is skipped (`data.skip_steps`) takes its own
sequences with it and moves no other.

Steps count from 0 here and in the loop, and from 1 for people: in metrics.jsonl, `data.skip_steps`, checkpoints, replay.
"""

import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import megatron_jmed.parallel  # noqa: F401  (its CPU patches come before the first import of Megatron-Core)

# isort: split
import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.utils import Split

from megatron_jmed.config import RunConfig
from megatron_jmed.corpus.token_set import TokenSet
from megatron_jmed.data.batch import Batch, DocumentMarks, batch_from_sample
from megatron_jmed.data.batch_hashes import BatchHashes
from megatron_jmed.data.blended import BlendedSequences, blend, open_sources, take_turns
from megatron_jmed.data.index_cache import whole_cache
from megatron_jmed.data.sources import has_mark, index_cache_of, num_sequences
from megatron_jmed.parallel import JOB_SIGNALS, Groups
from megatron_jmed.run_folder import RunFolder


@dataclass(frozen=True)
class _TokenIds:
    """Stands for the tokenizer in Megatron-Core's dataset config: the ids are already written, none is special to it."""

    unique_identifiers: tuple[str, ...]  # becomes part of the index cache's name
    eod: int = -1
    pad: int = -1  # no id in the data equals it, so no label is masked by mistake
    vocab_size: int | None = None


@dataclass(frozen=True)
class PretrainData:
    """The blended sequences of a run; `valid` (every source alike) is None where nothing is kept for validation."""

    train: BlendedSequences
    valid: BlendedSequences | None
    source_names: tuple[str, ...]
    index_cache: Path

    def consumed_sequences(self, num_sequences: int, left_out: Iterable[tuple[int, int]] = ()) -> list[int]:
        """How many of the first `num_sequences` sequences came from each source, without the ranges `left_out` (begin, end)
        of them: an exact account, nothing logged."""
        def counts(begin: int, end: int) -> np.ndarray:
            return np.bincount(self.train.dataset_index[begin:end], minlength=len(self.source_names))

        found = counts(0, num_sequences)
        for begin, end in left_out:
            found -= counts(begin, end)
        return [int(count) for count in found]


def _document_marks(token_sets: list[TokenSet]) -> DocumentMarks:
    """What stands at the begin or the end of documents in any of the token sets (which share their tokenizer)."""
    ids = token_sets[0].tokenizer
    return DocumentMarks(begin=ids.bos_id if any(has_mark(token_set, "bos") for token_set in token_sets) else None,
                         end=ids.eos_id if any(has_mark(token_set, "eos") for token_set in token_sets) else None)


def build_data(config: RunConfig, token_sets: list[TokenSet]) -> PretrainData:
    """The run's sequences; an index cache that is not there is built by rank 0 first. Collective over all ranks."""
    weights, marks = [source.weight for source in config.data.blend], _document_marks(token_sets)
    num_train, num_valid = num_sequences(config)

    def build(cache: Path) -> tuple[BlendedSequences, BlendedSequences | None]:
        dataset_config = _dataset_config(config, token_sets, cache)
        train = BlendedSequences(open_sources(token_sets, config.data, Split.train, dataset_config),
                                 *blend(weights, num_train, cache), marks)
        valid = BlendedSequences(open_sources(token_sets, config.data, Split.valid, dataset_config),
                                 *take_turns(len(token_sets), num_valid), marks) if num_valid else None
        return train, valid

    caches, made_for = index_cache_of(config, token_sets)
    cache = whole_cache(caches, made_for, build)
    train, valid = build(cache)
    return PretrainData(train, valid, tuple(source.name for source in config.data.blend), cache)


def _dataset_config(config: RunConfig, token_sets: list[TokenSet], cache: Path) -> GPTDatasetConfig:
    return GPTDatasetConfig(
        random_seed=config.seed,
        sequence_length=config.budget.seq_length,
        split="1,0,0",  # read by Megatron-Core's builder alone, which is not used; it must be given
        path_to_cache=str(cache),
        tokenizer=_TokenIds(tuple(t.tokenizer_sha256 for t in token_sets)),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )


class _RankSequences(torch.utils.data.Sampler):
    """The indices that one data-parallel rank reads, micro-batch by micro-batch, from `start_step` on.

    Micro-batch m of a step holds sequences m*B .. (m+1)*B of the step; rank r of d takes micro-batches r, r+d, ...:
    the set of micro-batches, and with it the auxiliary loss, is the same for every number of ranks. Steps for which
    `is_skipped` are left out.
    """

    def __init__(self, start_step: int, num_steps: int, global_batch_size: int, micro_batch_size: int, rank: int, ranks: int,
                 is_skipped: Callable[[int], bool] = lambda _step: False):
        super().__init__()
        self.steps = [step for step in range(start_step, num_steps) if not is_skipped(step)]
        self.global_batch_size, self.micro_batch_size, self.rank, self.ranks = (
            global_batch_size, micro_batch_size, rank, ranks)

    def __len__(self) -> int:
        return len(self.steps) * self.global_batch_size // (self.micro_batch_size * self.ranks)

    def __iter__(self) -> Iterator[list[int]]:
        stride = self.micro_batch_size * self.ranks
        for step in self.steps:
            first = step * self.global_batch_size
            for start in range(first + self.rank * self.micro_batch_size, first + self.global_batch_size, stride):
                yield list(range(start, start + self.micro_batch_size))


def batches(config: RunConfig, dataset: BlendedSequences, groups: Groups, start_step: int, num_steps: int,
            device: torch.device) -> Iterator[Batch]:
    """This rank's micro-batches of steps `start_step` to `num_steps`, in order."""
    sampler = _RankSequences(start_step, num_steps, config.budget.global_batch_size, config.budget.micro_batch_size,
                             groups.dp.rank(), groups.dp.size())
    return _as_batches(config, dataset, groups, sampler, _loaded(config, dataset, sampler, device), device)


def train_batches(config: RunConfig, data: PretrainData, groups: Groups, start_step: int, device: torch.device) -> Iterator[Batch]:
    """This rank's micro-batches of every step from `start_step` on that is not skipped; what is handed out may be hashed."""
    sampler = _RankSequences(start_step, config.num_steps, config.budget.global_batch_size, config.budget.micro_batch_size,
                             groups.dp.rank(), groups.dp.size(), lambda step: config.data.is_skipped(step + 1))
    samples = _loaded(config, data.train, sampler, device)
    if config.log.hash_batches:
        hashes = BatchHashes(RunFolder(config.run_folder), torch.distributed.get_rank(), config.budget.global_batch_size)
        samples = hashes.recorded(iter(sampler), samples)
    return _as_batches(config, data.train, groups, sampler, samples, device)


def _loaded(config: RunConfig, dataset: BlendedSequences, sampler: _RankSequences,
            device: torch.device) -> Iterator[dict[str, Any]]:
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=config.data.num_workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_job_signals,
    )
    return iter(loader)


def _as_batches(config: RunConfig, dataset: BlendedSequences, groups: Groups, sampler: _RankSequences,
                samples: Iterator[dict[str, Any]], device: torch.device) -> Iterator[Batch]:
    marks = dataset.marks if config.data.attention == "document" else None
    size, step, weight = config.budget.global_batch_size, None, None
    for numbers, sample in zip(sampler, samples, strict=True):
        if step != numbers[0] // size:
            step = numbers[0] // size
            weight = dataset.mean_loss_weight(step * size, (step + 1) * size, size // config.budget.micro_batch_size)
        yield batch_from_sample(sample, device, groups.cp.rank(), groups.cp.size(), marks, weight)


def _ignore_job_signals(_worker: int) -> None:
    # Slurm sends the job's signals to every process of a step; a loader that dies of one takes the checkpoint with it.
    for number in JOB_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def blend_account(config: RunConfig, token_sets: list[TokenSet], data: PretrainData, num_steps_done: int) -> dict[str, Any]:
    """What was planned and what was read, by source, in tokens: the content of RUN/blend.json. Skipped steps are neither."""
    seq_length, batch = config.budget.seq_length, config.budget.global_batch_size

    def sequences(num_steps: int) -> list[int]:
        skipped = [((first - 1) * batch, last * batch) for first, last in config.data.skipped_ranges(num_steps)]
        return data.consumed_sequences(num_steps * batch, skipped)

    planned, consumed = sequences(config.num_steps), sequences(num_steps_done)
    skipped_done = config.data.num_skipped(num_steps_done)
    total_weight = sum(source.weight for source in config.data.blend)
    sources = []
    rows = zip(config.data.blend, token_sets, data.train.sources, planned, consumed, strict=True)
    for source, token_set, sequences_of, plan, done in rows:
        train_tokens = token_set.num_tokens * (1 - config.data.valid_ratio)
        packed = {}
        if token_set.is_conversations:  # a row counts whole, with what is left over
            train_tokens = sequences_of.num_sequences * seq_length
            packed = {"sequences_an_epoch": sequences_of.num_sequences, "fill_ratio": sequences_of.fill_ratio}
        sources.append({
            "name": source.name,
            "path": source.path,
            "lang": source.lang,
            "origin": token_set.origin,
            "weight": source.weight / total_weight,
            "num_documents": token_set.num_documents,
            "num_tokens": token_set.num_tokens,
            "planned_tokens": plan * seq_length,
            "consumed_tokens": done * seq_length,
            "epochs": done * seq_length / train_tokens,
            "planned_epochs": plan * seq_length / train_tokens,
            **packed,
        })
    return {"total_tokens": sum(planned) * seq_length, "consumed_tokens": sum(consumed) * seq_length,
            "skipped_tokens": skipped_done * config.tokens_per_step, "sources": sources}

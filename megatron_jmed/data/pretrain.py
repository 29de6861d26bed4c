"""Token sets + blend -> the sequences of each step, through Megatron-Core's GPTDataset.

Documents are packed one after the other into sequences of `seq_length`; attention and positions run across documents,
as in the pre-training of LLM-jp-3, or (`data.attention`) stay within each; the last token of a document learns the first
of the next either way. Invariant: which sequences step N reads depends on config, token sets and N alone, not on the number
of ranks or on where the run was interrupted: sequence i of the global order belongs to step i // global_batch_size.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.utils import Split

from megatron_jmed.config import RunConfig
from megatron_jmed.corpus.tokens import TokenSet, load_token_set
from megatron_jmed.data.batch import Batch, DocumentMarks, batch_from_sample
from megatron_jmed.data.blended import BlendedSequences, blend, open_sources, take_turns
from megatron_jmed.data.index_cache import whole_cache
from megatron_jmed.errors import CorpusError
from megatron_jmed.parallel import Groups
from megatron_jmed.run_folder import RunFolder


@dataclass(frozen=True)
class _TokenIds:
    """Stands for the tokenizer in Megatron-Core's dataset config: the ids are already written, none is special to it."""

    unique_identifiers: tuple[str, ...]  # becomes part of the index cache's name
    marks: DocumentMarks
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

    def consumed_sequences(self, num_sequences: int) -> list[int]:
        """How many of the first `num_sequences` sequences came from each source: an exact account, nothing logged."""
        counts = np.bincount(self.train.dataset_index[:num_sequences], minlength=len(self.source_names))
        return [int(count) for count in counts]


def load_token_sets(config: RunConfig) -> list[TokenSet]:
    """The token sets of the blend, checked against the config; CorpusError names all that is wrong, at once."""
    if not config.data.blend:
        raise CorpusError("data.blend is empty; name at least one token set (see megatron_jmed/recipes/blends.py)")
    found, wrong = [], []
    for source in config.data.blend:
        try:
            token_set = load_token_set(Path(source.path))
        except CorpusError as error:
            wrong.append(f"data.blend source {source.name!r}: {error}")
            continue
        wrong += _mismatches(config, source.name, token_set)
        found.append(token_set)
    tokenizers = {token_set.tokenizer_sha256 for token_set in found}
    if len(tokenizers) > 1:
        wrong.append(f"data.blend: the token sets were made with {len(tokenizers)} different tokenizers; use one for all")
    if wrong:
        raise CorpusError("\n".join(wrong) if len(wrong) == 1 else
                          f"{len(wrong)} problems\n" + "\n".join(f"  - {problem}" for problem in wrong))
    return found


def _mismatches(config: RunConfig, name: str, token_set: TokenSet) -> list[str]:
    wrong = []
    if token_set.is_sentences:
        wrong.append(f"data.blend source {name!r} holds sentences, which Megatron-Core's GPTDataset would shuffle one by one, each "
                     "for a document; tokenise without --split-sentences")
    if token_set.vocab_size != config.model.vocab_size:
        wrong.append(f"data.blend source {name!r} was tokenised with {token_set.vocab_size} pieces; model.vocab_size is "
                     f"{config.model.vocab_size}")
    if config.data.attention == "document" and not any(_has_mark(token_set, mark) for mark in ("bos", "eos")):
        wrong.append(f'data.blend source {name!r} marks neither begin nor end of its documents (it was tokenised with --no-bos '
                     '--no-eos), so data.attention="document" cannot tell them apart; tokenise it with one of the two')
    train_share = 1 - config.data.valid_ratio
    if token_set.num_tokens * train_share <= config.budget.seq_length:
        wrong.append(f"data.blend source {name!r} has {token_set.num_tokens} tokens, less than one sequence of "
                     f"budget.seq_length={config.budget.seq_length} plus its validation share")
    if config.data.valid_ratio and round(token_set.num_documents * config.data.valid_ratio) < 1:
        wrong.append(f"data.blend source {name!r} has {token_set.num_documents} documents, too few for "
                     f"data.valid_ratio={config.data.valid_ratio}; use 0 or at least "
                     f"{1 / token_set.num_documents:.3f}")
    return wrong


def _has_mark(token_set: TokenSet, mark: Literal["bos", "eos"]) -> bool:
    return bool(token_set.manifest.settings.get(mark))


def _document_marks(token_sets: list[TokenSet]) -> DocumentMarks:
    """What stands at the begin or the end of documents in any of the token sets (which share their tokenizer)."""
    ids = token_sets[0].tokenizer
    return DocumentMarks(begin=ids.bos_id if any(_has_mark(token_set, "bos") for token_set in token_sets) else None,
                         end=ids.eos_id if any(_has_mark(token_set, "eos") for token_set in token_sets) else None)


def build_data(config: RunConfig, token_sets: list[TokenSet]) -> PretrainData:
    """The run's sequences; an index cache that is not there is built by rank 0 first. Collective over all ranks."""
    prefixes = [token_set.prefix for token_set in token_sets]
    weights = [source.weight for source in config.data.blend]
    batch, valid_ratio = config.budget.global_batch_size, config.data.valid_ratio
    num_train, num_valid = config.num_steps * batch, config.budget.eval_steps * batch if valid_ratio else 0

    def build(cache: Path) -> tuple[BlendedSequences, BlendedSequences | None]:
        dataset_config = _dataset_config(config, token_sets, cache)
        train = BlendedSequences(open_sources(prefixes, valid_ratio, Split.train, dataset_config),
                                 *blend(weights, num_train, cache))
        valid = BlendedSequences(open_sources(prefixes, valid_ratio, Split.valid, dataset_config),
                                 *take_turns(len(prefixes), num_valid)) if num_valid else None
        return train, valid

    made_for = {"order": 2, "seed": config.seed, "seq_length": config.budget.seq_length, "num_sequences": [num_train, num_valid],
                "valid_ratio": valid_ratio,
                "token_sets": [{"prefix": token_set.prefix, "weight": weight, "tokenizer": token_set.tokenizer_sha256,
                                "sha256": {file.path: file.sha256 for file in token_set.manifest.files}}
                               for token_set, weight in zip(token_sets, weights, strict=True)]}
    caches = Path(config.data.cache_folder or RunFolder(config.run_folder).index_cache)
    cache = whole_cache(caches, made_for, build)
    train, valid = build(cache)
    return PretrainData(train, valid, tuple(source.name for source in config.data.blend), cache)


def _dataset_config(config: RunConfig, token_sets: list[TokenSet], cache: Path) -> GPTDatasetConfig:
    return GPTDatasetConfig(
        random_seed=config.seed,
        sequence_length=config.budget.seq_length,
        split="1,0,0",  # read by Megatron-Core's builder alone, which is not used; it must be given
        path_to_cache=str(cache),
        tokenizer=_TokenIds(tuple(t.tokenizer_sha256 for t in token_sets), _document_marks(token_sets)),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )


class _RankSequences(torch.utils.data.Sampler):
    """The indices that one data-parallel rank reads, micro-batch by micro-batch, from `start_step` on.

    Micro-batch m of a step holds sequences m*B .. (m+1)*B of the step; rank r of d takes micro-batches r, r+d, ...:
    the set of micro-batches, and with it the auxiliary loss, is the same for every number of ranks.
    """

    def __init__(self, start_step: int, num_steps: int, global_batch_size: int, micro_batch_size: int, rank: int, ranks: int):
        super().__init__()
        self.steps = range(start_step, num_steps)
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
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=config.data.num_workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_job_signals,
    )
    marks = dataset.config.tokenizer.marks if config.data.attention == "document" else None
    return (batch_from_sample(sample, device, groups.cp.rank(), groups.cp.size(), marks) for sample in loader)


def _ignore_job_signals(_worker: int) -> None:
    # Slurm sends the job's signals to every process of a step; a loader that dies of one takes the checkpoint with it.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def blend_account(config: RunConfig, token_sets: list[TokenSet], data: PretrainData, num_steps_done: int) -> dict[str, Any]:
    """What was planned and what was read, by source, in tokens: the content of RUN/blend.json."""
    seq_length, batch = config.budget.seq_length, config.budget.global_batch_size
    planned = data.consumed_sequences(config.num_steps * batch)
    consumed = data.consumed_sequences(num_steps_done * batch)
    total_weight = sum(source.weight for source in config.data.blend)
    sources = []
    for source, token_set, plan, done in zip(config.data.blend, token_sets, planned, consumed, strict=True):
        train_tokens = token_set.num_tokens * (1 - config.data.valid_ratio)
        sources.append({
            "name": source.name,
            "path": source.path,
            "lang": source.lang,
            "weight": source.weight / total_weight,
            "num_documents": token_set.num_documents,
            "num_tokens": token_set.num_tokens,
            "planned_tokens": plan * seq_length,
            "consumed_tokens": done * seq_length,
            "epochs": done * seq_length / train_tokens,
            "planned_epochs": plan * seq_length / train_tokens,
        })
    return {"total_tokens": config.num_steps * config.tokens_per_step,
            "consumed_tokens": num_steps_done * config.tokens_per_step, "sources": sources}

"""Which token sets does a run read, do they fit it, and what does the order of its sequences depend on?

In: a config. Out: its token sets, checked; and what the index cache of its sequences is made for, so that whoever asks
finds the same cache. Nothing here touches torch: a login node can ask what a run reads.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from megatron_jmed.config import RunConfig
from megatron_jmed.corpus.indexed import read_index
from megatron_jmed.corpus.token_set import TokenSet, load_token_set
from megatron_jmed.data.packing import packing
from megatron_jmed.errors import CorpusError
from megatron_jmed.run_folder import RunFolder


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
    wrong = _conversation_problems(config, name, token_set) if token_set.is_conversations else []
    if token_set.is_sentences:
        wrong.append(f"data.blend source {name!r} holds sentences, which Megatron-Core's GPTDataset would shuffle one by one, each "
                     "for a document; tokenise without --split-sentences")
    if token_set.vocab_size != config.model.vocab_size:
        wrong.append(f"data.blend source {name!r} was tokenised with {token_set.vocab_size} pieces; model.vocab_size is "
                     f"{config.model.vocab_size}")
    is_marked = token_set.is_conversations or any(has_mark(token_set, mark) for mark in ("bos", "eos"))
    if config.data.attention == "document" and not is_marked:
        wrong.append(f'data.blend source {name!r} marks neither begin nor end of its documents (it was tokenised with --no-bos '
                     '--no-eos), so data.attention="document" cannot tell them apart; tokenise it with one of the two')
    train_share = 1 - config.data.valid_ratio
    if token_set.num_tokens * train_share <= config.budget.seq_length and not token_set.is_conversations:
        wrong.append(f"data.blend source {name!r} has {token_set.num_tokens} tokens, less than one sequence of "
                     f"budget.seq_length={config.budget.seq_length} plus its validation share")
    if config.data.valid_ratio and round(token_set.num_documents * config.data.valid_ratio) < 1:
        wrong.append(f"data.blend source {name!r} has {token_set.num_documents} documents, too few for "
                     f"data.valid_ratio={config.data.valid_ratio}; use 0 or at least "
                     f"{1 / token_set.num_documents:.3f}")
    return wrong


def _conversation_problems(config: RunConfig, name: str, token_set: TokenSet) -> list[str]:
    wrong, most = [], config.budget.seq_length + 1
    if config.data.attention != "document":
        wrong.append(f"data.blend source {name!r} holds conversations, and with data.attention={config.data.attention!r} each "
                     'would see those before it in its sequence; set data.attention="document"')
    lengths = read_index(Path(f"{token_set.prefix}.idx")).lengths
    if (longest := int(lengths.max())) > most:
        num_longer = int((lengths > most).sum())
        wrong.append(f"data.blend source {name!r}: {num_longer:,} of its conversations are longer than "
                     f"budget.seq_length={config.budget.seq_length} (the longest has {longest:,} tokens); set budget.seq_length to "
                     f"at least {longest - 1}, or tokenise with --max-tokens {most}")
    if int(lengths.min()) < 2:
        wrong.append(f"data.blend source {name!r}: {int((lengths < 2).sum()):,} of its conversations have a single token; damaged")
    return wrong


def part_of_documents(num_documents: int, valid_ratio: float, split: Literal["train", "valid"]) -> range:
    """The documents of a token set that a run trains on, or validates on: its last."""
    border = round((1 - valid_ratio) * num_documents)
    return range(border) if split == "train" else range(border, num_documents)


def budget_tokens(config: RunConfig, token_set: TokenSet) -> float:
    """How many tokens of the budget one reading of a token set takes; of conversations, the rows that they fill."""
    if not token_set.is_conversations:
        return token_set.num_tokens
    part = part_of_documents(token_set.num_documents, config.data.valid_ratio, "train")
    num_tokens = np.array(read_index(Path(f"{token_set.prefix}.idx")).lengths[part.start : part.stop], dtype=np.int64)
    if len(num_tokens) == 0 or num_tokens.max() > config.budget.seq_length + 1:  # refused, elsewhere
        return float(token_set.num_tokens)
    num_rows = packing(num_tokens, config.budget.seq_length, config.data.pack).num_rows
    return num_rows * config.budget.seq_length / (1 - config.data.valid_ratio)


def conversations_name(number: int, split: str) -> str:
    """How the arrays of source `number`, a conversation set, begin in the index cache."""
    return f"conversations{number}-{split}"


def has_mark(token_set: TokenSet, mark: Literal["bos", "eos"]) -> bool:
    """Whether every document of the token set begins, or ends, with its mark."""
    return bool(token_set.manifest.settings.get(mark))


def num_sequences(config: RunConfig) -> list[int]:
    """How many sequences are drawn for training and for validation."""
    batch = config.budget.global_batch_size
    return [config.num_steps * batch, config.budget.eval_steps * batch if config.data.valid_ratio else 0]


def index_cache_of(config: RunConfig, token_sets: list[TokenSet]) -> tuple[Path, dict[str, Any]]:
    """The folder of index caches of a run, and what its own cache there is made for."""
    made_for = {"order": 2, "seed": config.seed, "seq_length": config.budget.seq_length, "num_sequences": num_sequences(config),
                "valid_ratio": config.data.valid_ratio,
                "token_sets": [{"prefix": token_set.prefix, "weight": source.weight, "tokenizer": token_set.tokenizer_sha256,
                                "sha256": {file.path: file.sha256 for file in token_set.manifest.files}}
                               for token_set, source in zip(token_sets, config.data.blend, strict=True)]}
    if any(token_set.is_conversations for token_set in token_sets):
        made_for |= {"pack": config.data.pack, "packing": 1}
    return Path(config.data.cache_folder or RunFolder(config.run_folder).index_cache), made_for

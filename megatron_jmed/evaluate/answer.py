"""Which options does a model find most likely?

In: a Hugging Face folder and a question. Out: for every option the log-likelihood of its text after the prompt, and
the letters that follow from it. The prompt ends where the option's text would begin:

    質問：{question}
    A. {first option}
    B. {second option}
    答え：

Two ways of comparing are kept apart: the sum over the option's tokens, and that sum divided by their number (long
options are unlikely for their length alone). A question that asks for k options gets the k best.
Invariant: the number for an option equals that of one plain forward over prompt and option; the prompt is only
computed once for all options of a question, by its key-value cache. Prompt and option are tokenized TOGETHER: a
tokenizer may merge across the seam, or put a blank before a text of its own. What is scored begins where the options'
tokens leave the prompt's. One question never shares a batch with another, so its numbers do not depend on what was
asked before.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from megatron_jmed.errors import CheckpointError
from megatron_jmed.evaluate.exam import LETTERS, Question

TEMPLATE = "質問：{question}\n{options}\n答え："
DEMO_SEPARATOR = "\n\n"
SAMPLE_BYTES = 1 << 20

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Candidate:
    """The model that sits the exam; `encode` turns text into tokens, beginning with <s> where the tokenizer has one."""

    name: str
    fingerprint: str
    model: PreTrainedModel
    encode: Encode
    has_bos: bool
    max_tokens: int


@dataclass(frozen=True)
class OptionScores:
    """For every option its log-likelihood and number of tokens; how many prompt tokens did not fit."""

    log_likelihoods: list[float]
    num_tokens: list[int]
    num_truncated_tokens: int


# --- loading -------------------------------------------------------------------------------------------------------


def load_candidate(folder: Path | str) -> Candidate:
    """Load model and tokenizer; fp32 on a CPU, bf16 on GPUs (spread over all visible ones); CheckpointError."""
    folder = Path(folder)
    check_hf_folder(folder)
    encode, num_pieces, has_bos = _load_tokenizer(folder)
    config = AutoConfig.from_pretrained(folder)
    if num_pieces > config.vocab_size:
        raise CheckpointError(
            f"{folder}: {num_pieces} pieces in the tokenizer, only {config.vocab_size} rows in the model"
        )
    return Candidate(
        name="/".join(folder.resolve().parts[-2:]),  # the folder alone is often just "hf"
        fingerprint=fingerprint(folder),
        model=_load_model(folder),
        encode=encode,
        has_bos=has_bos,
        max_tokens=config.max_position_embeddings,
    )


def check_hf_folder(folder: Path) -> None:
    """Refuse a folder without config.json, or without every safetensors file that its index names."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json; expected a Hugging Face folder (config.json, *.safetensors)")
    if not list(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: no *.safetensors; expected a Hugging Face folder with its weights")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} of {len(named)} weight files missing, such as {missing[0]}"
            )


def fingerprint(folder: Path) -> str:
    """SHA-256 of config, index and, for every weight file, its size and 1 MiB from its start, middle and end.

    Names and shapes are the same for all checkpoints of a run; the sampled weights tell them apart in seconds.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for index in sorted(folder.glob("*.safetensors.index.json")):
        digest.update(index.read_bytes())
    for weights in sorted(folder.glob("*.safetensors")):
        size = weights.stat().st_size
        digest.update(f"{weights.name}:{size}".encode())
        with weights.open("rb") as file:
            for start in (0, size // 2, max(0, size - SAMPLE_BYTES)):
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _load_tokenizer(folder: Path) -> tuple[Encode, int, bool]:
    """The encoder, its number of pieces, and whether it begins a text with <s>."""
    path = folder / "tokenizer.model"
    if path.is_file():
        try:
            pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path}: no SentencePiece model ({error})") from None
        bos = [pieces.bos_id()] if pieces.bos_id() >= 0 else []
        return lambda text: bos + pieces.encode(text), pieces.vocab_size(), bool(bos)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder}: no tokenizer.model, no tokenizer that transformers can read ({reason})"
        ) from None
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    return lambda text: bos + tokenizer.encode(text, add_special_tokens=False), len(tokenizer), bool(bos)


def _load_model(folder: Path) -> PreTrainedModel:
    on_gpu = torch.cuda.is_available()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16 if on_gpu else torch.float32,
            device_map="auto" if torch.cuda.device_count() > 1 else None,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}") from None
    model, info = loaded
    # transformers only warns of these and goes on with random weights.
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if info[problem]:
            example = sorted(map(str, info[problem]))[0]
            raise CheckpointError(f"{folder}: {len(info[problem])} {problem.replace('_', ' ')}, such as {example}")
    return (model.cuda() if torch.cuda.device_count() == 1 else model).eval()


# --- asking --------------------------------------------------------------------------------------------------------


def render_prompt(question: Question, demos: Sequence[Question] = ()) -> str:
    """The text before the option: solved demonstrations, then the question, joined by blank lines."""
    return DEMO_SEPARATOR.join([*(_render(demo) + _solution(demo) for demo in demos), _render(question)])


def _render(question: Question) -> str:
    options = "\n".join(f"{LETTERS[i].upper()}. {choice}" for i, choice in enumerate(question.choices))
    return TEMPLATE.format(question=question.text, options=options)


def _solution(demo: Question) -> str:
    (letter,) = demo.answers[0]
    return demo.choices[LETTERS.index(letter)]


def why_not_scored(question: Question) -> str | None:
    """The reason why option likelihoods cannot answer this question, if there is one."""
    if question.kind == "numeric":
        return "asks for a number"
    texts = [choice.strip() for choice in question.choices]
    if "" in texts or len(set(texts)) < len(texts):
        return "options are blank or repeated in the data"
    return None


def answer_question(candidate: Candidate, question: Question, demos: Sequence[Question] = ()) -> dict[str, Any]:
    """The record of one question: its facts, the options' log-likelihoods, and the letters picked by either method."""
    record = _facts(question) | {"not_scored": why_not_scored(question), "num_truncated_tokens": 0}
    if record["not_scored"] is not None:
        return record
    scores = score_options(candidate, render_prompt(question, demos), question.choices)
    if not all(map(math.isfinite, scores.log_likelihoods)):
        raise CheckpointError(
            f"{candidate.name}: log-likelihoods of {question.id} are {scores.log_likelihoods}; the weights are broken"
        )
    per_token = [total / n for total, n in zip(scores.log_likelihoods, scores.num_tokens, strict=True)]
    return record | {
        "picked": {
            "sum": pick_letters(scores.log_likelihoods, question.num_to_pick),
            "per_token": pick_letters(per_token, question.num_to_pick),
        },
        "log_likelihoods": [round(total, 6) for total in scores.log_likelihoods],
        "num_tokens": scores.num_tokens,
        "num_truncated_tokens": scores.num_truncated_tokens,
    }


def pick_letters(values: Sequence[float], num_to_pick: int) -> list[str]:
    """The letters of the largest values, in the order of the alphabet; of equals, the first."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    return sorted(LETTERS[i] for i in order[:num_to_pick])


def _facts(question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "year": question.year,
        "paper": question.paper,
        "category": question.category,
        "type": question.kind,
        "text_only": question.text_only,
        "points": question.points,
        "num_choices": len(question.choices),
        "num_to_pick": question.num_to_pick,
        "answers": [sorted(answer) for answer in question.answers],
        "always_correct": question.always_correct,
        "forbidden": sorted(question.forbidden),
    }


# --- the likelihood ------------------------------------------------------------------------------------------------


def score_options(candidate: Candidate, prompt: str, options: Sequence[str]) -> OptionScores:
    """Summed log-likelihood of each option's text after `prompt`, shortened from the left if it does not fit."""
    prefix, continuations = split_at_seam(candidate.encode(prompt), [candidate.encode(prompt + o) for o in options])
    prefix, num_truncated = _fit(candidate, prefix, max(map(len, continuations)))
    log_likelihoods = _log_likelihoods(candidate.model, prefix, continuations)
    return OptionScores(log_likelihoods, [len(c) for c in continuations], num_truncated)


def split_at_seam(prompt: list[int], wholes: Sequence[list[int]]) -> tuple[list[int], list[list[int]]]:
    """Split at the longest prefix which all sequences share with the prompt's own tokens.

    Usually that is the whole prompt; where the tokenizer merged the prompt's last character with an option's first,
    the seam moves left for ALL options alike, so that they stay comparable.
    """
    shared = min(_num_shared(prompt, whole) for whole in wholes)
    return prompt[:shared], [whole[shared:] for whole in wholes]


def _num_shared(left: list[int], right: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _fit(candidate: Candidate, prefix: list[int], longest: int) -> tuple[list[int], int]:
    """Drop tokens after <s> until prefix and longest option fit the context; also how many were dropped."""
    num_bos = int(candidate.has_bos)
    room = candidate.max_tokens - longest - num_bos
    if room < 1:
        raise CheckpointError(
            f"{candidate.name}: an option of {longest} tokens does not fit a context of {candidate.max_tokens}"
        )
    num_truncated = max(0, len(prefix) - num_bos - room)
    return prefix[:num_bos] + prefix[num_bos + num_truncated :], num_truncated


@torch.inference_mode()
def _log_likelihoods(model: PreTrainedModel, prefix: list[int], continuations: list[list[int]]) -> list[float]:
    """Sum of log p(token | all before it) over each continuation; the prefix is computed once.

    Right padding needs no mask: attention looks only to the left, and no expert drops tokens.
    """
    num_options, longest = len(continuations), max(map(len, continuations))
    tokens_OT = torch.zeros(num_options, longest, dtype=torch.long, device=model.device)  # O options, T tokens
    mask_OT = torch.zeros(num_options, longest, device=model.device)
    for row, continuation in enumerate(continuations):
        tokens_OT[row, : len(continuation)] = torch.tensor(continuation)
        mask_OT[row, : len(continuation)] = 1
    start = model(input_ids=torch.tensor([prefix], device=model.device), use_cache=True, logits_to_keep=1)
    logits_OTV = start.logits[:, -1:].expand(num_options, 1, -1)
    if longest > 1:
        cache = start.past_key_values
        cache.batch_repeat_interleave(num_options)
        rest = model(input_ids=tokens_OT[:, :-1], past_key_values=cache, use_cache=True)
        logits_OTV = torch.cat([logits_OTV, rest.logits], dim=1)
    log_p_OT = logits_OTV.float().log_softmax(-1).gather(-1, tokens_OT[..., None])[..., 0]
    return (log_p_OT * mask_OT).sum(-1, dtype=torch.float64).tolist()

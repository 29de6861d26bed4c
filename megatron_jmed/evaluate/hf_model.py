"""Which options does a Hugging Face model find most likely, and what does it write?

In: a Hugging Face folder. Out: the log-likelihood of every option's text behind its prompt, and greedy continuations.
Invariant: the number for an option equals that of one plain forward over prompt and option, to rounding; the prompt is only
computed once for all options of a question, by its key-value cache. Questions given together share a batch: their prompts are
padded on the left, which no real token sees. A question given alone is computed without padding.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from megatron_jmed.corpus.chat import ChatTemplate, Turn, llmjp_template, load_template
from megatron_jmed.corpus.sentencepiece_model import open_sentencepiece
from megatron_jmed.errors import CheckpointError
from megatron_jmed.evaluate.backend import OptionScores
from megatron_jmed.evaluate.prompt import Prompt
from megatron_jmed.evaluate.seam import Request, fit_request, split_at_seam

SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Tokenizer:
    """`encode` turns text into tokens, beginning with <s> where the tokenizer has one; `decode` is its inverse."""

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    num_pieces: int
    bos_ids: tuple[int, ...]


@dataclass(frozen=True)
class HfModel:
    """A model in this process, with its tokenizer."""

    name: str
    folder: Path
    identity: dict[str, Any]
    model: PreTrainedModel
    tokenizer: Tokenizer
    max_tokens: int

    @cached_property
    def chat_template(self) -> ChatTemplate:
        return chat_template_of(self.folder)

    def render(self, prompt: Prompt) -> str:
        """The text that the model reads, without its <s>."""
        if not prompt.is_chat:
            return prompt.text
        template = self.chat_template
        return template.render([Turn("user", prompt.text)], add_generation_prompt=True).removeprefix(template.bos)

    def score_options(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        """See `Backend`; prompts are shortened from the left if they do not fit."""
        requests = [self._request(self.render(p), o) for p, o in zip(prompts, options, strict=True)]
        totals = log_likelihoods(self.model, requests)
        return [OptionScores(total, [len(c) for c in request.continuations], request.num_truncated)
                for total, request in zip(totals, requests, strict=True)]

    def _request(self, prompt: str, options: Sequence[str]) -> Request:
        encode = self.tokenizer.encode
        prefix, continuations = split_at_seam(encode(prompt), [encode(prompt + option) for option in options])
        return fit_request(self.name, prefix, continuations, len(self.tokenizer.bos_ids), self.max_tokens)

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """See `Backend`."""
        num_bos = len(self.tokenizer.bos_ids)
        tokens = [self.tokenizer.encode(self.render(prompt)) for prompt in prompts]
        prefixes = [fit_request(self.name, t, [[0] * max_new_tokens], num_bos, self.max_tokens).prefix for t in tokens]
        tokens_QP, mask_QP = _left_padded(prefixes, self.model.device)
        end = self.model.generation_config.eos_token_id
        how = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=end, pad_token_id=0, use_cache=True)
        with torch.inference_mode():
            whole = self.model.generate(input_ids=tokens_QP, attention_mask=mask_QP, generation_config=how)
        ends = {end} if isinstance(end, int) else set(end or ())
        return [self.tokenizer.decode(_until(row, ends)) for row in whole[:, tokens_QP.shape[1] :].tolist()]


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]


# --- loading -------------------------------------------------------------------------------------------------------


def load_hf_model(folder: Path | str) -> HfModel:
    """Load model and tokenizer; fp32 on a CPU, bf16 on GPUs (spread over all visible ones); CheckpointError."""
    folder = Path(folder)
    check_hf_folder(folder)
    tokenizer = load_tokenizer(folder)
    config = _load_config(folder)
    if tokenizer.num_pieces > config.vocab_size:
        raise CheckpointError(
            f"{folder}: {tokenizer.num_pieces} pieces in the tokenizer, only {config.vocab_size} rows in the model"
        )
    model = _load_model(folder)
    name = short_name(folder)
    dtype = str(model.dtype).removeprefix("torch.")
    identity = {"name": name, "fingerprint": fingerprint(folder), "dtype": dtype}
    return HfModel(name, folder, identity, model, tokenizer, config.max_position_embeddings)


def chat_template_of(folder: Path) -> ChatTemplate:
    """The folder's own chat template; LLM-jp's, which this project tunes with, where the folder carries none."""
    words = folder / "tokenizer_config.json"
    has_own = (folder / "chat_template.jinja").exists() or (words.exists() and "chat_template" in words.read_text(encoding="utf-8"))
    return load_template(folder) if has_own else llmjp_template()


def short_name(folder: Path) -> str:
    """The folder with its parent: alone it is often just "hf"."""
    return "/".join(folder.resolve().parts[-2:])


def check_hf_folder(folder: Path) -> None:
    """Refuse a folder without config.json, or without every safetensors file that its index names."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json; expected a Hugging Face folder (config.json, *.safetensors)")
    if not list(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: no *.safetensors; expected a Hugging Face folder with its weights, as tools/export_hf.py "
                              "makes of a run")
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


def load_tokenizer(folder: Path) -> Tokenizer:
    """tokenizer.model where there is one (it decides, see convert/tokenizer.py), else what transformers reads."""
    path = folder / "tokenizer.model"
    if path.is_file():
        pieces = open_sentencepiece(path)
        bos = [pieces.bos_id()] if pieces.bos_id() >= 0 else []
        num_pieces = pieces.vocab_size()
        return Tokenizer(lambda text: bos + pieces.encode(text),
                         lambda ids: pieces.decode([i for i in ids if i < num_pieces]), num_pieces, tuple(bos))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder}: no tokenizer.model, no tokenizer that transformers can read ({reason})"
        ) from None
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    return Tokenizer(lambda text: bos + tokenizer.encode(text, add_special_tokens=False),
                     lambda ids: tokenizer.decode(ids, skip_special_tokens=True), len(tokenizer), tuple(bos))


def _load_config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json: transformers cannot read it: {error}") from None


def _load_model(folder: Path) -> PreTrainedModel:
    on_gpu = torch.cuda.is_available()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16 if on_gpu else torch.float32,
            device_map="auto" if torch.cuda.device_count() > 1 else None,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}") from None
    model, info = loaded
    # transformers only warns of these and goes on with random weights.
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if info[problem]:
            example = sorted(map(str, info[problem]))[0]
            raise CheckpointError(f"{folder}: {len(info[problem])} {problem.replace('_', ' ')}, such as {example}")
    return (model.cuda() if torch.cuda.device_count() == 1 else model).eval()


# --- the likelihood: Q questions, O options of each (padded), P prompt tokens, T option tokens, V vocabulary -------------


@torch.inference_mode()
def log_likelihoods(model: PreTrainedModel, requests: Sequence[Request]) -> list[list[float]]:
    """Sum of log p(token | all before it) over each continuation; every prefix is computed once.

    Padding on the right needs no mask: attention looks only to the left, and no expert drops tokens.
    """
    num_options = max(len(r.continuations) for r in requests)
    longest = max(len(c) for r in requests for c in r.continuations)
    prefix_QP, mask_QP = _left_padded([r.prefix for r in requests], model.device)
    tokens_XT, mask_XT = _options(requests, num_options, longest, model.device)  # X = Q * O
    is_padded = not bool(mask_QP.all())
    extra = {"attention_mask": mask_QP, "position_ids": _positions(mask_QP)} if is_padded else {}
    start = model(input_ids=prefix_QP, use_cache=True, logits_to_keep=1, **extra)
    logits_XTV = start.logits[:, -1:].repeat_interleave(num_options, dim=0)
    if longest > 1:
        cache = getattr(start, "cache", None) or start.past_key_values
        cache.batch_repeat_interleave(num_options)
        if is_padded:
            ones_XT = torch.ones_like(tokens_XT[:, :-1])
            whole_XP = torch.cat([mask_QP.repeat_interleave(num_options, dim=0), ones_XT], dim=1)
            extra = {"attention_mask": whole_XP, "position_ids": _positions(whole_XP)[:, mask_QP.shape[1] :]}
        rest = model(input_ids=tokens_XT[:, :-1], use_cache=True, **{_cache_word(model): cache}, **extra)
        logits_XTV = torch.cat([logits_XTV, rest.logits], dim=1)
    log_p_XT = logits_XTV.float().log_softmax(-1).gather(-1, tokens_XT[..., None])[..., 0]
    totals = (log_p_XT * mask_XT).sum(-1, dtype=torch.float64).view(len(requests), num_options).tolist()
    return [row[: len(request.continuations)] for row, request in zip(totals, requests, strict=True)]


def _cache_word(model: PreTrainedModel) -> str:
    """transformers calls the cache `past_key_values` before 5.20 or so and `cache` since then, and warns of the old name."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _left_padded(rows: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens [Q, P] with zeros on the left, and the mask of what is real."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return tokens, mask


def _options(requests: Sequence[Request], num_options: int, longest: int, device: torch.device) -> tuple[Tensor, Tensor]:
    tokens = torch.zeros(len(requests) * num_options, longest, dtype=torch.long)
    mask = torch.zeros(len(requests) * num_options, longest)
    for q, request in enumerate(requests):
        for o, continuation in enumerate(request.continuations):
            tokens[q * num_options + o, : len(continuation)] = torch.tensor(continuation)
            mask[q * num_options + o, : len(continuation)] = 1
    return tokens.to(device), mask.to(device)

"""Who answers? What every back end can do, and which one an address means.

A back end is a model that continues texts: a Hugging Face folder in this process (`hf_model`), the same in vLLM
(`vllm_model`), or a server that speaks the OpenAI protocol (`server`).
Invariant: `identity` names everything about the model that decides its answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.prompt import Prompt


@dataclass(frozen=True)
class OptionScores:
    """For every option its log-likelihood and number of tokens; how many prompt tokens did not fit."""

    log_likelihoods: list[float]
    num_tokens: list[int]
    num_truncated_tokens: int


class Backend(Protocol):
    """A model that sits exams."""

    name: str
    identity: dict[str, Any]

    def score_options(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        """For each prompt, the summed log-likelihood (nats) of each of its options right behind it."""

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """What the model writes after each prompt, always taking the likeliest token, up to its end mark."""


def load_backend(address: str | Path, engine: str | None = None, model: str | None = None) -> Backend:
    """The back end of a Hugging Face folder (engine "transformers" or "vllm") or of a server's http address."""
    if str(address).startswith(("http://", "https://")):
        from megatron_jmed.evaluate.server import Server

        if engine not in (None, "server"):
            raise ExamError(f"{address} is a server; it cannot be run by {engine}")
        return Server(str(address), model)
    if engine == "vllm":
        from megatron_jmed.evaluate.vllm_model import VllmModel

        return VllmModel(Path(address))
    if engine not in (None, "transformers"):
        raise ExamError(f"engine {engine!r}; choose from transformers, vllm, or give a server's address (http://...)")
    from megatron_jmed.evaluate.hf_model import load_hf_model

    return load_hf_model(address)

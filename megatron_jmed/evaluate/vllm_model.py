"""How does a Hugging Face folder sit an exam in vLLM?

In: a Hugging Face folder. Out: what `Backend` promises. Texts become tokens here, as in `hf_model`, so that both engines read the
same; vLLM returns the log-probabilities of the prompt's tokens. Needs vLLM, which is no requirement of this project.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_jmed.corpus.chat import ChatTemplate, Turn
from megatron_jmed.errors import CheckpointError
from megatron_jmed.evaluate.backend import OptionScores
from megatron_jmed.evaluate.hf_model import chat_template_of, check_hf_folder, fingerprint, load_tokenizer, short_name
from megatron_jmed.evaluate.prompt import Prompt
from megatron_jmed.evaluate.seam import fit_request, split_at_seam


class VllmModel:
    """A model in vLLM's engine, spread over the visible GPUs."""

    def __init__(self, folder: Path):
        check_hf_folder(folder)
        try:
            import vllm
        except ImportError:
            raise CheckpointError("vLLM is not installed here; pip install vllm, or leave --engine vllm out") from None
        import torch

        self.folder, self.tokenizer, self.name = folder, load_tokenizer(folder), short_name(folder)
        num_gpus = max(1, torch.cuda.device_count())
        self._sampling = vllm.SamplingParams
        self._engine = vllm.LLM(model=str(folder), skip_tokenizer_init=True, tensor_parallel_size=num_gpus, seed=0)
        config = self._engine.llm_engine.model_config
        self.max_tokens = int(config.max_model_len)
        self._ends = list({config.hf_config.eos_token_id} - {None})
        dtype, engine = str(config.dtype).removeprefix("torch."), f"vllm {vllm.__version__}"
        self.identity: dict[str, Any] = {"name": self.name, "fingerprint": fingerprint(folder), "dtype": dtype, "engine": engine}

    @cached_property
    def chat_template(self) -> ChatTemplate:
        return chat_template_of(self.folder)

    def _render(self, prompt: Prompt) -> str:
        if not prompt.is_chat:
            return prompt.text
        template = self.chat_template
        return template.render([Turn("user", prompt.text)], add_generation_prompt=True).removeprefix(template.bos)

    def score_options(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        """See `Backend`."""
        encode, requests = self.tokenizer.encode, []
        for prompt, of in zip(map(self._render, prompts), options, strict=True):
            prefix, continuations = split_at_seam(encode(prompt), [encode(prompt + option) for option in of])
            # vLLM writes one token more than it reads.
            requests.append(fit_request(self.name, prefix, continuations, len(self.tokenizer.bos_ids), self.max_tokens - 1))
        rows = [{"prompt_token_ids": r.prefix + c} for r in requests for c in r.continuations]
        how = self._sampling(max_tokens=1, temperature=0.0, prompt_logprobs=1)
        outputs = iter(self._engine.generate(rows, how, use_tqdm=False))
        return [OptionScores([_sum_of(next(outputs), len(r.prefix)) for _ in r.continuations], [len(c) for c in r.continuations],
                             r.num_truncated) for r in requests]  # fmt: skip

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """See `Backend`."""
        num_bos, rows = len(self.tokenizer.bos_ids), []
        for prompt in map(self._render, prompts):
            fitted = fit_request(self.name, self.tokenizer.encode(prompt), [[0] * max_new_tokens], num_bos, self.max_tokens)
            rows.append({"prompt_token_ids": fitted.prefix})
        how = self._sampling(max_tokens=max_new_tokens, temperature=0.0, stop_token_ids=self._ends, detokenize=False)
        outputs = self._engine.generate(rows, how, use_tqdm=False)
        return [self.tokenizer.decode([t for t in output.outputs[0].token_ids if t not in self._ends]) for output in outputs]


def _sum_of(output: Any, start: int) -> float:
    """Sum of the log-probabilities of the prompt's tokens from `start` on."""
    tokens, found = output.prompt_token_ids, output.prompt_logprobs
    return sum(found[i][tokens[i]].logprob for i in range(start, len(tokens)))

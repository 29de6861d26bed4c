"""How does a translation model in a Hugging Face folder translate pieces of text on this machine?

In: prompts for a causal model (through its chat template where it has one), the plain pieces for an encoder-decoder (Marian,
M2M-100, NLLB). Out: an Answer for each, a batch at a time, decoded greedily.
Invariant: an answer that did not end by itself within the limit of tokens has finish "length".
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from megatron_jmed.corpus.translate_quality import Answer
from megatron_jmed.errors import CorpusError

BATCH_PIECES = 8


class HuggingFaceTranslator:
    """`languages` are the model's own codes (NLLB: eng_Latn, jpn_Jpan), where it has any."""

    def __init__(self, folder: Path, max_tokens: int, languages: tuple[str, str] | None) -> None:
        self.max_tokens = max_tokens
        names = {"src_lang": languages[0], "tgt_lang": languages[1]} if languages else {}
        has_gpu = torch.cuda.is_available()
        try:
            self.reads_prompts = reads_prompts(folder)
            side = {"padding_side": "left"} if self.reads_prompts else {}
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **names, **side)
            kind = AutoModelForCausalLM if self.reads_prompts else AutoModelForSeq2SeqLM
            model = kind.from_pretrained(folder, dtype=torch.bfloat16 if has_gpu else torch.float32)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise CorpusError(f"{folder} cannot be loaded as a Hugging Face model: {str(error).splitlines()[0]}") from None
        self.model = model.eval().to("cuda" if has_gpu else "cpu")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.first = {} if self.reads_prompts or not languages else {"forced_bos_token_id": self._language_token(languages[1])}

    def translate(self, texts: Sequence[str], keep: Callable[[int, Answer], None]) -> None:
        """Call keep(number of the text, answer) for each; texts of about one length share a batch."""
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        for start in range(0, len(order), BATCH_PIECES):
            numbers = order[start : start + BATCH_PIECES]
            for number, answer in zip(numbers, self._batch([texts[number] for number in numbers]), strict=True):
                keep(number, answer)

    def _batch(self, texts: list[str]) -> list[Answer]:
        is_chat = bool(self.reads_prompts and self.tokenizer.chat_template)
        if is_chat:
            chats = [[{"role": "user", "content": text}] for text in texts]
            texts = self.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        read = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not is_chat)
        read = {name: read[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            written = self.model.generate(**read, max_new_tokens=self.max_tokens, do_sample=False, num_beams=1,
                                          pad_token_id=self.tokenizer.pad_token_id, **self.first)
        # A decoder's start may be the token that also ends, so it goes.
        begin = read["input_ids"].shape[1] if self.reads_prompts else 1
        return [self._answer(ids) for ids in written[:, begin:].tolist()]

    def _answer(self, ids: list[int]) -> Answer:
        ends = self.model.generation_config.eos_token_id
        has_ended = not {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id}.isdisjoint(ids)
        return Answer(self.tokenizer.decode(ids, skip_special_tokens=True).strip(), "stop" if has_ended else "length")

    def _language_token(self, language: str) -> int:
        """What a model of many languages must write first."""
        for name in (language, f"__{language}__"):  # NLLB; M2M-100
            number = self.tokenizer.convert_tokens_to_ids(name)
            if number not in (None, self.tokenizer.unk_token_id):
                return number
        raise CorpusError(f"--hf-languages: the model's tokenizer has no language {language!r}")


def reads_prompts(folder: Path) -> bool:
    """Whether the model of a folder is a causal one, which must be told what to do; CorpusError if it is no model."""
    try:
        return not getattr(AutoConfig.from_pretrained(folder), "is_encoder_decoder", False)
    except (OSError, ValueError) as error:
        raise CorpusError(f"{folder} is no Hugging Face folder: {str(error).splitlines()[0]}") from None

"""Translation by a Hugging Face model: what it writes is the model's own greedy continuation, alone or in a batch."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from megatron_jmed.corpus.translate_quality import Answer
from megatron_jmed.errors import CorpusError, UserError
from megatron_jmed.evaluate.hf_translator import HuggingFaceTranslator

WORDS = ["<pad>", "</s>", "<unk>", "__en__", "__ja__",
         "the", "patient", "was", "given", "fluids", "and", "rest", "for", "three", "days", *"肺炎心臓薬熱咳痛脳血"]
TEXTS = ["the patient was given rest", "fluids", "three days and three days for the patient"]


def save_tokenizer(folder: Path, template: str | None = None, ends: bool = False) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if ends:
        words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
                                   additional_special_tokens=["__en__", "__ja__"], chat_template=template)
    fast.save_pretrained(folder)
    return fast


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    save_tokenizer(folder, ends=True)
    torch.manual_seed(3)
    config = T5Config(vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0,
                      pad_token_id=0, eos_token_id=1, tie_word_embeddings=False, initializer_factor=4.0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_tokenizer(folder, "{% for turn in messages %}__en__ {{ turn.content }} __ja__ {% endfor %}")
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
                         pad_token_id=0, bos_token_id=None, eos_token_id=1, initializer_range=0.5)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def answers(folder: Path, texts=TEXTS, max_tokens=6, languages=None) -> list[Answer]:
    found: dict[int, Answer] = {}
    HuggingFaceTranslator(folder, max_tokens, languages).translate(texts, found.__setitem__)
    return [found[number] for number in range(len(texts))]


@torch.no_grad()
def greedy(folder: Path, text: str, num_tokens: int, first: int | None = None) -> list[int]:
    """One token after the other by plain forwards, until </s> or so many."""
    ids = {word: number for number, word in enumerate(WORDS)}
    if (folder / "config.json").read_text().find("T5") >= 0:
        model = T5ForConditionalGeneration.from_pretrained(folder).eval()
        read, written = torch.tensor([[*(ids[word] for word in text.split()), 1]]), [0]
    else:
        model = LlamaForCausalLM.from_pretrained(folder).eval()
        read, written = torch.tensor([[3, *(ids[word] for word in text.split()), 4]]), []
    start = len(written)
    while len(written) - start < num_tokens and 1 not in written[start:]:
        if first is not None and len(written) == start:
            written.append(first)
        elif start:
            written.append(int(model(input_ids=read, decoder_input_ids=torch.tensor([written])).logits[0, -1].argmax()))
        else:
            whole = torch.cat([read, torch.tensor([written], dtype=torch.long)], 1)
            written.append(int(model(input_ids=whole).logits[0, -1].argmax()))
    return written[start:]


def expected(ids: list[int]) -> Answer:
    text = " ".join(WORDS[number] for number in ids if number not in range(5))
    return Answer(text, "stop" if 1 in ids else "length")


@pytest.mark.parametrize("kind", ["encoder_decoder", "causal"])
def test_answers_are_the_greedy_continuations(kind, request):
    folder = request.getfixturevalue(kind)
    assert answers(folder) == [expected(greedy(folder, text, 6)) for text in TEXTS]


def test_an_answer_that_ends_is_told_from_one_that_is_cut(encoder_decoder, tmp_path):
    """The fourth token that the model writes is made the one that ends."""
    ids = greedy(encoder_decoder, TEXTS[0], 6)
    end = next((number for number in ids[1:] if number != ids[0]), None)
    assert end is not None, "a random model that writes one token only tests nothing; take another seed"
    folder = tmp_path / "ends"
    folder.mkdir()
    for path in encoder_decoder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [1, end]}))
    [ended] = answers(folder, TEXTS[:1])
    assert ended.finish == "stop" and answers(folder, TEXTS[:1], max_tokens=1)[0].finish == "length"


def test_the_language_is_written_first(encoder_decoder):
    found = answers(encoder_decoder, languages=("en", "ja"))
    assert found == [expected(greedy(encoder_decoder, text, 6, first=WORDS.index("__ja__"))) for text in TEXTS]
    with pytest.raises(CorpusError, match="has no language 'fr'"):
        answers(encoder_decoder, languages=("en", "fr"))


def test_the_tool_with_a_model(causal, tmp_path, samples, monkeypatch, capsys):
    source = samples.write_jsonl(tmp_path / "source.jsonl", [{"text": text, "lang": "en"} for text in TEXTS])
    tool = samples.load_tool("translate_corpus")
    command = ["translate_corpus", str(source), str(tmp_path / "out"), "--max-tokens", "4", "--hf"]
    monkeypatch.setattr("sys.argv", [*command, str(causal)])
    tool.main()
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    counts = manifest["counts"]
    assert counts["documents"] + sum(counts["dropped"].values()) == 3 and "removed" in capsys.readouterr().out
    assert manifest["origin"]["translations"][0]["model"] == causal.name and manifest["settings"]["decoding"]["fingerprint"]
    monkeypatch.setattr("sys.argv", [*command, str(tmp_path)])
    with pytest.raises(UserError, match="no config.json"):
        tool.main()

"""Equal models are called equal to the bit; each of the usual mistakes is caught and told apart."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from megatron_jmed.convert.source import open_weights
from megatron_jmed.convert.tokenizer import write_tokenizer
from megatron_jmed.convert.verify import compare, compare_logits
from megatron_jmed.convert.weights import export_hf, import_hf
from megatron_jmed.errors import CheckpointError

TOOL = Path(__file__).parents[2] / "tools/verify_checkpoint.py"
EXPERT = "model.layers.0.block_sparse_moe.experts.{}.{}.weight"


def verdict(a: Path, b: Path) -> str:
    comparison = compare(open_weights(a), open_weights(b), workers=2)
    assert comparison.lines()[-1] == comparison.verdict
    assert comparison.is_equal == comparison.verdict.startswith("EQUAL")
    return comparison.verdict


def exchanged(*pairs: tuple[str, str]):
    def change(tensors):
        new = dict(tensors)
        for one, other in pairs:
            new[one], new[other] = tensors[other], tensors[one]
        return new
    return change


def test_checkpoint_equals_the_folder_it_came_from(mixtral, tmp_path):
    import_hf(mixtral, tmp_path / "checkpoint")
    assert verdict(mixtral, tmp_path / "checkpoint").startswith("EQUAL: 41 tensors are equal to the bit")


def test_one_changed_value_is_found(mixtral, change_tensors):
    def change(tensors):
        tensors["model.norm.weight"][3] += 1e-3
        return tensors
    text = verdict(mixtral, change_tensors(change))
    assert text.startswith("DIFFERENT: 1 of 41 tensors differ, by at most 0.001")


def test_swapped_experts_are_named(mixtral, change_tensors):
    swap = exchanged(*((EXPERT.format(1, part), EXPERT.format(3, part)) for part in ("w1", "w2", "w3")))
    text = verdict(mixtral, change_tensors(swap))
    assert "experts are in another order (layer 0: expert 1 is 3 of the first, expert 3 is 1 of the first)" in text
    assert "gate and up" not in text


def test_exchanged_gate_and_up_are_named(mixtral, change_tensors):
    text = verdict(mixtral, change_tensors(exchanged(*((EXPERT.format(e, "w1"), EXPERT.format(e, "w3")) for e in range(4)))))
    assert "gate and up are exchanged (8 tensors)" in text and "another order" not in text


def test_layers_in_another_order_are_named(mixtral, change_tensors):
    def change(tensors):
        other = {"0": "1", "1": "0"}
        return {".".join([*words[:2], other[words[2]], *words[3:]]) if (words := name.split("."))[1] == "layers" else name: tensor
                for name, tensor in tensors.items()}
    text = verdict(mixtral, change_tensors(change))
    assert "layers are in another order (layer 0 is 1 of the first; layer 1 is 0 of the first)" in text


def test_permuted_heads_are_named(mixtral, change_tensors):
    order = torch.arange(8).view(2, 4).t().flatten()

    def change(tensors):
        for name in tensors:
            if "q_proj" in name or "k_proj" in name:
                tensors[name] = tensors[name].view(-1, 8, 32)[:, order].reshape(tensors[name].shape)
        return tensors
    assert "permuted as for interleaved rotary" in verdict(mixtral, change_tensors(change))


@pytest.mark.parametrize(("words", "said"), [
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, "rotary_base is 500.0 and 10000.0"),
    ({"rms_norm_eps": 1e-6}, "layernorm_epsilon is 0.0001 and 1e-06"),
    ({"num_experts_per_tok": 1}, "router_topk is 2 and 1"),
])
def test_wrong_word_of_the_config_is_named_though_all_tensors_are_equal(mixtral, change_words, words, said):
    text = verdict(mixtral, change_words(**words))
    assert text.startswith("DIFFERENT") and said in text and "tensors differ" not in text


def test_other_number_format_is_named(mixtral, tmp_path):
    import_hf(mixtral, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "bf16", dtype="bf16")
    assert "torch.float32 and torch.bfloat16" in verdict(mixtral, tmp_path / "bf16")


def test_dense_against_experts_is_refused(mixtral, llama):
    with pytest.raises(CheckpointError, match="num_experts is 4 and 0"):
        verdict(mixtral, llama)


def test_logits_are_measured():
    tokens = torch.tensor([[1, 0, 2, 1]])
    a = torch.tensor([[[4.0, 1, 0], [0, 1, 5], [1, 0, 0], [0, 0, 1]]])
    same = compare_logits(a, a.clone(), tokens, k=2)
    assert (same.largest, same.top1_agreement, same.topk_agreement, same.max_kl) == (0, 1, 1, 0)
    b = a.clone()
    b[0, 0] = torch.tensor([1.0, 4, 0])
    other = compare_logits(a, b, tokens, k=2)
    assert (other.largest, other.largest_relative, other.median_relative, other.top1_agreement) == (3.0, 0.6, 0, 0.75)
    expected = torch.nn.functional.cross_entropy(a[0, :-1], tokens[0, 1:]).item()
    assert other.losses[0] == pytest.approx(expected)
    assert other.largest_loss_difference == pytest.approx(3.0, abs=1e-6)
    assert other.max_kl == pytest.approx((a[0, 0].softmax(-1) * (a[0, 0].log_softmax(-1) - b[0, 0].log_softmax(-1))).sum().item())


@pytest.fixture
def with_tokenizer(token_folder, tmp_path) -> tuple[Path, Path, Path]:
    """(HF folder with a tokenizer, its checkpoint, a text)."""
    torch.manual_seed(0)
    config = MixtralConfig(vocab_size=2000, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                           num_key_value_heads=2, head_dim=8, num_local_experts=4, max_position_embeddings=256,
                           initializer_range=0.2, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    MixtralForCausalLM(config).save_pretrained(tmp_path / "hf")
    write_tokenizer(token_folder / "tokenizer.model", tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "checkpoint")
    (tmp_path / "text.txt").write_text("発熱と咳が三日続いた。血圧は120/80mmHg、脈拍72であった。" * 8)
    return tmp_path / "hf", tmp_path / "checkpoint", tmp_path / "text.txt"


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_tool_compares_logits_of_both_programs(with_tokenizer, compute):
    hf, checkpoint, text = with_tokenizer
    done = run(hf, checkpoint, "--logits", text, "--compute", compute)
    assert done.returncode == 0 and "logits agree within" in done.stdout.splitlines()[-1], done.stdout + done.stderr
    assert "logits of 256 tokens" in done.stdout and "KL mean" in done.stdout


def test_tool_finds_a_tokenizer_without_a_beginning(with_tokenizer):
    hf, checkpoint, text = with_tokenizer
    words = json.loads((hf / "tokenizer.json").read_text())
    words["post_processor"] = None
    (hf / "tokenizer.json").write_text(json.dumps(words))
    done = run(hf, checkpoint, "--logits", text)
    assert done.returncode == 1
    assert "puts no <s> in front" in done.stdout.splitlines()[-1] and "logits differ" not in done.stdout



@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_tool_finds_a_wrong_rotary_base_in_the_logits_too(with_tokenizer, compute):
    hf, checkpoint, text = with_tokenizer
    words = json.loads((hf / "config.json").read_text())
    words["rope_parameters"]["rope_theta"] = 10000.0
    (hf / "config.json").write_text(json.dumps(words))
    done = run(hf, checkpoint, "--logits", text, "--compute", compute)
    assert done.returncode == 1
    assert "rotary_base is 10000.0 and 500.0" in done.stdout.splitlines()[-1] and "logits differ" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("content", "said"), [(b"", "no text in it"), (b"\xff\xfe", "not a text file"), (None, "not a text file")])
def test_text_that_cannot_be_read_is_named(with_tokenizer, content, said):
    hf, checkpoint, text = with_tokenizer
    text.unlink() if content is None else text.write_bytes(content)
    done = run(hf, checkpoint, "--logits", text)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_no_tokens_are_no_comparison(with_tokenizer):
    folder, checkpoint, text = with_tokenizer
    done = run(folder, checkpoint, "--logits", text, "--tokens", 0)
    assert done.returncode == 2 and "--tokens 0: read at least 2" in done.stderr


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, timeout=200)


def test_tool_says_equal_or_different_by_its_exit_code(mixtral, change_words, tmp_path):
    import_hf(mixtral, tmp_path / "checkpoint")
    done = run(mixtral, tmp_path / "checkpoint")
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("EQUAL"), done.stderr
    done = run(change_words(rms_norm_eps=1e-6), tmp_path / "checkpoint")
    assert done.returncode == 1 and "layernorm_epsilon" in done.stdout.splitlines()[-1], done.stderr

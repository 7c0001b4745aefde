"""Packed rows do not attend to each other: every model computes the same for a packed row as for the row alone."""

import pytest
import torch
from tiny import make_model
from transformers import AutoModelForCausalLM

from dcr_ds.models import varlen
from dcr_ds.models.architectures import TESTED
from dcr_ds.models.batches import token_batch
from dcr_ds.models.load import load_causal_lm

CPU = torch.device("cpu")
LENGTHS = (7, 25, 1, 13)
WINDOW = 6
WINDOWS = {
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    "gemma2": {"sliding_window": WINDOW},
    "gemma3_text": {"sliding_window": WINDOW},
    "gemma4_text": {"sliding_window": WINDOW},
    "olmo3": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "phi3": {"sliding_window": WINDOW},
    "gpt_oss": {"sliding_window": WINDOW},
}
PACKED = [name for name in TESTED if not name.startswith("qwen3_5")]  # test_architectures.py: these are refused
BY_SDPA = [name for name in PACKED if name not in ("gemma2", "gpt_oss")]


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in LENGTHS]


def load(folder, model_type: str, attention: str):
    make_model(folder, model_type, layers=3, **WINDOWS.get(model_type, {}))
    return load_causal_lm(folder, torch.float32, attention, CPU)


def logits(model, rows, packed: bool) -> torch.Tensor:
    batch = token_batch(rows, packed, CPU)
    with torch.no_grad():
        return batch.tokens_of(model(**batch.inputs, use_cache=False).logits)


@pytest.mark.parametrize(
    ("model_type", "attention"),
    [*((name, "sdpa" if name in BY_SDPA else "eager") for name in PACKED), ("llama", "eager"), ("mistral", "eager")],
)
def test_packed_logits_equal_those_of_single_rows(tmp_path, rows, model_type, attention):
    model = load(tmp_path, model_type, attention)
    alone = torch.cat([logits(model, [row], packed=False) for row in rows])
    torch.testing.assert_close(logits(model, rows, packed=True), alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(model, rows, packed=False), alone, rtol=1e-4, atol=1e-4)
    contaminated = logits(model, [sum(rows, [])], packed=False)
    assert (contaminated - alone).abs().max() > 0.1  # with these rows, attention across rows would be detected


def reference_kernel(query, key, value, bounds, key_bounds, longest, longest_key, *, scale, window_size):
    """varlen_attn as PyTorch documents it, in plain operations: [N, H, d], row after row, causal windows."""
    assert torch.equal(bounds, key_bounds) and longest == longest_key == int(bounds.diff().max())
    before, after = window_size
    assert after == 0
    outputs = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        q, k, v = (states[start:end].transpose(0, 1) for states in (query, key, value))
        place = torch.arange(end - start)
        distance = place[:, None] - place
        visible = (distance >= 0) & ((distance <= before) if before >= 0 else True)
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~visible, -torch.inf)
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("model_type", BY_SDPA)
def test_the_variable_length_kernel_gets_rows_heads_and_windows_of_the_model(tmp_path, rows, model_type, monkeypatch):
    """The kernel needs a GPU; here a plain implementation of its documentation replaces it."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference_kernel)
    masked = logits(load(tmp_path, model_type, "sdpa"), rows, packed=True)
    bounded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=varlen.NAME).eval()
    torch.testing.assert_close(logits(bounded, rows, packed=True), masked, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the variable-length kernel runs on a GPU only")
@pytest.mark.parametrize("model_type", BY_SDPA)
def test_the_variable_length_kernel_equals_the_block_diagonal_mask(tmp_path, rows, model_type):
    make_model(tmp_path, model_type, layers=3, head_dim=16, **WINDOWS.get(model_type, {}))
    gpu = torch.device("cuda")
    batch = token_batch(rows, True, gpu)
    logits, gradients = [], []
    for attention in ("sdpa", varlen.NAME):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation=attention)
        model = model.to(gpu).train()
        logits.append(model(**batch.inputs, use_cache=False).logits.float())
        logits[-1].square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten().float() for parameter in model.parameters()]))
    assert (logits[0] - logits[1]).norm() <= 0.02 * logits[0].norm()
    assert (gradients[0] - gradients[1]).norm() <= 0.05 * gradients[0].norm()


def test_packed_and_padded_attention_are_equal_on_a_cpu():
    for attention in ("sdpa", "eager"):
        assert varlen.packed_attention(attention, "float32", varlen.has_varlen_kernel(CPU)) == (
            attention,
            "a block-diagonal mask",
        )


def test_unsupported_features_of_the_kernel_are_errors():
    states = torch.zeros(1, 2, 4, 8)
    bounds = torch.tensor([0, 4], dtype=torch.int32)
    for options in ({"dropout": 0.1}, {"softcap": 30.0}):
        with pytest.raises(ValueError, match="neither dropout nor capped logits"):
            varlen.varlen_attention(None, states, states, states, None, **options, cu_seq_lens_q=bounds, max_length_q=4)

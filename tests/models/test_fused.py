"""Fused kernels compute the same as the blocks of the model, and are an error where unsupported."""

import importlib

import pytest
import torch
from tiny import make_model
from transformers import AutoModelForCausalLM

from dcr_ds.errors import UserError
from dcr_ds.models.fused import FUSED, fuse_blocks, liger_problem, resolve_kernels
from dcr_ds.models.trunk import load_trunk

CPU = torch.device("cpu")


@pytest.fixture
def restored_rotation(monkeypatch):
    """Restore the rotation of each model type, as the fused one would run in later tests."""
    for model_type in FUSED:
        module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
        monkeypatch.setattr(module, "apply_rotary_pos_emb", module.apply_rotary_pos_emb)


def test_auto_means_none_on_a_cpu():
    assert resolve_kernels("auto", "llama", liger_problem(CPU)) == ("none", "no GPU")
    assert resolve_kernels("none", "llama", liger_problem(CPU)) == ("none", "as asked")


@pytest.mark.parametrize(
    ("model_type", "device", "reason"),
    [("llama", "cpu", "no GPU"), ("mixtral", "cuda", "not among llama, mistral, qwen2, qwen3, phi3")],
)
def test_liger_without_support_is_an_error(model_type, device, reason):
    if device == "cuda":
        pytest.importorskip("liger_kernel")
    with pytest.raises(UserError, match=f"model.kernels: liger cannot be used: .*{reason}.*; say auto or none"):
        resolve_kernels("liger", model_type, liger_problem(torch.device(device)))


@pytest.mark.parametrize("model_type", FUSED)
def test_fusing_keeps_the_trunk_without_its_final_norm(tmp_path, model_type, restored_rotation):
    pytest.importorskip("liger_kernel")
    trunk = load_trunk(make_model(tmp_path, model_type), 2, torch.float32, "sdpa")
    names = {name for name, _ in trunk.named_parameters()}
    fuse_blocks(trunk, "liger")
    probe = torch.randn(3)
    assert torch.equal(trunk.norm(probe), probe)
    assert {name for name, _ in trunk.named_parameters()} == names
    assert "Liger" in trunk.layers[0].mlp.forward.__qualname__
    another = load_trunk(tmp_path, 2, torch.float32, "sdpa")
    assert "Liger" not in another.layers[0].mlp.forward.__qualname__ + repr(another)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="liger-kernel's kernels run on a GPU only")
@pytest.mark.parametrize("model_type", FUSED)
def test_loss_and_gradient_equal_those_of_the_model(tmp_path, model_type, restored_rotation):
    pytest.importorskip("liger_kernel")
    make_model(tmp_path, model_type, layers=3)
    ids = torch.randint(3, 300, (2, 40), generator=torch.Generator().manual_seed(0)).cuda()
    logits, gradients = [], []
    for kernels in ("none", "liger"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path).cuda()
        fuse_blocks(model, kernels)
        logits.append(model(input_ids=ids).logits)
        logits[-1].square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert (logits[0] - logits[1]).norm() <= 1e-3 * logits[0].norm()
    assert (gradients[0] - gradients[1]).norm() <= 1e-3 * gradients[0].norm()

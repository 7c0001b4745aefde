"""Architectures: what training needs of each, the warning about others, and the reasons of those that are refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_model
from transformers import AutoConfig, AutoModelForCausalLM

from dcr_ds.errors import UserError
from dcr_ds.models import packed_masks, rehearsal
from dcr_ds.models.architectures import TESTED
from dcr_ds.models.batches import token_batch
from dcr_ds.models.check import check_model
from dcr_ds.models.checkpoint_files import check_checkpoint, check_layer
from dcr_ds.models.likelihood import Likelihood
from dcr_ds.models.load import NO_GPU, load_causal_lm, resolve_attention
from dcr_ds.models.rehearsal import check_architecture, check_can_be_packed

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
ROWS = [list(range(5, 5 + length)) for length in (7, 25, 1, 13)]


@pytest.fixture
def untested(monkeypatch):
    """Treat every architecture as one that is not tested."""
    monkeypatch.setattr(rehearsal, "TESTED", ())


@pytest.mark.parametrize("model_type", TESTED)
def test_the_loss_of_padded_rows_is_that_of_the_model(tmp_path, model_type):
    """Including factors and caps of the logits, such as Granite's and Gemma's."""
    folder = make_model(tmp_path, model_type)
    assert check_model(folder) == []
    model = load_causal_lm(folder, torch.float32, resolve_attention("auto", model_type, "float32", NO_GPU)[0], CPU)
    expected, where = [], []
    batch = token_batch(ROWS, False, CPU)
    with torch.no_grad():
        for start, row in zip(batch.starts, ROWS, strict=True):
            log_p = model(torch.tensor([row])).logits[0, :-1].log_softmax(-1)
            expected.append(-log_p.gather(-1, torch.tensor(row[1:], dtype=torch.long)[:, None])[:, 0])
            where += range(start, start + len(row) - 1)
        targets = torch.tensor([token for row in ROWS for token in row[1:]])
        nll = Likelihood(model, "chunked")(torch.tensor(where), targets, "none", **batch.inputs)
    torch.testing.assert_close(nll, torch.cat(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gemma4_text", "qwen3_5_moe_text"])
def test_models_of_tested_architectures_pass_the_checks_of_others(tmp_path, model_type, untested):
    check_architecture(make_model(tmp_path, model_type))


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("phi", {}),
        ("helium", {}),
        ("cohere2", {}),
        ("cwm", {}),  # requires a number as its bos_token_id
        (
            "ernie4_5_moe",
            {"moe_num_experts": 8, "moe_k": 6, "moe_intermediate_size": 24},
        ),  # few experts have few chosen
    ],
)
def test_an_untested_architecture_runs_after_one_warning(tmp_path, model_type, sizes):
    (note,) = check_model(make_model(tmp_path, model_type, **sizes))
    assert note.startswith(f"WARNING: {model_type} is not among the tested architectures (docs/models.md)")
    check_can_be_packed(tmp_path, "refine.packing")


def test_the_small_model_of_a_large_one_is_small(tmp_path):
    """Its weights do not exist: only config.json is read."""
    layers = ["linear_attention"] * 5 + ["full_attention"]
    AutoConfig.for_model("olmo_hybrid", num_hidden_layers=24, layer_types=layers * 4).save_pretrained(tmp_path)
    config = rehearsal._small_config(tmp_path, rehearsal.SMALL)
    assert (config.num_hidden_layers, config.layer_types, config.hidden_size) == (6, layers, 64)
    assert sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters()) < 2e7


def test_blocks_that_are_not_found_are_the_reason(tmp_path):
    make_model(tmp_path / "neox", "gpt_neox")
    with pytest.raises(UserError, match=r"gpt_neox is not tested .*docs/models.md.*its blocks were not found at model"):
        check_model(tmp_path / "neox")
    weights = make_model(tmp_path / "falcon") / "model.safetensors"
    save_file({name.replace("layers", "h"): tensor for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match="none of its weights belongs to a block .*so llama cannot be trained here"):
        check_checkpoint(tmp_path / "falcon")


def test_logits_that_are_changed_in_an_unknown_way_are_the_reason(tmp_path, untested, monkeypatch):
    folder = make_model(tmp_path, "granite")
    monkeypatch.setattr("dcr_ds.models.likelihood.after_head", lambda config: (1.0, None))
    with pytest.raises(UserError, match="it changes its logits after the head in an unknown way"):
        check_architecture(folder)


def test_packed_rows_that_attend_to_each_other_are_refused(tmp_path, untested, monkeypatch):
    """As those of gpt-oss in transformers 5.24, whose masks ignore positions."""
    folder = make_model(tmp_path, "gpt_oss")
    check_can_be_packed(folder, "refine.packing")
    monkeypatch.setattr(packed_masks, "IGNORES_POSITIONS", ())
    with pytest.raises(UserError, match="align.packing: set it to false: .*packed rows attend to each other"):
        check_can_be_packed(folder, "align.packing")


@pytest.mark.parametrize("model_type", ["qwen3_5_text", "qwen3_5_moe_text"])
def test_packing_of_linear_attention_is_refused(tmp_path, model_type):
    with pytest.raises(UserError, match=f"refine.packing: {model_type} has blocks with linear_attention, which carry"):
        check_can_be_packed(make_model(tmp_path, model_type), "refine.packing")


def test_gemma_4_with_per_layer_embeddings_cannot_be_cut(tmp_path):
    sizes = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300}
    folder = make_model(tmp_path, "gemma4_text", **sizes)
    assert check_model(folder) == []
    with pytest.raises(UserError, match="stage 1 cannot cut a Gemma 4 with per-layer embeddings"):
        check_layer(folder, 1)


def test_a_model_whose_blocks_share_keys_and_values_cannot_be_cut(tmp_path):
    config = {"model_type": "gemma4_text", "num_hidden_layers": 4, "num_kv_shared_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size_per_layer_input": 0}))
    with pytest.raises(UserError, match="num_kv_shared_layers"):
        check_layer(tmp_path, 1)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])  # Qwen2-VL keeps its text part at the top
@pytest.mark.parametrize("model_type", ["qwen3_5", "gemma4", "gemma3", "qwen2_vl"])
def test_a_model_of_text_and_images_is_refused_with_a_remedy(tmp_path, model_type, part):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "num_hidden_layers": 4, part: {}}))
    with pytest.raises(UserError, match=f"{model_type} is a model of text and images or sound.*save_pretrained"):
        check_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "field"),
    [("qwen2", {"is_causal": False}), ("gemma3_text", {"use_bidirectional_attention": True})],
)
def test_a_model_whose_tokens_read_later_ones_is_refused(tmp_path, untested, model_type, field):
    """As those of embedding models; padding on the right would change the results of each row."""
    make_model(tmp_path, model_type, **field)
    with pytest.raises(UserError, match=f"{next(iter(field))}: .* as in embedding models"):
        check_checkpoint(tmp_path)
    with pytest.raises(UserError, match="failed the check: its tokens read later ones"):
        check_architecture(tmp_path)


def test_attention_kernels_that_an_architecture_does_not_have():
    assert resolve_attention("auto", "gpt_oss", "bfloat16", "")[0] == "eager"
    with pytest.raises(UserError, match="flash_attention_2 cannot be used: gpt_oss does not support it"):
        resolve_attention("flash_attention_2", "gpt_oss", "bfloat16", "")
    with pytest.raises(UserError, match="gpt_oss has attention that sdpa cannot compute; say auto or eager"):
        resolve_attention("sdpa", "gpt_oss", "bfloat16", "")


def test_the_page_lists_the_tested_architectures():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    table = page.partition("| architecture")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE) == list(TESTED)

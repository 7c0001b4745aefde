"""Surgical: the selection against a plain one, hooks against weights, and what cannot be done."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from subjects import block_inputs, is_refused, load, make_subject, next_log_p, score
from tiny import make_model

from dcr_ds.baselines.ablation import ablated, ablation_edits
from dcr_ds.baselines.edits import Edited, write_edited
from dcr_ds.baselines.projections import check_residual
from dcr_ds.baselines.subject import Encoded, Split
from dcr_ds.baselines.surgical import Candidate, SurgicalSettings, choose, false_refusal_directions, surgical
from dcr_ds.errors import UserError
from dcr_ds.models.check import check_model
from dcr_ds.recipe import ChatTemplate

IDS = torch.arange(3, 43).view(2, 20)
BIASED = {"attention_bias": True, "mlp_bias": True}


def with_random_biases(folder):
    """transformers initialises biases with 0."""
    model = load(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".bias"):
                weight.normal_()
    model.save_pretrained(folder)
    return folder


def unit(size=32, seed=0):
    direction = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return direction / direction.norm()


def write(source, edited, out):
    write_edited(source, edited, {}, [], out, ChatTemplate())
    return load(out)


@pytest.mark.parametrize(
    ("model_type", "tied", "sizes"),
    [("llama", True, {}), ("llama", False, BIASED), ("qwen2", True, {}), ("phi3", False, {}), ("llama", True, BIASED)],
)
def test_ablated_weights_equal_ablation_by_hooks(tmp_path, model_type, tied, sizes):
    """The logits too: the head of a tied model stays as it was, although its embeddings change."""
    source = with_random_biases(make_model(tmp_path / "model", model_type, 3, tied, dtype=torch.float64, **sizes))
    model, direction = load(source), unit()
    written = write(source, Edited(ablation_edits(model, direction), {}, True), tmp_path / "out")
    with torch.no_grad():
        base = model(input_ids=IDS).logits
        with ablated(model, direction):
            expected = model(input_ids=IDS).logits
        assert torch.equal(model(input_ids=IDS).logits, base), "hooks stay behind"
        assert (written(input_ids=IDS).logits - expected).abs().max() < 1e-6
    assert (expected - base).abs().max() > 0.1
    assert written.config.tie_word_embeddings is False
    assert torch.equal(written.get_output_embeddings().weight, model.get_output_embeddings().weight)


def test_the_head_of_a_tied_model_in_several_files_is_stored_apart(tmp_path):
    """Also where the source stores the tied head a second time, as some checkpoints do."""
    source = make_model(tmp_path / "model", layers=3, dtype=torch.float64)
    load(source).save_pretrained(source, max_shard_size="60KB")
    (source / "model.safetensors").unlink()
    index = json.loads((source / "model.safetensors.index.json").read_text())
    name = index["weight_map"]["model.norm.weight"]
    save_file(load_file(source / name) | {"lm_head.weight": load(source).lm_head.weight.detach()}, source / name)
    index["weight_map"]["lm_head.weight"] = name
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    model, direction = load(source), unit()
    written = write(source, Edited(ablation_edits(model, direction), {}, True), tmp_path / "out")
    with torch.no_grad(), ablated(model, direction):
        expected = model(input_ids=IDS).logits
    assert (written(input_ids=IDS).logits - expected).abs().max() < 1e-6
    assert check_model(tmp_path / "out") == []
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {*dict(model.named_parameters()), "lm_head.weight"}


def test_nothing_is_written_along_the_direction(tmp_path):
    source = with_random_biases(make_model(tmp_path / "model", layers=3, dtype=torch.float64, **BIASED))
    model, direction = load(source), unit()
    written = write(source, Edited(ablation_edits(model, direction), {}, True), tmp_path / "out")
    before, after = (block_inputs(part, IDS[0].tolist()) @ direction for part in (model, written))
    assert after.abs().max() < 1e-12 < 0.1 < before.abs().max()
    for name, weight in model.named_parameters():
        change = written.get_parameter(name) - weight
        if name in ablation_edits(model, direction) and change.dim() == 2:
            assert torch.linalg.matrix_rank(change, atol=1e-9) == 1, name
        elif change.dim() == 2:
            assert not change.any(), name


def test_the_chosen_direction_is_that_of_a_plain_implementation(tmp_path):
    """Prompt by prompt; candidates are ablated by changing a copy of the weights, not by hooks."""
    strength, subject = 0.8, make_subject(tmp_path, 24, 18, layers=4, tied=False)
    settings = SurgicalSettings(strength, max_kl=0.6)
    edited = surgical(subject, settings)
    model = subject.model
    kept = {
        (name, part): [
            row
            for row in getattr(split, part).tokens
            if is_refused(model, row, subject.openings) is (name != "harmless")
        ]
        for name, split in subject.prompts.items()
        for part in ("train", "validation")
    }
    harmless, pseudo = kept["harmless", "validation"], kept["seemingly_toxic", "validation"]
    inputs = {
        name: torch.stack([block_inputs(model, row)[:, -3:] for row in kept[name, "train"]]) for name in subject.prompts
    }
    found = []
    for position in (-3, -2, -1):
        for layer in range(3):  # the last of 4 blocks is of the last 20 %
            means = {name: rows[:, layer, position].mean(0) for name, rows in inputs.items()}
            h, o = means["harmful"] - means["harmless"], means["seemingly_toxic"] - means["harmless"]
            if h.norm() < 1e-12:
                continue
            rest = o - strength * (o @ h) / (h @ h) * h
            direction = rest / rest.norm()
            changed = copy.deepcopy(model)
            with torch.no_grad():
                for name, edit in ablation_edits(model, direction).items():
                    changed.get_parameter(name).copy_(edit(model.get_parameter(name)))
            pairs = [(next_log_p(model, row), next_log_p(changed, row)) for row in harmless]
            kl = sum(float((a.exp() * (a - b)).sum()) for a, b in pairs) / len(harmless)
            refusal = sum(score(changed, row, subject.openings) for row in pseudo) / len(pseudo)
            found.append((position, layer, kl, refusal, direction))
    assert 0 < sum(row[2] <= 0.6 for row in found) < len(found), "the bound has no effect"
    rows = edited.figures["candidates"]
    assert [(row["position"], row["layer"]) for row in rows] == [row[:2] for row in found]
    for row, (_, _, kl, refusal, _) in zip(rows, found, strict=True):
        assert row["kl"] == pytest.approx(kl, abs=1e-6)
        assert row["refusal"] == pytest.approx(refusal if kl <= 0.6 else math.nan, abs=1e-6, nan_ok=True)
    best = min((row for row in found if row[2] <= 0.6), key=lambda row: row[3])
    assert (edited.figures["chosen"]["position"], edited.figures["chosen"]["layer"]) == best[:2]
    assert torch.tensor(edited.figures["direction"], dtype=torch.float64) == pytest.approx(best[4], abs=1e-6)


def test_directions_are_orthogonal_to_the_refusal_direction():
    harmful, harmless, pseudo = torch.randn(3, 2, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    directions = false_refusal_directions(harmful, harmless, pseudo, 1.0)
    assert (directions * (harmful - harmless)).sum(-1).abs().max() < 1e-12
    assert (directions.norm(dim=-1) - 1).abs().max() < 1e-12
    assert false_refusal_directions(harmful, harmful, pseudo, 1.0).isnan().all()


def test_no_candidate_within_the_bound_names_the_nearest():
    with pytest.raises(UserError, match=r"2 candidates .* --max-kl 0.2 nats; the smallest divergence is 0.4 .*layer 5"):
        choose([Candidate(-1, 3, 0.7, math.nan), Candidate(-2, 5, 0.4, math.nan)], 0.2)


def test_too_few_refused_prompts_are_counted(tmp_path):
    subject = make_subject(tmp_path)
    split = subject.prompts["seemingly_toxic"]
    few = Split(Encoded(split.train.ids[:5], split.train.tokens[:5]), split.validation)
    subject = replace(subject, prompts={**subject.prompts, "seemingly_toxic": few})
    with pytest.raises(UserError, match=r"refuses \d of 5 training prompts of the set seemingly_toxic.*8 are needed"):
        surgical(subject, SurgicalSettings())


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("gemma2", "post_feedforward_layernorm"),
        ("olmo2", "post_feedforward_layernorm"),
        ("glm4", "post_self_attn_layernorm"),
        ("qwen3_moe", "mlp.down_proj was looked for .*mixture of experts"),
    ],
)
def test_models_with_other_blocks_are_refused(tmp_path, model_type, message):
    with pytest.raises(UserError, match=message):
        check_residual(load(make_model(tmp_path, model_type, 2)))

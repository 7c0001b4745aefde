"""The eNTK equals materialised Jacobians; its means and intervals are correct; unsupported models are errors."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from processes import as_ranks, run_command
from tiny import make_model
from torch import nn
from transformers import AutoModelForCausalLM

from dcr_ds.diagnose.entk import EntkResult, difference, entk, symmetric, write_entk
from dcr_ds.diagnose.entk import products as products_module
from dcr_ds.diagnose.entk.products import Outer, Rows, Vector, add_products
from dcr_ds.diagnose.entk.result import block_means, bootstrap, make_result
from dcr_ds.errors import UserError

K = 4
LENGTHS = {"seemingly_toxic": (5, 9, 3), "toxic": (12, 7), "general": (4, 10)}
OF_TYPE = {"gpt2": {"n_embd": 32, "n_head": 4}, "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0}}


def prompts_of(lengths: dict[str, tuple[int, ...]] = LENGTHS) -> dict[str, list[list[int]]]:
    """Random token ids, including the padding token, whose embedding gets no gradient."""
    generator = torch.Generator().manual_seed(0)
    rows = {
        name: [torch.randint(3, 300, (length,), generator=generator).tolist() for length in sizes]
        for name, sizes in lengths.items()
    }
    rows["toxic"][0][2] = 0
    return rows


def load(folder: Path, model_type: str = "llama", tied: bool = True, dtype: torch.dtype = torch.float64, **sizes):
    make_model(folder, model_type, layers=2, tied=tied, **{**OF_TYPE.get(model_type, {}), **sizes})
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@pytest.fixture
def all_in_double(monkeypatch):
    """transformers computes norms and rotations in float32 for any dtype; here they are computed in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def kernel_norms(model: nn.Module, prompts: dict, tokens: np.ndarray, is_selected=lambda name: True) -> np.ndarray:
    """‖J(x') J(x)ᵀ‖_F of all pairs, with full Jacobians from autograd."""
    parameters = [parameter.requires_grad_() for name, parameter in model.named_parameters() if is_selected(name)]
    jacobians = []
    for prompt, top in zip([p for rows in prompts.values() for p in rows], tokens, strict=True):
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
        assert sorted(top) == sorted(logits.topk(len(top)).indices.tolist())
        for token in top:
            gradients = torch.autograd.grad(logits[token], parameters, retain_graph=True, allow_unused=True)
            pairs = zip(gradients, parameters, strict=True)
            jacobians.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
    jacobian = torch.stack(jacobians).view(len(tokens), -1, len(jacobians[0]))
    return torch.einsum("ikp,jlp->ijkl", jacobian, jacobian).flatten(2).norm(dim=2).numpy()


@pytest.mark.usefixtures("all_in_double")
@pytest.mark.parametrize(
    ("model_type", "tied"),
    [
        ("llama", True),
        ("llama", False),
        ("qwen2", True),  # biases
        ("qwen3", False),  # norms of queries and keys
        ("gemma2", True),  # scaled embeddings, norms with an offset, soft caps, sliding windows
        ("gemma3_text", True),
        ("phi3", False),  # fused projections
        ("gpt2", True),  # Conv1D, LayerNorm, embeddings of positions
        ("granite", True),  # factors on embeddings and logits
        ("nemotron", False),  # torch's LayerNorm with an offset, activation without a gate
    ],
)
def test_equals_materialised_jacobians(tmp_path, model_type, tied):
    model, prompts = load(tmp_path, model_type, tied), prompts_of()
    result = entk(model, prompts, k=K, batch_size=3)
    np.testing.assert_allclose(result.norms, kernel_norms(model, prompts, result.tokens), rtol=1e-9)
    assert result.parameter_count == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.usefixtures("all_in_double")
@pytest.mark.parametrize(
    ("selection", "layer", "is_selected"),
    [
        ("blocks<=1", 1, lambda name: "layers.0." in name),
        ("blocks > 1", 1, lambda name: "layers.1." in name),
        ("embed", None, lambda name: "embed" in name),
        ("lm_head", None, lambda name: "lm_head" in name),
        (r"1\.mlp|norm\.weight$", None, lambda name: "1.mlp" in name or name.endswith("norm.weight")),
    ],
)
def test_parameters_can_be_selected(tmp_path, selection, layer, is_selected):
    model, prompts = load(tmp_path, tied=False), prompts_of()
    result = entk(model, prompts, k=K, parameters=selection)
    np.testing.assert_allclose(result.norms, kernel_norms(model, prompts, result.tokens, is_selected), rtol=1e-9)
    assert (result.parameters, result.layer) == (selection, layer)


@pytest.mark.usefixtures("all_in_double")
def test_the_kernel_of_lora_adapters(tmp_path):
    model, prompts = load(tmp_path), prompts_of()
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.5))
    with pytest.raises(UserError, match="gradients of the selected parameters are zero"):
        entk(model, prompts, k=K, parameters="lora_A")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    result = entk(model, prompts, k=K, parameters="lora_")
    assert model.training and {name: p.requires_grad for name, p in model.named_parameters()} == trainable
    model.eval()
    expected = kernel_norms(model, prompts, result.tokens, lambda name: "lora_" in name)
    np.testing.assert_allclose(result.norms, expected, rtol=1e-9)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("slice_bytes", [1, 2**20])
def test_products_of_factors_equal_products_of_gradients(monkeypatch, paired, slice_bytes):
    monkeypatch.setattr(products_module, "paired_flop", lambda factors: 0 if paired else float("inf"))
    monkeypatch.setattr(products_module, "SLICE_BYTES", slice_bytes)
    monkeypatch.setattr(products_module, "TRIANGLE_ROWS", 4)
    torch.manual_seed(0)
    sizes = ((2, 4), (3, 6), (1, 5))  # prompts and positions of batches
    outer = [Outer(torch.randn(n, 2, t, 7).double(), torch.randn(n, t, 5).double()) for n, t in sizes]
    outer[1].outputs[:, :, 3:] = 0  # padding
    rows = [Rows(torch.randint(0, 9, (n, 2, t)), torch.randn(n, 2, t, 5).double()) for n, t in sizes]
    vectors = [Vector(torch.randn(n, 2, 3).double()) for n, _ in sizes]
    full_gradients = [
        torch.cat([torch.einsum("nktr,ntc->nkrc", *factor).flatten(0, 1).flatten(1) for factor in outer]),
        torch.cat(
            [
                torch.einsum("nktr,nktc->nkrc", nn.functional.one_hot(f.ids, 9).double(), f.vectors)
                .flatten(0, 1)
                .flatten(1)
                for f in rows
            ]
        ),
        torch.cat([factor.gradients.flatten(0, 1) for factor in vectors]),
    ]
    for factors, gradients in zip((outer, rows, vectors), full_gradients, strict=True):
        gram = torch.zeros(12, 12).double()
        for rank in range(3):
            add_products(gram, factors, (rank, 3))
        torch.testing.assert_close(gram.triu(), (gradients @ gradients.T).triu(), rtol=1e-12, atol=1e-12)


def test_ratios_and_means_computed_by_hand():
    norms = np.array([[2.0, 1, 4, 6], [1, 4, 8, 2], [4, 8, 8, 2], [6, 2, 2, 10]])
    result = make_result(norms, {"toxic": 2, "general": 2})
    np.testing.assert_allclose(result["ratios"][0], [1, 0.5, 2, 3])
    np.testing.assert_allclose(
        result["means"], [[(1 / 2 + 1 / 4) / 2, (2 + 3 + 2 + 1 / 2) / 4], [(1 / 2 + 1 + 3 / 5 + 1 / 5) / 4, 0.225]]
    )
    assert (result["low"] <= result["means"]).all() and (result["means"] <= result["high"]).all()


def test_a_resampled_prompt_does_not_pair_with_itself():
    ratios = np.array([[1, 0.2, 0.4], [0.6, 1, 0.8], [0.1, 0.3, 1]])
    weights = np.array([[2.0, 1, 0], [3, 0, 0]])
    means = block_means(weights, ratios, {"toxic": 3})
    assert means[0, 0, 0] == pytest.approx((2 * 0.2 + 2 * 0.6) / 4)
    assert np.isnan(means[1, 0, 0])


def test_intervals_cover_the_mean_of_the_population():
    """With ratios of a row effect plus a column effect, the interval includes the expected mean in 95 % of cases."""
    random = np.random.default_rng(0)
    counts, covered = {"toxic": 25, "general": 20}, []
    for _ in range(60):
        ratios = 0.5 + random.normal(0, 0.1, (45, 1)) + random.normal(0, 0.05, (1, 45))
        low, high = bootstrap(ratios, counts)
        covered.append((low <= 0.5) & (high >= 0.5))
    assert (np.mean(covered, axis=0) > 0.85).all() and np.mean(covered) < 1


def result_of(norms: np.ndarray, counts: dict[str, int]) -> EntkResult:
    return EntkResult(**make_result(norms, counts), k=1, parameters="all", parameter_count=1, tokens=np.zeros(0))


def test_the_same_prompts_are_resampled_together_for_a_difference():
    random = np.random.default_rng(0)
    counts = {"toxic": 25, "general": 20}
    norms = 0.5 + random.normal(0, 0.1, (45, 1)) + random.normal(0, 0.05, (1, 45))
    np.fill_diagonal(norms, 1)
    lower = np.where(np.eye(45, dtype=bool), 1, norms - 0.05 + random.normal(0, 0.01, (45, 45)))
    mean, low, high = difference(result_of(norms, counts), result_of(lower, counts))
    np.testing.assert_allclose(mean, -0.05, atol=0.005)
    assert ((low < mean) & (mean < high) & (high < 0)).all()
    separate = result_of(norms, counts).high - result_of(norms, counts).low
    assert ((high - low) < separate / 2).all()
    assert not np.any(difference(result_of(norms, counts), result_of(norms, counts)))
    with pytest.raises(UserError, match="the same prompts"):
        difference(result_of(norms, counts), result_of(norms, {"toxic": 20, "general": 25}))


def test_symmetric_ratios_do_not_depend_on_gradient_norms():
    random = np.random.default_rng(0)
    gradients, sizes = random.normal(size=(9, 4)), random.uniform(0.1, 10, (9, 1))
    counts = {"toxic": 5, "general": 4}
    plain, scaled = (result_of(np.abs(rows @ rows.T), counts) for rows in (gradients, sizes * gradients))
    np.testing.assert_allclose(symmetric(plain).ratios, symmetric(scaled).ratios)
    np.testing.assert_allclose(symmetric(plain).means, symmetric(scaled).means)
    assert np.abs(plain.means - scaled.means).max() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 301}, "k is 301; it must be between 1 and the size of the vocabulary, 300"),
        ({"k": 0}, "k is 0"),
        ({"categories": ["toxic"]}, "at least two categories are needed; given: 'toxic'"),
        ({"categories": []}, "given: none"),
        ({"toxic": [[3, 4]]}, "category 'toxic' needs at least 2 prompts; it has 1"),
        ({"general": []}, "category 'general' needs at least 2 prompts; it has 0"),
        ({"general": [[3], []]}, "prompt 2 of category 'general' has no tokens"),
        ({"general": [[3], [300]]}, "prompt 2 of category 'general' has token ids outside 0 to 299"),
        ({"general": [[3] * 513, [4]]}, "prompt 1 of category 'general' has 513 tokens, but the model takes 512"),
        ({"parameters": "nothing"}, "'nothing' matches no parameter"),
        ({"parameters": "("}, "is not a valid regular expression"),
        ({"parameters": "blocks<=3"}, "selects no block; the model has blocks 1 to 2"),
        ({"parameters": "blocks>2"}, "selects no block"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, change, message):
    prompts = prompts_of() | {name: rows for name, rows in change.items() if name in LENGTHS}
    prompts = {name: prompts[name] for name in change.get("categories", prompts)}
    options = {name: value for name, value in change.items() if name in ("k", "parameters")}
    with pytest.raises(UserError) as error:
        entk(load(tmp_path), prompts, **{"k": K} | options)
    assert message in str(error.value)


def test_experts_are_an_error_unless_excluded(tmp_path):
    model = load(tmp_path, "qwen3_moe", dtype=torch.float32)
    with pytest.raises(UserError, match=r"Qwen3MoeExperts .*layers\.0\.mlp\.experts\.gate_up_proj"):
        entk(model, prompts_of(), k=K)
    assert np.isfinite(entk(model, prompts_of(), k=K, parameters="self_attn").means).all()


def test_quantised_models_are_refused(tmp_path):
    class Linear4bit(nn.Linear):
        """A class with the name of bitsandbytes' class."""

    model = load(tmp_path)
    model.model.layers[0].mlp.up_proj = Linear4bit(32, 48)
    with pytest.raises(UserError, match="Linear4bit.*load it without quantisation"):
        entk(model, prompts_of(), k=K)


def test_a_parameter_used_in_an_unknown_way_is_detected(tmp_path):
    model = load(tmp_path)
    block = model.model.layers[0]
    forward = block.forward
    block.forward = lambda hidden, **more: forward(hidden, **more) + hidden @ block.self_attn.q_proj.weight
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj\.weight differs from autograd's"):
        entk(model, prompts_of(), k=K)


def test_bf16_is_close_and_non_finite_values_are_an_error(tmp_path):
    exact = entk(load(tmp_path), prompts_of(), k=K)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    np.testing.assert_allclose(entk(model, prompts_of(), k=K).means, exact.means, rtol=0.1)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(UserError, match="logits are not finite"):
        entk(model, prompts_of(), k=K)


def test_files_contain_the_result(tmp_path):
    pytest.importorskip("matplotlib")
    result = entk(load(tmp_path / "model"), prompts_of(), k=K, parameters="blocks<=1")
    write_entk(result, tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "entk.json").read_text())
    assert (facts["k"], facts["parameters"], facts["layer"]) == (K, "blocks<=1", 1)
    assert facts["n"] == {name: len(lengths) for name, lengths in LENGTHS.items()}
    block = facts["blocks"][1]
    assert (block["row"], block["column"]) == ("seemingly_toxic", "toxic")
    assert block["low"] <= block["mean"] == result.means[0, 1] <= block["high"]
    with (tmp_path / "out" / "entk.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 49 and rows[1]["row_category"] == "seemingly_toxic" and rows[1]["column"] == "2"
    assert float(rows[1]["ratio"]) == pytest.approx(result.ratios[0, 1], rel=1e-8)
    assert (tmp_path / "out" / "entk.png").read_bytes().startswith(b"\x89PNG")


RANKS = """
import json, sys
import numpy as np, torch
from torch import distributed as dist
from transformers import AutoModelForCausalLM
from dcr_ds.diagnose.entk import entk
dist.init_process_group("gloo")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float64)
result = entk(model, json.loads(sys.argv[2]), k=4, batch_size=2)
np.save(f"{sys.argv[1]}/norms{dist.get_rank()}.npy", result.norms)
np.save(f"{sys.argv[1]}/tokens{dist.get_rank()}.npy", result.tokens)
dist.destroy_process_group()
"""


def test_two_ranks_compute_the_same_as_one(tmp_path):
    model, prompts = load(tmp_path, "qwen2"), prompts_of()
    (tmp_path / "ranks.py").write_text(RANKS)
    run_command(*as_ranks(2), tmp_path / "ranks.py", tmp_path, json.dumps(prompts))
    single = entk(model, prompts, k=4)
    norms = [np.load(tmp_path / f"norms{rank}.npy") for rank in (0, 1)]
    np.testing.assert_array_equal(*norms)
    np.testing.assert_allclose(norms[0], single.norms, rtol=1e-12)
    np.testing.assert_array_equal(np.load(tmp_path / "tokens1.npy"), single.tokens)

"""Refusal log-odds against a reference that sums over openings in float64, without a cache."""

import math
from functools import partial

import pytest
import torch
from tiny import make_model
from transformers import AutoModelForCausalLM, DynamicCache

from dcr_ds.diagnose import log_odds, readings
from dcr_ds.diagnose.log_odds import first_token_impurity, log_odds_after_answers, refusal_log_odds
from dcr_ds.diagnose.openings import Opening, Openings
from dcr_ds.diagnose.prefix_tree import Tree
from dcr_ds.diagnose.tree_pass import TreePass
from dcr_ds.errors import UserError
from dcr_ds.models.likelihood import Likelihood

SEQUENCES = ((7, 8), (7, 9, 10), (7, 9, 11, 12), (20,), (21, 7, 8), (21, 22))


def openings(sequences=SEQUENCES, lead=()):
    listed = tuple(Opening(str(tokens), tokens, "data", 0.1, 0.0) for tokens in sequences)
    return Openings(listed, (), lead, 0.6, 0.0)


def make_prompts(count=7, longest=24):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in lengths]


def load(tmp_path, model_type="llama", dtype=torch.float32, **sizes):
    return AutoModelForCausalLM.from_pretrained(make_model(tmp_path, model_type, **sizes), dtype=dtype).eval()


@torch.no_grad()
def reference(model, prompt, sequences=SEQUENCES):
    """(log-odds, first-token log-odds, log p by opening) in float64, from 1 − p, without a cache or padding."""
    log_p = []
    for tokens in sequences:
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0].double()
        steps = logits[len(prompt) - 1 : -1].log_softmax(-1)
        log_p.append(sum(steps[i, token].item() for i, token in enumerate(tokens)))
    first = logits[len(prompt) - 1].softmax(-1)[sorted({tokens[0] for tokens in sequences})].sum().item()
    total = math.fsum(math.exp(value) for value in log_p)
    return math.log(total / (1 - total)), math.log(first / (1 - first)), log_p


def assert_equal_to_reference(rows, model, prompts, tolerance, sequences=SEQUENCES):
    for row, prompt in zip(rows, prompts, strict=True):
        log_odds, first, log_p = reference(model, prompt, sequences)
        near = partial(pytest.approx, abs=tolerance, rel=tolerance)
        assert row["log_odds"] == near(log_odds) and row["first_token"] == near(first)
        assert list(row["openings"].values()) == near(log_p)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize(
    ("model_type", "tied"),
    [("llama", True), ("qwen2", False), ("gemma2", True), ("granite", False), ("qwen3_5_text", False)],
)
def test_log_odds_equal_a_float64_reference(tmp_path, model_type, tied, batch_size):
    """A float32 model agrees to 1e-6, absolute or relative, with the same model in float64.

    Prompts have 1 to 24 tokens; gemma2 caps its logits and has a sliding window of 8 tokens.
    """
    model = load(tmp_path, model_type, tied=tied)
    prompts = make_prompts()
    rows = refusal_log_odds(model, [f"p{i}" for i in range(7)], prompts, openings(), batch_size)
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(7)]
    assert_equal_to_reference(rows, model.double(), prompts, 1e-6)


@pytest.mark.parametrize("size", [1, 7])
def test_blocks_of_the_vocabulary_give_the_same_sums(tmp_path, monkeypatch, size):
    """Blocks of one token have only a child, or no child; 300 tokens are not a multiple of 7."""
    monkeypatch.setattr(readings, "CHUNK_LOGITS", {"cpu": 1})
    monkeypatch.setattr(readings, "MIN_CHUNK", size)
    model = load(tmp_path, "gemma2")
    prompts = make_prompts()
    rows = refusal_log_odds(model, list("abcdefg"), prompts, openings())
    assert_equal_to_reference(rows, model.double(), prompts, 1e-6)


def answer(model, prompts, new_tokens=5):
    """The cache of greedy answers to left-padded prompts."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        output = model.generate(
            tokens, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens, return_dict_in_generate=True
        )
    return output.cache if hasattr(output, "cache") else output.past_key_values


@pytest.mark.parametrize(
    ("dtype", "attention", "lead", "tolerance"),
    [
        (torch.float32, "sdpa", (), 1e-6),
        (torch.float32, "eager", (6, 9), 1e-5),
        (torch.float64, "sdpa", (6, 9), 1e-11),
        (torch.bfloat16, "sdpa", (), 0.1),
    ],
)
def test_the_cache_of_answers_gives_the_same_log_odds(tmp_path, dtype, attention, lead, tolerance):
    """Of prompts with 1 to 24 tokens, against the float64 reference."""
    model = load(tmp_path, "qwen2", dtype=dtype)
    model.set_attn_implementation(attention)
    prompts = [*make_prompts(), [5]]
    rows = log_odds_after_answers(model, list("abcdefgh"), prompts, openings(lead=lead), answer(model, prompts))
    assert [row["id"] for row in rows] == list("abcdefgh")
    model.set_attn_implementation("sdpa")
    assert_equal_to_reference(rows, model.double(), [[*prompt, *lead] for prompt in prompts], tolerance)


def test_caches_that_cannot_be_used_are_refused(tmp_path, monkeypatch):
    """Those of sliding windows, which no longer hold the prompts; and trees too large for a batch of answers."""
    model = load(tmp_path, "gemma2")
    assert log_odds_after_answers(model, ["a"], [[4, 5]], openings(), answer(model, [[4, 5]])) is None
    model = load(tmp_path / "llama")
    monkeypatch.setattr(log_odds, "BATCH_TOKENS", 5)
    assert log_odds_after_answers(model, ["a"], [[4, 5]], openings(), answer(model, [[4, 5]])) is None


@torch.no_grad()
def greedy_margin(model, prompt, sequences):
    """The smallest lead of refusals along greedy decoding, one forward pass per token."""
    path, lowest = (), math.inf
    while path not in sequences:
        logits = model(input_ids=torch.tensor([[*prompt, *path]])).logits[0, -1].double()
        children = {tokens[len(path)] for tokens in sequences if tokens[: len(path)] == path}
        best = max(children, key=lambda token: logits[token].item())
        other = max(value for token, value in enumerate(logits.tolist()) if token not in children)
        path, lowest = (*path, best), min(lowest, logits[best].item() - other)
    return lowest


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_the_margin_is_above_zero_exactly_where_greedy_decoding_opens_with_a_refusal(tmp_path, model_type):
    model = load(tmp_path, model_type)
    prompts = make_prompts(count=12)
    answers = [
        tuple(model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=3)[0, len(prompt) :].tolist())
        for prompt in prompts
    ]
    # what greedy decoding answers to the first six prompts counts as refusals
    sequences = tuple(dict.fromkeys((*(answer[:2] for answer in answers[:4]), *answers[4:6], (7, 8), (20,))))
    sequences = tuple(s for s in sequences if not any(s != t and s[: len(t)] == t for t in sequences))
    rows = refusal_log_odds(model, list(map(str, range(12))), prompts, openings(sequences))
    refused = [any(answer[: len(tokens)] == tokens for tokens in sequences) for answer in answers]
    assert any(refused) and not all(refused)
    assert [row["margin"] > 0 for row in rows] == refused
    reference = [greedy_margin(model.double(), prompt, sequences) for prompt in prompts]
    assert [row["margin"] for row in rows] == pytest.approx(reference, abs=1e-5)


@pytest.mark.parametrize(
    ("attention", "dtype", "tolerance"), [("sdpa", torch.float64, 1e-12), ("eager", torch.float32, 1e-5)]
)
def test_both_passes_give_the_same_states(tmp_path, attention, dtype, tolerance):
    """One pass with a mask over the tree of openings, or two passes over its paths.

    Eager attention of transformers in float64 is NaN for padded rows.
    """
    model = load(tmp_path, dtype=dtype)
    model.set_attn_implementation(attention)
    prompts = [[4, 5, 6, *prompt] for prompt in make_prompts()]
    tree = Tree.of(SEQUENCES)
    with torch.no_grad():
        masked = TreePass(model.model, tree, prompts)
        assert masked.by_mask and masked.shared == (4, 5, 6)
        repeated = TreePass(model.model, tree, prompts)
        repeated.by_mask, repeated.shared, repeated.cache = False, (), DynamicCache(config=model.config)
        for batch in (prompts, prompts[2:4]):
            assert masked(batch).shape == (len(batch), 6, 32)
            torch.testing.assert_close(masked(batch), repeated(batch), atol=tolerance, rtol=tolerance)


def test_models_with_sliding_windows_take_two_passes(tmp_path):
    model = load(tmp_path, "gemma2")
    assert not TreePass(model.model, Tree.of(SEQUENCES), make_prompts()).by_mask


def test_a_float64_model_stays_in_float64(tmp_path):
    model = load(tmp_path, dtype=torch.float64)
    prompts = make_prompts()
    rows = refusal_log_odds(model, list("abcdefg"), prompts, openings())
    assert_equal_to_reference(rows, model, prompts, 1e-11)


def test_bfloat16_is_summed_in_float32(tmp_path):
    """The head's products are not rounded to bfloat16; the reference is a float32 model with the same weights."""
    model = load(tmp_path, dtype=torch.bfloat16)
    prompts = make_prompts()
    rows = refusal_log_odds(model, list("abcdefg"), prompts, openings())
    assert_equal_to_reference(rows, model.float(), prompts, 0.1)


def test_probabilities_near_0_and_1_keep_their_log_odds(tmp_path):
    """Even if 1 − p_R or p_R rounds to 0, the log-odds are the difference of the logits."""
    model = load(tmp_path, tied=False, dtype=torch.float64)
    for scale in (60.0, -60.0):
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(300, dtype=torch.float64))
        model.lm_head.bias.data[5] = scale
        (row,) = refusal_log_odds(model, ["a"], [[4, 5, 6]], openings([(5,)]))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[4, 5, 6]])).logits[0, -1]
        others = torch.cat([logits[:5], logits[6:]]).logsumexp(-1)
        assert row["log_odds"] == pytest.approx((logits[5] - others).item(), abs=1e-9)
        assert row["first_token"] == row["log_odds"] and abs(row["log_odds"]) > 50


def test_the_lead_is_between_prompt_and_opening(tmp_path):
    model = load(tmp_path, dtype=torch.float64)
    (row,) = refusal_log_odds(model, ["a"], [[4, 5]], openings(lead=(6, 9)))
    (same,) = refusal_log_odds(model, ["a"], [[4, 5, 6, 9]], openings())
    assert row == same


def test_the_model_is_unchanged(tmp_path):
    model = load(tmp_path).train()
    refusal_log_odds(model, ["a"], [[4, 5]], openings())
    assert model.training and all(part.training for part in model.modules())


def test_training_computes_the_same_log_odds(tmp_path):
    model = load(tmp_path, "gemma2")
    rows = refusal_log_odds(model, list("abcdefg"), make_prompts(), openings())
    Likelihood(model, "chunked")
    assert refusal_log_odds(model, list("abcdefg"), make_prompts(), openings()) == rows


def test_adapters_are_applied(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = load(tmp_path, dtype=torch.float64)
    (before,) = refusal_log_odds(model, ["a"], [[4, 5, 6]], openings())
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)).double()
    (after,) = refusal_log_odds(adapted, ["a"], [[4, 5, 6]], openings())
    assert after["log_odds"] != pytest.approx(before["log_odds"], abs=1e-6)
    assert_equal_to_reference([after], adapted.eval(), [[4, 5, 6]], 1e-11)


def test_impurity_is_the_probability_of_other_continuations(tmp_path):
    model = load(tmp_path, dtype=torch.float64)
    rows = refusal_log_odds(model, list("abcdefg"), make_prompts(), openings())
    p, first = ([1 / (1 + math.exp(-row[key])) for row in rows] for key in ("log_odds", "first_token"))
    assert first_token_impurity(rows) == pytest.approx(1 - sum(p) / sum(first)) and 0 < first_token_impurity(rows) < 1
    assert first_token_impurity(refusal_log_odds(model, ["a"], [[4]], openings([(20,)]))) == 0


def test_tree_covers_every_inner_node_once():
    tree = Tree.of(SEQUENCES)
    assert set(tree.nodes) == {(), (7,), (7, 9), (7, 9, 11), (21,), (21, 7)} and tree.nodes[0] == ()
    assert set(tree.paths) == {(7, 9, 11), (21, 7)}
    assert tree.children((7,)) == [8, 9] and tree.children(()) == [7, 20, 21]


@pytest.mark.parametrize(
    ("sequences", "message"),
    [([], "no openings"), ([(5,), ()], "no tokens"), ([(5,), (5, 6)], "prefix"), ([(5,), (5,)], "prefix")],
)
def test_openings_that_cannot_be_summed_are_refused(sequences, message):
    with pytest.raises(UserError, match=message):
        Tree.of(sequences)


def test_bad_prompts_are_refused(tmp_path):
    model = load(tmp_path)
    with pytest.raises(UserError, match="no prompts"):
        refusal_log_odds(model, [], [], openings())
    with pytest.raises(UserError, match="prompt b has no tokens"):
        refusal_log_odds(model, ["a", "b"], [[4], []], openings())


def test_values_that_are_not_finite_are_refused(tmp_path):
    model = load(tmp_path)
    model.model.norm.weight.data[3] = math.nan
    with pytest.raises(UserError, match="prompt a are not finite"):
        refusal_log_odds(model, ["a"], [[4, 5]], openings())


def test_a_model_that_rescales_its_logits_in_an_unknown_way_is_refused(tmp_path, monkeypatch):
    """Cohere multiplies its logits after the head, which the head alone does not show."""
    monkeypatch.setattr(readings, "after_head", lambda config: (1.0, None))
    model = load(tmp_path, "cohere", logit_scale=0.25)
    with pytest.raises(UserError, match="cannot be read this way"):
        refusal_log_odds(model, ["a"], [[4, 5]], openings())
    with pytest.raises(UserError, match="cannot be read this way"):
        log_odds_after_answers(model, ["a"], [[4, 5]], openings(), answer(model, [[4, 5]]))

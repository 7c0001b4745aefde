"""SCANS against a plain implementation: without hooks, padding or a cache, in float64."""

import math

import pytest
import torch
from hooked_models import fast_answers, load, make_prompts, openings, slow_answer, tiny_source, write_hook
from tiny_models import ONE_RANK

from dcr_ds.baselines.scans import Anchors, Blocks, best_threshold, compute_vectors, scores_of, sure_tokens
from dcr_ds.diagnose.log_odds import log_odds_after_answers, refusal_log_odds
from dcr_ds.errors import UserError
from dcr_ds.evaluate.general_loss import general_loss
from dcr_ds.models.chat import Encoded
from dcr_ds.models.hooks.context import answering, hook_of
from dcr_ds.models.tokenizer import load_tokenizer

LAYERS, SURE, ALPHA = 6, [60, 61], 2.5
BLOCKS = Blocks.of(LAYERS)
PROMPTS = make_prompts()
NAMES = list("abcdef")
ANSWERS = ([7, 9], [5], [21, 4, 6], [8], [30, 31, 32], [7])
near = lambda values: pytest.approx(values, abs=1e-6)  # noqa: E731


@torch.no_grad()
def plain_states(model, ids, shift=None, start=0):
    """Outputs of all blocks [L, T, D] and the next logits; `shift` by block is added from token `start` on."""
    decoder = model.get_decoder()
    hidden = decoder.embed_tokens(torch.tensor([ids]))
    positions = torch.arange(len(ids))[None]
    rotary = decoder.rotary_emb(hidden, position_ids=positions)
    mask = torch.full((len(ids), len(ids)), torch.finfo(hidden.dtype).min, dtype=hidden.dtype).triu(1)[None, None]
    outputs = []
    for number, block in enumerate(decoder.layers, 1):
        output = block(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        hidden = (output if isinstance(output, torch.Tensor) else output[0]).clone()
        if shift is not None and number in shift:
            hidden[:, start:] += shift[number]
        outputs.append(hidden[0])
    return torch.stack(outputs), model.lm_head(decoder.norm(hidden))[0]


def plain_score(model, reference, prompt):
    states, _ = plain_states(model, [*prompt, *SURE])
    moved = states[:, len(prompt) - 1] - states[:, -1]
    cosines = [
        torch.dot(moved[layer - 1], ours) / (moved[layer - 1].norm() * ours.norm())
        for layer, ours in zip(BLOCKS.classified, reference, strict=True)
    ]
    return (sum(cosines) / len(cosines)).item()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_source(tmp_path_factory.mktemp("scans") / "model", layers=LAYERS)


@pytest.fixture(scope="module")
def plain(source):
    return load(source)


@pytest.fixture(scope="module")
def vectors(plain):
    return compute_vectors(plain, BLOCKS, Anchors(PROMPTS[:2], PROMPTS[2:]), SURE)


@pytest.fixture(scope="module")
def hooked(source, plain, vectors, tmp_path_factory):
    """A model with a threshold that finds some prompts safe and some unsafe."""
    scores = sorted(plain_score(plain, vectors.reference, prompt) for prompt in PROMPTS)
    settings = {
        "strength": ALPHA,
        "threshold": (scores[2] + scores[3]) / 2,
        "steered": BLOCKS.steered,
        "classified": BLOCKS.classified,
        "sure": SURE,
        "threshold_from": "test",
    }
    hook = write_hook(tmp_path_factory.mktemp("hook") / "scans", source, "scans", settings, vectors.tensors)
    return load(source, hook)


def steered_logits(plain, hooked, vectors, prompt, ids):
    """Logits [T, V] of the plain implementation of the steered model."""
    threshold = hook_of(hooked).settings.threshold
    sign = 1 if plain_score(plain, vectors.reference, prompt) >= threshold else -1
    shift = {layer: sign * ALPHA * v for layer, v in zip(BLOCKS.steered, vectors.directions, strict=True)}
    return plain_states(plain, ids, shift, start=len(prompt) - 1)[1]


def test_equal_anchors_give_no_direction(plain):
    with pytest.raises(UserError, match="are equal or not finite"):
        compute_vectors(plain, BLOCKS, Anchors(PROMPTS[:2], PROMPTS[1::-1]), SURE)


def test_blocks_are_those_of_the_published_code_for_32():
    blocks = Blocks.of(32)
    assert (blocks.steered, blocks.classified) == (list(range(11, 21)), list(range(11, 33)))
    assert Blocks.of(30).steered == list(range(10, 20))
    with pytest.raises(UserError, match="2 blocks"):
        Blocks.of(2)


def test_vectors_are_those_of_the_formula(plain, vectors):
    states = [plain_states(plain, [*prompt, *SURE])[0] for prompt in PROMPTS]
    last = torch.stack([rows[:, len(prompt) - 1] for rows, prompt in zip(states, PROMPTS, strict=True)])
    for layer, direction in zip(BLOCKS.steered, vectors.directions, strict=True):
        difference = last[:2, layer - 1].mean(0) - last[2:, layer - 1].mean(0)
        assert torch.allclose(direction, difference / difference.norm(), atol=1e-9)
    for layer, reference in zip(BLOCKS.classified, vectors.reference, strict=True):
        moved = [last[i, layer - 1] - states[i][layer - 1, -1] for i in range(2)]
        assert torch.allclose(reference, sum(moved) / 2, atol=1e-9)
    expected = [plain_score(plain, vectors.reference, prompt) for prompt in PROMPTS]
    assert scores_of(plain, BLOCKS, vectors, PROMPTS, SURE) == near(expected)


def test_generation_is_that_of_a_plain_implementation(plain, hooked, vectors):
    """Prompts of several lengths, safe and unsafe ones in one left-padded batch; also the log-odds from its cache."""
    with answering(hooked, PROMPTS):
        answers, logits, cache = fast_answers(hooked, PROMPTS, 4)
    assert {hook_of(hooked).is_unsafe(prompt) for prompt in PROMPTS} == {True, False}
    for prompt, answer, seen in zip(PROMPTS, answers, logits, strict=True):
        expected, expected_logits = slow_answer(
            lambda ids, prompt=prompt: steered_logits(plain, hooked, vectors, prompt, ids)[-1], prompt, 4
        )
        assert answer == expected
        assert seen.flatten().tolist() == near(expected_logits.flatten().tolist())
    for row, prompt in zip(log_odds_after_answers(hooked, NAMES, PROMPTS, openings(), cache), PROMPTS, strict=True):
        assert list(row["openings"].values()) == near(plain_openings(plain, hooked, vectors, prompt))


def plain_openings(plain, hooked, vectors, prompt):
    log_p = []
    for opening in openings().openings:
        logits = steered_logits(plain, hooked, vectors, prompt, [*prompt, *opening.tokens])
        steps = logits[len(prompt) - 1 : -1].log_softmax(-1)
        log_p.append(sum(steps[i, token].item() for i, token in enumerate(opening.tokens)))
    return log_p


@pytest.mark.parametrize("count", [1, 6])
def test_log_odds_are_those_of_the_steered_model(plain, hooked, vectors, count):
    """Also of a single prompt, all of which is what the prompts have in common."""
    rows = refusal_log_odds(hooked, NAMES[:count], PROMPTS[:count], openings(), 4)
    for row, prompt in zip(rows, PROMPTS, strict=False):
        expected = plain_openings(plain, hooked, vectors, prompt)
        assert list(row["openings"].values()) == near(expected)
        total = math.fsum(map(math.exp, expected))
        assert row["log_odds"] == near(math.log(total / (1 - total)))


def test_the_threshold_has_the_best_balanced_accuracy():
    assert best_threshold([0.9, 0.8, 0.4], [0.1, 0.2, 0.5]) == (pytest.approx(0.65), pytest.approx(5 / 6))
    assert best_threshold([0.5], [0.5]) == (0.5, 0.5)


def test_sure_is_tokenised_as_an_answer(source):
    tokenizer = load_tokenizer(source)
    assert tokenizer.decode(sure_tokens(tokenizer)) == "Sure"


def test_general_loss_is_that_of_the_steered_model(plain, hooked, vectors):
    rows = [Encoded([*prompt, *answer], len(prompt)) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    total = 0.0
    for row, prompt in zip(rows, PROMPTS, strict=True):
        logits = steered_logits(plain, hooked, vectors, prompt, row.ids)[row.prompt_tokens - 1 : -1]
        targets = torch.tensor(row.ids[row.prompt_tokens :])
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    result = general_loss(hooked, rows, 4, ONE_RANK)
    assert result["loss"] == pytest.approx(total / result["tokens"], abs=1e-5)  # float32 sums


def test_log_odds_of_a_model_with_sliding_windows(tmp_path, vectors):
    """Its openings are read from repeated rows; against the forward pass of one row, with the same hook."""
    source = tiny_source(tmp_path / "model", "gemma2", layers=LAYERS)
    settings = {
        "strength": ALPHA, "threshold": 0.0, "steered": BLOCKS.steered, "classified": BLOCKS.classified, "sure": SURE,
        "threshold_from": "test",
    }  # fmt: skip
    tensors = {"directions": vectors.directions.float(), "reference": vectors.reference.float()}
    hook = write_hook(tmp_path / "hook", source, "scans", settings, tensors)
    hooked, plain = (load(source, folder, torch.float32, "eager") for folder in (hook, None))
    unsteered = refusal_log_odds(plain, NAMES, PROMPTS, openings(), 4)
    rows = refusal_log_odds(hooked, NAMES, PROMPTS, openings(), 4)
    assert all(abs(row["log_odds"] - other["log_odds"]) > 1e-3 for row, other in zip(rows, unsteered, strict=True))
    for row, prompt in zip(rows, PROMPTS, strict=True):
        for opening, log_p in zip(openings().openings, row["openings"].values(), strict=True):
            tokens = torch.tensor([[*prompt, *opening.tokens]])
            with torch.no_grad(), answering(hooked, [prompt]):
                steps = hooked(input_ids=tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            assert log_p == pytest.approx(steps.gather(-1, tokens[0, len(prompt) :, None]).sum().item(), abs=1e-4)

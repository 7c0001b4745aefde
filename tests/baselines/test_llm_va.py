"""LLM-VA: the vectors against scikit-learn, the changed weights against the formula, and the choice of modules."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from sklearn.svm import LinearSVC
from subjects import is_refused, make_subject, module_outputs

from dcr_ds.baselines.llm_va import BENIGN, LlmVaSettings, Separation, alignment, llm_va, separation
from dcr_ds.baselines.svm import svm_direction
from dcr_ds.diagnose.openings import Openings
from dcr_ds.errors import UserError

COUNT = 3


@pytest.mark.parametrize("shape", [(12, 40), (60, 8)])
def test_the_vector_is_that_of_a_linear_svm(shape):
    """In both cases: separable prompts, and ones that are not."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(shape, dtype=torch.float64, generator=generator)
    labels = torch.randn(len(features), dtype=torch.float64, generator=generator).sign()
    expected = LinearSVC(fit_intercept=False, dual=False, tol=1e-10, max_iter=10000).fit(features, labels).coef_[0]
    assert svm_direction(features, labels).numpy() == pytest.approx(expected, abs=1e-6)


def test_the_output_has_along_v_a_what_it_had_along_v_b():
    weight, *vectors = (torch.randn(shape, dtype=torch.float64) for shape in ((6, 9), (6,), (6,)))
    v_b, v_a = (vector / vector.norm() for vector in vectors)
    changed = alignment(Separation(v_b, 0.5, 1.0), Separation(v_a, 2.0, 1.0))(weight)
    assert v_a @ changed == pytest.approx(4 * (v_b @ weight), abs=1e-12)
    assert torch.linalg.matrix_rank(changed - weight, atol=1e-9) == 1
    across = torch.eye(6, dtype=torch.float64) - torch.outer(v_a, v_a)
    assert (across @ (changed - weight)).abs().max() < 1e-12, "changed elsewhere than along v_a"


def svm(rows, labels):
    return LinearSVC(fit_intercept=False, dual=False, tol=1e-10, max_iter=10000).fit(rows, labels)


def plain_iteration(model, subject):
    """The changed weights by module of one iteration, and F1 of the model before it, with scikit-learn's parts."""
    rows = {
        part: [(row, name in BENIGN) for name, split in subject.prompts.items() for row in getattr(split, part).tokens]
        for part in ("train", "validation")
    }
    benign = {part: np.array([flag for _, flag in rows[part]]) for part in rows}
    answered = {
        part: np.array([not is_refused(model, row, subject.openings) for row, _ in rows[part]]) for part in rows
    }

    blocks = range(model.config.num_hidden_layers)
    names = [f"model.layers.{i}.{path}" for i in blocks for path in ("self_attn.o_proj", "mlp.down_proj")]
    last = f"model.layers.{blocks[-1]}"
    outputs = {part: [module_outputs(model, [*names, last], row) for row, _ in rows[part]] for part in rows}

    def vectors(name):
        states = {part: np.array([of_row[name][-1].numpy() for of_row in outputs[part]]) for part in rows}
        found = []
        for labels in (benign, answered):
            fitted = svm(states["train"], labels["train"])
            unit = fitted.coef_[0] / np.linalg.norm(fitted.coef_[0])
            spread = (states["train"] @ unit).std(ddof=1)
            found.append((unit, spread, fitted.score(states["validation"], labels["validation"])))
        return found

    end_pair = vectors(last)
    found = {name: vectors(name) for name in names}
    rank = {
        name: sum(own[0] @ end[0] * own[2] for own, end in zip(pair, end_pair, strict=True))
        for name, pair in found.items()
    }
    changed = {}
    for name in sorted(names, key=rank.get)[-COUNT:]:
        (v_b, s_b, _), (v_a, s_a, _) = found[name]
        weight = model.get_submodule(name).weight.detach().numpy()
        changed[name] = weight - np.outer(v_a, v_a @ weight) + np.outer(v_a, s_a / s_b * (v_b @ weight))
    return changed, f1_score(benign["validation"], answered["validation"])


@pytest.mark.parametrize(("seed", "best"), [(1, 2), (9, 1)])
def test_two_iterations_equal_a_plain_implementation(tmp_path, seed, best):
    """With the second iteration kept, and with the first one."""
    subject = make_subject(tmp_path, 12, 8, layers=2, seed=seed)
    original = copy.deepcopy(subject.model)
    plain, expected_f1 = copy.deepcopy(subject.model), []
    for _ in range(2):
        changed, f1 = plain_iteration(plain, subject)
        expected_f1.append(f1)
        with torch.no_grad():
            for name, weight in changed.items():
                plain.get_submodule(name).weight.copy_(torch.tensor(weight))
    expected_f1.append(plain_iteration(plain, subject)[1])
    edited = llm_va(subject, LlmVaSettings(COUNT, 2))
    assert edited.figures["f1"] == pytest.approx(expected_f1, abs=1e-12)
    for name, module in subject.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert (module.weight - plain.get_submodule(name).weight).abs().max() < 1e-6, name
    assert edited.figures["best_iteration"] == best == int(np.argmax(expected_f1))
    for name, edit in edited.edits.items():
        weight = original.get_parameter(name)
        assert torch.linalg.matrix_rank(edit(weight) - weight, atol=1e-9) <= best
        if best == 2:
            assert (edit(weight) - plain.get_parameter(name)).abs().max() < 1e-6


def test_a_model_that_refuses_nothing_cannot_be_aligned(tmp_path):
    subject = make_subject(tmp_path)
    subject = replace(subject, openings=Openings(subject.openings.openings[-1:], (), (), 0.5, 0.0))
    with pytest.raises(UserError, match="answers 60 and refuses 0 training prompts"):
        llm_va(subject, LlmVaSettings())


def test_equal_prompts_have_no_spread_to_divide_by():
    """Also where they differ by rounding alone, and where one of them is the only one."""
    states = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)).repeat(4, 1)
    labels, training = torch.tensor([True, False, True, False]), torch.tensor([True, True, True, False])
    noise = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    assert separation(states + noise, labels, training).spread > 0.1
    for equal in (states, states + 1e-8 * noise, 0 * states):
        with pytest.raises(UserError, match="outputs of all 3 training prompts are equal"):
            separation(equal, labels, training)
    with pytest.raises(UserError, match="outputs of all 1 training prompts are equal"):
        separation(states + noise, labels, torch.tensor([True, False, False, False]))


def test_a_damaged_model_is_named(tmp_path):
    subject = make_subject(tmp_path)
    with torch.no_grad():
        subject.model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="not finite: its weights are damaged"):
        llm_va(subject, LlmVaSettings())


def test_more_modules_than_there_are(tmp_path):
    with pytest.raises(UserError, match="--modules: 7 asked for, the model has 6"):
        llm_va(make_subject(tmp_path), LlmVaSettings(7))

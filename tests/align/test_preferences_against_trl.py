"""Loss and gradient of each method on preferences equal those of TRL. Needs trl (pip install 'dcr-ds[bench]')."""

import copy

import pytest
import torch
from tiny import TEMPLATE, make_model, make_tokenizer
from transformers import AutoModelForCausalLM

from dcr_ds.align.kto import KtoObjective
from dcr_ds.align.labelled import encode_labelled
from dcr_ds.align.objective import objective_of
from dcr_ds.align.pairs import encode_pairs
from dcr_ds.align.reference import compute
from dcr_ds.data.records import DataSet, LabelledAnswer, Preference
from dcr_ds.engine.batching import Batching
from dcr_ds.engine.distributed import Ranks
from dcr_ds.models.likelihood import Likelihood
from dcr_ds.recipe import Recipe

trl = pytest.importorskip("trl", reason="trl is not installed")
PAIRS = [("hi", "hello to you", "go"), ("1 + 1", "2", "three, I say"), ("and?", "nothing more, thanks", "no")]
LABELLED = [("hi", "hello to you", True), ("1 + 1", "three, I say", False), ("and?", "nothing more", True),
            ("who?", "me", False), ("where", "over there, I think", True)]  # fmt: skip
# TRL's ORPO computes the SFT loss on prompts, too; its losses are those of one micro-batch
CASES = {
    "dpo": ({"beta": 0.3}, {}),
    "dpo sigmoid_norm": ({"beta": 4.0, "loss": "sigmoid_norm"}, {}),
    "kto": ({"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}, {}),
    "kto swapped": ({"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}, {}),
    "orpo": ({"weight": 0.7}, {"loss_on": "all"}),
    "simpo": ({"beta": 2.5, "gamma": 0.8}, {}),
}
ALONE = Ranks(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The reference model, and a policy that differs from it."""
    reference = AutoModelForCausalLM.from_pretrained(make_model(tmp_path_factory.mktemp("model"), layers=2))
    policy = copy.deepcopy(reference)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return reference, policy


def rows_of(method: str) -> list:
    """The step is in the order of the rows, as TRL's."""
    return LABELLED if method == "kto" else PAIRS


def theirs(reference, policy, tokenizer, recipe: Recipe, folder):
    from datasets import Dataset

    method, section = recipe.align.method, getattr(recipe.align, recipe.align.method)
    names = ("completion",) if method == "kto" else ("chosen", "rejected")
    rows = [
        {"prompt": [{"role": "user", "content": prompt}]}
        | {name: [{"role": "assistant", "content": text}] for name, text in zip(names, texts, strict=False)}
        | ({"label": texts[1]} if method == "kto" else {})
        for prompt, *texts in rows_of(method)
    ]
    common = {
        "output_dir": str(folder), "per_device_train_batch_size": len(rows), "use_cpu": True, "bf16": False,
        "report_to": [], "gradient_checkpointing": False,
    }  # fmt: skip
    options = {"args": None, "model": policy, "train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
    if method == "dpo":
        options["args"] = trl.DPOConfig(**common, beta=section.beta, loss_type=[section.loss])
        trainer = trl.DPOTrainer(**options, ref_model=reference)
    elif method == "kto":
        weights = {name: getattr(section, name) for name in ("beta", "desirable_weight", "undesirable_weight")}
        options["args"] = trl.KTOConfig(**common, **weights)
        trainer = trl.KTOTrainer(**options, ref_model=reference)
    elif method == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        options["args"] = ORPOConfig(**common, beta=section.weight, max_length=200, disable_dropout=False)
        trainer = ORPOTrainer(**options)
    else:  # SimPO is a loss of CPO's trainer
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        simpo = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": section.beta, "simpo_gamma": section.gamma}
        options["args"] = CPOConfig(**common, **simpo, max_length=200)
        trainer = CPOTrainer(**options)
    trainer.args.train_sampling_strategy = "sequential"
    (batch,) = list(trainer.get_train_dataloader())
    return trainer.compute_loss(policy, batch)


def ours(reference, policy, tokenizer, recipe: Recipe):
    if recipe.align.method == "kto":
        answers = [LabelledAnswer(p, ({"role": "user", "content": p},), text, label) for p, text, label in LABELLED]
        samples = encode_labelled(recipe.align, DataSet("preferences", "here", answers, ""), tokenizer)
    else:
        pairs = [Preference(p, ({"role": "user", "content": p},), good, bad) for p, good, bad in PAIRS]
        samples = encode_pairs(DataSet("preferences", "here", pairs, ""), 200, tokenizer)
    objective = objective_of(recipe, samples)
    policy, reference = (Likelihood(model, "chunked") for model in (policy, reference))
    rows = list(range(len(samples.samples)))
    if isinstance(objective, KtoObjective):
        mismatched = [(samples.mismatched(rows, position),) for position in rows]
        objective.take_reference(compute(reference, [(s,) for s in samples.samples] + mismatched, Batching(9), ALONE))
    elif recipe.align.method == "dpo":
        objective.take_reference(compute(reference, objective.read_by_reference(), Batching(9), ALONE))
    objective.begin_step(policy, 0, rows, Batching(2), ALONE)
    summed, _ = objective.summed_loss(policy, rows, [True] * len(rows), False, ALONE.device)
    return summed / objective.num_terms(rows)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_trl(models, tmp_path, case):
    """With the roles of policy and reference swapped, the KL estimate has the other sign: in one case it is clamped."""
    method, swapped = case.split()[0], case.endswith("swapped")
    section, fields = CASES[case]
    batch = len(rows_of(method))
    recipe = Recipe(align={"method": method, method: section, "global_batch": batch, **fields})
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<|im_end|>\n", "<|im_end|>")  # TRL supervises the line break, too
    losses, gradients = [], []
    for compute_loss in (lambda *arguments: theirs(*arguments, tmp_path), ours):
        reference, policy = copy.deepcopy(models[::-1] if swapped else models)
        losses.append(compute_loss(reference, policy, tokenizer, recipe))
        losses[-1].backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in policy.parameters()]))
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm()

"""Loss and gradient equal those of TRL's DPOTrainer. Needs trl (pip install 'dcr-ds[bench]')."""

import copy

import pytest
import torch
from tiny import TEMPLATE, make_model, make_tokenizer
from transformers import AutoModelForCausalLM

from dcr_ds.align.dpo import preference_loss
from dcr_ds.align.pairs import encode_pairs
from dcr_ds.align.reference import log_probs
from dcr_ds.data.records import Preference, PreferenceSet
from dcr_ds.models.likelihood import Likelihood
from dcr_ds.recipe import DpoSection

trl = pytest.importorskip("trl", reason="trl is not installed")
ROWS = [("hi", "hello to you", "go"), ("1 + 1", "2", "three, I say"), ("and?", "nothing more, thanks", "no")]


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


def theirs(reference, policy, tokenizer, dpo: DpoSection, folder):
    from datasets import Dataset

    turns = [[[{"role": "user", "content": row[0]}], *({"role": "assistant", "content": text} for text in row[1:])]
             for row in ROWS]  # fmt: skip
    data = Dataset.from_list([{"prompt": prompt, "chosen": [good], "rejected": [bad]} for prompt, good, bad in turns])
    config = trl.DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=len(ROWS), use_cpu=True, bf16=False, report_to=[],
        gradient_checkpointing=False, beta=dpo.beta, loss_type=[dpo.loss],
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        model=policy, ref_model=reference, args=config, train_dataset=data, processing_class=tokenizer
    )
    return trainer.compute_loss(policy, next(iter(trainer.get_train_dataloader())))


def ours(reference, policy, tokenizer, dpo: DpoSection):
    rows = [Preference(text, ({"role": "user", "content": text},), good, bad) for text, good, bad in ROWS]
    pairs = encode_pairs(PreferenceSet("preferences", "here", rows, ""), 200, tokenizer).samples
    of_policy, of_reference = (
        log_probs(Likelihood(model, "chunked"), pairs, [True] * len(pairs), False, torch.device("cpu"))
        for model in (policy, reference)
    )
    lengths = torch.tensor([[answer.num_supervised for answer in pair.both] for pair in pairs])
    return preference_loss(of_policy, of_reference.detach(), lengths, dpo)[0].mean()


@pytest.mark.parametrize(
    "dpo", [DpoSection(beta=0.3), DpoSection(loss="sigmoid_norm", beta=4.0)], ids=lambda it: it.loss
)
def test_loss_and_gradient_are_those_of_trl(models, tmp_path, dpo):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<|im_end|>\n", "<|im_end|>")  # TRL supervises the line break, too
    losses, gradients = [], []
    for compute in (lambda *arguments: theirs(*arguments, tmp_path), ours):
        reference, policy = copy.deepcopy(models)
        losses.append(compute(reference, policy, tokenizer, dpo))
        losses[-1].backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in policy.parameters()]))
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm()

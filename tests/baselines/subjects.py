"""A tiny float64 model with random prompts of three kinds, and plain ways to read it, one prompt at a time."""

import math

import torch
from tiny import make_model
from transformers import AutoModelForCausalLM

from dcr_ds.baselines.prompts import ROLES
from dcr_ds.baselines.subject import Encoded, Split, Subject
from dcr_ds.diagnose.openings import Opening, Openings

SUFFIX = [7, 8, 9]  # what the chat template would write after the user's message
FIRST = {"harmful": 20, "harmless": 100, "seemingly_toxic": 180}  # token of each set


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def make_subject(folder, train=20, validation=10, **sizes):
    """A subject, whose model is also saved in `folder`."""
    sizes = {"layers": 3, "dtype": torch.float64, **sizes}
    model = load(make_model(folder, **sizes))
    generator = torch.Generator().manual_seed(0)

    def prompts(name, count):
        lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
        rows = [(FIRST[name] + torch.randint(80, (length,), generator=generator)).tolist() for length in lengths]
        return Encoded([f"{name}-{i}" for i in range(count)], [[*row, *SUFFIX] for row in rows])

    sets = {name: Split(prompts(name, train), prompts(name, validation)) for name in ROLES}
    return Subject(model, sets, _openings(model, sets), len(SUFFIX), batch_size=4)


def _openings(model, sets):
    """Every second token by its mean probability, so that about half of the prompts are refused."""
    rows = [row for split in sets.values() for row in split.train.tokens]
    order = torch.stack([next_log_p(model, row).exp() for row in rows]).mean(0).argsort(descending=True)
    listed = tuple(Opening(str(token), (token,), "data", 0.1, 0.0) for token in order[1::2].tolist())
    return Openings(listed, (), (), 0.5, 0.0)


@torch.no_grad()
def next_log_p(model, row):
    return model(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(-1)


def score(model, row, openings):
    """Refusal log-odds after one prompt."""
    p = next_log_p(model, row)[[opening.tokens[0] for opening in openings.openings]].exp().sum().item()
    return math.log(p / (1 - p))


@torch.no_grad()
def block_inputs(model, row):
    """[L, T, D]."""
    return torch.stack(model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[:-1])[:, 0]


@torch.no_grad()
def module_outputs(model, names, row):
    """Output [T, D] of each module, from one forward pass."""
    found = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: found.update({name: output[0]})
        )
        for name in names
    ]
    model(input_ids=torch.tensor([row]))
    for hook in hooks:
        hook.remove()
    return found


def is_refused(model, row, openings):
    """Whether the most likely token is an opening."""
    return next_log_p(model, row).argmax().item() in {opening.tokens[0] for opening in openings.openings}

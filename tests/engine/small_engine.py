"""A small network under DeepSpeed and its training; the batches depend only on the step."""

import torch

from dcr_ds.engine.build import build_engine, stage_config
from dcr_ds.engine.checkpoint.checkpoints import Checkpoints
from dcr_ds.engine.weights import TrainedWeights
from dcr_ds.models.splice import read_all
from dcr_ds.recipe import StageSection

STAGE = StageSection(learning_rate=0.05, warmup_steps=4)


def make_engine(ranks, zero, seed, **section):
    """A small network; its first layer is frozen and independent of the seed. `section`: more of zero_optimization."""
    torch.manual_seed(7)
    frozen = torch.nn.Linear(4, 8).requires_grad_(False)
    torch.manual_seed(seed)
    model = torch.nn.Sequential(frozen, torch.nn.Tanh(), torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    config = stage_config({"zero_optimization": {"stage": zero} | section}, STAGE, "float32", ranks)
    return build_engine(model, STAGE, config, "linear", 20, ranks)


def accumulate(engine, step):
    """Compute the gradients of a step in two micro-batches, and return its loss."""
    batch = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
    total = 0.0
    for rows in batch.split(3):
        loss = (engine(rows) - rows.sum(1, keepdim=True)).square().mean() / 2
        engine.backward(loss, scale_wrt_gas=False)
        total += loss.item()
    return total


def train(engine, steps):
    for step in steps:
        accumulate(engine, step)
        engine.step()


def save_checkpoint(engine, folder, step, state, keep, ranks):
    checkpoints = Checkpoints(engine, folder, keep, ranks)
    checkpoints.save(step, state)
    checkpoints.wait_until_saved()


def load_newest(engine, folder, ranks):
    return Checkpoints(engine, folder, 1, ranks).load_newest()


def trained_weights(engine, ranks, masters=True):
    """All trainable parameters by name in the memory of rank 0; empty on other ranks. All ranks."""
    return read_all(TrainedWeights(engine, ranks, masters), ranks.is_main)

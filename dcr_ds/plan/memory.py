"""Memory of one rank in one stage: the states that DeepSpeed keeps, and a micro-batch's rehearsal on top of them."""

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig

from dcr_ds.models.load import DTYPES
from dcr_ds.plan.rehearsal import Rehearsal, Work, build_model, rehearse
from dcr_ds.plan.states import States, Tensor, Zero, states
from dcr_ds.recipe import Recipe


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank's device, and in its host's memory.

    The parts never all peak together: gradients grow while activations are given back. `peak` is the worst moment of
    a step, at most the sum of the parts.
    """

    states: States
    activations: int
    temporaries: int
    peak: int
    peak_phase: str
    host: int

    def parts(self) -> dict[str, int]:
        """By name, in the order of a table; what the state does not have is zero."""
        state = self.states
        return {
            "parameters": state.parameters,
            "gathered layers": state.gathered,
            "fp32 masters": state.masters,
            "optimizer state": state.moments,
            "gradients": state.gradients,
            "reduction buffers": state.buckets,
            "activations": self.activations,
            "loss, temporaries": self.temporaries,
        }


@dataclass(frozen=True)
class Share:
    """What a rank has to do in one step.

    Attributes:
        rows: its share of the stage's samples; retain_rows: of the retain term's; 0 without one.
        micro_batch: rows at once.
        tokens: of each row.
    """

    rows: int
    retain_rows: int
    micro_batch: int
    tokens: int

    @property
    def micro_batches(self) -> int:
        return -(-self.rows // self.micro_batch)


def share_of(recipe: Recipe, stage: str, ranks: int, micro_batch: int | None = None, tokens: int = 0) -> Share:
    """The share of the rank that has most, with every row as long as rows may be unless `tokens` says otherwise."""
    section = getattr(recipe, stage)
    rows = -(-section.global_batch // ranks)
    retain = -(-section.retain_batch // ranks) if stage == "refine" and section.retain_weight else 0
    return Share(rows, retain, min(micro_batch or section.micro_batch, rows), tokens or section.max_length)


def tensors_of(recipe: Recipe, folder: Path, kind: str) -> list[Tensor]:
    """The parameters of a stage's model, as transformers builds it on the meta device."""
    blocks = AutoConfig.from_pretrained(folder).num_hidden_layers
    trunk = blocks if kind == "align" else recipe.refine.layer
    model = build_model(recipe, folder, kind, trunk, blocks - trunk if kind == "whole" else 0)
    width = DTYPES[recipe.model.dtype].itemsize
    return [Tensor(each.numel(), each.requires_grad, width) for each in model.parameters()]


def memory(
    recipe: Recipe, folder: Path, kind: str, zero: Zero, ranks: int, share: Share, tensors: list[Tensor], on_gpu: bool
) -> Memory:
    """Memory of a stage.

    Args:
        kind: refine, whole (stage 1 on the whole model) or align.
        tensors: of `tensors_of`.
    """
    state = states(tensors, zero, ranks, on_gpu)
    device = "cuda" if on_gpu else "cpu"
    first = rehearse(recipe, folder, Work(kind, min(share.rows, share.micro_batch), share.tokens), zero.stage, device)
    passes = [first]
    if share.retain_rows:
        rows = min(share.retain_rows, share.micro_batch)
        passes.append(rehearse(recipe, folder, Work("retain", rows, share.tokens), zero.stage, device))
    bucket = zero.reduce_bucket * DTYPES[recipe.model.dtype].itemsize
    alone = share.micro_batches == 1
    worst = max(_peak(one, state, zero, bucket, is_first=alone and one is first) for one in passes)
    anchors = _anchor_bytes(recipe, folder, share) if kind != "align" else 0
    backward = state.resident + state.gathered + state.buckets + worst
    step = state.resident + state.gradients + state.step
    top = max(passes, key=lambda one: one.peak())
    return Memory(
        states=state,
        activations=top.kept,
        temporaries=top.peak() - top.kept,
        peak=max(backward, step) + (0 if on_gpu else state.host + anchors),
        peak_phase="backward pass" if backward >= step else "optimizer step",
        host=state.host + anchors,
    )


def _peak(one: Rehearsal, state: States, zero: Zero, bucket: int, is_first: bool) -> int:
    """Bytes of activations, temporaries and gradients at the worst moment of a pass, the first of a step or not."""
    before = 0 if is_first else state.gradients
    if zero.stage < 2:
        return one.peak(lambda done: before or done)
    if zero.stage == 2:  # a partition of its own for each pass, whole as soon as a bucket is full
        return one.peak(lambda done: before + (state.gradients if done >= bucket else 0))
    return one.peak(lambda done: state.gradients)


def _anchor_bytes(recipe: Recipe, folder: Path, share: Share) -> int:
    """The original activations of the retain term, kept on the host: of every row that a rank meets, at the most."""
    config = AutoConfig.from_pretrained(folder)
    rows = recipe.refine.max_steps * share.retain_rows
    return rows * share.tokens * config.hidden_size * DTYPES[recipe.model.dtype].itemsize

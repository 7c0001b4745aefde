"""Memory of one rank in one stage: the states that DeepSpeed keeps, and a micro-batch's rehearsal on top of them."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig

from dcr_ds.models.checkpoint_files import BLOCK
from dcr_ds.models.load import DTYPES
from dcr_ds.plan.passes import Kind, Work, build_model
from dcr_ds.plan.rehearsal import Rehearsal, rehearse
from dcr_ds.plan.states import States, Tensor, Zero, states
from dcr_ds.recipe import Recipe

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes a weight: 4 bits, a byte of scale for 64, a float32 for 256 of those


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank's device, and in its host's memory.

    The parts never all peak together: gradients grow while activations are given back.

    Attributes:
        unpacked: of the temporaries, a 4-bit weight as it is multiplied with.
        backward, step: all that is there at the worst moment of the backward passes, and of the optimizer's step.
    """

    states: States
    activations: int
    temporaries: int
    unpacked: int
    backward: int
    step: int
    host: int

    @property
    def peak(self) -> int:
        """The worst moment of a step, at most the sum of the parts."""
        return max(self.backward, self.step)

    @property
    def peak_phase(self) -> str:
        return "backward pass" if self.backward >= self.step else "optimizer step"

    @property
    def rehearsed(self) -> int:
        """What a micro-batch needs that is counted in a rehearsal, and not known from sizes."""
        return self.activations + self.temporaries - self.unpacked

    def calibrated(self, factor: float) -> "Memory":
        """With so many times the memory that was rehearsed."""
        return replace(
            self,
            activations=round(factor * self.activations),
            temporaries=self.unpacked + round(factor * (self.temporaries - self.unpacked)),
            backward=self.backward + round((factor - 1) * self.rehearsed),
        )

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
        rows: its share of the stage's samples, a pair of answers being two; retain_rows: of the retain term's.
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


def share_of(recipe: Recipe, stage: str, ranks: int, micro_batch: int | None = None) -> Share:
    """The share of the rank that has most, with every row as long as rows may be.

    Packed, a pass has one row of packed_length, and there are as many as full samples need.

    Args:
        micro_batch: samples at once; None: the recipe's.
    """
    section = getattr(recipe, stage)
    rows, retain = rows_of(recipe, stage, ranks)
    samples = -(-section.global_batch // ranks)
    if section.packing:
        length = section.packed_length if section.packed_length != "auto" else section.longest_sample
        fit = length // section.longest_sample
        return Share(-(-samples // fit), -(-retain // fit), 1, length)
    at_once = min(micro_batch or section.micro_batch, samples)
    return Share(rows, retain, rows // samples * at_once, section.max_length)


def rows_of(recipe: Recipe, stage: str, ranks: int) -> tuple[int, int]:
    """Rows of the rank that has most in one step before they are packed, a pair being two; and of the retain term."""
    section = getattr(recipe, stage)
    samples = -(-section.global_batch // ranks)
    if stage == "align":
        return (2 if section.method == "dpo" else 1) * samples, 0
    return samples, -(-section.retain_batch // ranks) if section.retain_weight else 0


def tensors_of(recipe: Recipe, folder: Path, kind: Kind) -> list[Tensor]:
    """The parameters of a stage's model, as transformers builds it on the meta device."""
    blocks = AutoConfig.from_pretrained(folder).num_hidden_layers
    trunk = blocks if kind in ("align", "dpo") else int(recipe.refine.layer)
    model = build_model(recipe, folder, kind, trunk, blocks - trunk if kind == "whole" else 0)
    width = DTYPES[recipe.model.dtype].itemsize
    quantised = _quantised(model) if recipe.model.quantize == "nf4" and kind != "whole" else set()
    return [
        Tensor(each.numel(), each.requires_grad, NF4 if each in quantised else width, bool(BLOCK.search(name)))
        for name, each in model.named_parameters()
    ]


def _quantised(model: torch.nn.Module) -> set[torch.Tensor]:
    """The weights that 4-bit loading quantises: those of the blocks' linear layers, not the head's."""
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    return {module.weight for module in linear if not module.weight.requires_grad}


def memory(
    recipe: Recipe, folder: Path, kind: Kind, zero: Zero, ranks: int, share: Share, tensors: list[Tensor], on_gpu: bool
) -> Memory:
    """Memory of a stage.

    Args:
        kind: refine, whole (stage 1 on the whole model), align or dpo.
        tensors: of `tensors_of`.
    """
    section = recipe.refine if kind in ("refine", "whole") else recipe.align
    state = states(tensors, zero, ranks, on_gpu, section.optimizer)
    device = "cuda" if on_gpu else "cpu"
    works = works_of(kind, share)
    first, *others = (rehearse(recipe, folder, work, zero.stage, device) for work in works)
    passes = [first, *others]
    # bitsandbytes dequantises a weight for as long as its product takes
    unpacked = max(
        (DTYPES[recipe.model.dtype].itemsize * each.elements for each in tensors if each.width < 1), default=0
    )
    bucket = zero.reduce_bucket * DTYPES[recipe.model.dtype].itemsize
    alone = share.micro_batches == 1
    worst = max(_peak(one, state, zero, bucket, is_first=alone and one is first) for one in passes)
    anchors = _anchor_bytes(recipe, folder, share)
    beside = 0 if on_gpu else state.host + anchors  # on a CPU the host's memory is the rank's
    top = max(passes, key=lambda one: one.peak())
    return Memory(
        states=state,
        activations=top.kept,
        temporaries=top.peak() - top.kept + unpacked,
        unpacked=unpacked,
        backward=state.resident + state.gathered + worst + unpacked + beside,
        step=state.resident + state.gradients + state.step + beside,
        host=state.host + anchors,
    )


def works_of(kind: Kind, share: Share) -> list[Work]:
    """The kinds of pass that a step has: its micro-batch, and the retain term's."""
    works = [Work(kind, min(share.rows, share.micro_batch), share.tokens)]
    if share.retain_rows and kind == "refine":
        works.append(Work("retain", min(share.retain_rows, share.micro_batch), share.tokens))
    return works


def _peak(one: Rehearsal, state: States, zero: Zero, bucket: int, is_first: bool) -> int:
    """Bytes of activations, temporaries, gradients and their reduction at the worst moment of a pass, the first of a
    step or not.

    Stage 1 has its buckets from the first backward pass of a step to the step itself, stage 2 in backward passes alone.
    """
    before = 0 if is_first else state.gradients
    if zero.stage < 2:
        buckets = 0 if is_first else state.buckets
        return one.peak(lambda done: state.buckets + (before or done), before + buckets)
    if zero.stage == 2:  # a partition of its own for each pass, whole as soon as a bucket is full
        whole = state.gradients
        return one.peak(lambda done: state.buckets + before + (whole if done >= bucket else 0), before)
    resident = state.buckets + state.gradients
    return one.peak(lambda done: resident, resident)


def _anchor_bytes(recipe: Recipe, folder: Path, share: Share) -> int:
    """The original activations of the retain term, kept on the host: of every row that a rank meets, at the most."""
    config = AutoConfig.from_pretrained(folder)
    rows = recipe.refine.max_steps * share.retain_rows
    return rows * share.tokens * config.hidden_size * DTYPES[recipe.model.dtype].itemsize

"""Memory of one rank in one stage: the states that DeepSpeed keeps, plus a rehearsed micro-batch."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig

from dcr_ds.models.checkpoint_files import BLOCK
from dcr_ds.models.experts import expert_tensors
from dcr_ds.models.load import DTYPES
from dcr_ds.plan.passes import STAGE_2, Kind, Work, build_model
from dcr_ds.plan.rehearsal import Rehearsal, rehearse
from dcr_ds.plan.states import States, Tensor, Zero, states
from dcr_ds.recipe import Recipe

# bytes per weight: 4 bits, a 1-byte scale per 64 weights, a float32 per 256 scales
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank's device, and in host memory.

    The parts do not peak at the same time: gradients grow while activations are freed.

    Attributes:
        unpacked: part of the temporaries: a dequantised 4-bit weight.
        backward, step: total bytes at the peak of the backward passes and of the optimizer step.
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
        """Peak bytes of a step, at most the sum of the parts."""
        return max(self.backward, self.step)

    @property
    def peak_phase(self) -> str:
        return "backward pass" if self.backward >= self.step else "optimizer step"

    @property
    def rehearsed(self) -> int:
        """Bytes of a micro-batch that come from the rehearsal, not from known sizes."""
        return self.activations + self.temporaries - self.unpacked

    def calibrated(self, factor: float) -> "Memory":
        """With the rehearsed memory multiplied by a factor."""
        return replace(
            self,
            activations=round(factor * self.activations),
            temporaries=self.unpacked + round(factor * (self.temporaries - self.unpacked)),
            backward=self.backward + round((factor - 1) * self.rehearsed),
        )

    def parts(self) -> dict[str, int]:
        """Bytes by name, in the order of a table; 0 where a part does not exist."""
        state = self.states
        return {
            "parameters": state.parameters,
            **({"secondary partition": state.secondary} if state.secondary else {}),
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
    """The work of one rank in one step.

    Attributes:
        rows: its share of the stage's samples; a preference pair is two rows.
        retain_rows: its share of the rows of the retain term.
        micro_batch: rows per forward pass.
        tokens: per row.
    """

    rows: int
    retain_rows: int
    micro_batch: int
    tokens: int

    @property
    def micro_batches(self) -> int:
        return -(-self.rows // self.micro_batch)


def share_of(recipe: Recipe, stage: str, ranks: int, micro_batch: int | None = None) -> Share:
    """The largest share of any rank, with all rows of the maximum length.

    With packing, a pass has one row of packed_length, and there are as many rows as samples of full length need.

    Args:
        micro_batch: samples per forward pass; None: that of the recipe.
    """
    section = getattr(recipe, stage)
    rows, retain = rows_of(recipe, stage, ranks)
    samples = -(-section.global_batch // ranks)
    if section.packing:
        length = section.packed_length if section.packed_length != "auto" else section.longest_sample
        fit = length // section.longest_sample
        return Share(-(-samples // fit), -(-retain // fit), 1, length)
    micro_batch = min(micro_batch or section.micro_batch, samples)
    return Share(rows, retain, rows // samples * micro_batch, section.max_length)


def rows_of(recipe: Recipe, stage: str, ranks: int) -> tuple[int, int]:
    """Most rows of any rank in one step, before packing (a pair is two), and rows of the retain term."""
    section = getattr(recipe, stage)
    samples = -(-section.global_batch // ranks)
    if stage == "align":
        return (2 if section.is_paired else 1) * samples, 0
    return samples, -(-section.retain_batch // ranks) if section.retain_weight else 0


def tensors_of(recipe: Recipe, folder: Path, kind: Kind) -> list[Tensor]:
    """The parameters of a stage's model, as transformers builds it on the meta device."""
    blocks = AutoConfig.from_pretrained(folder, trust_remote_code=False).num_hidden_layers
    trunk = blocks if kind in STAGE_2 else int(recipe.refine.layer)
    model = build_model(recipe, folder, kind, trunk, blocks - trunk if kind == "whole" else 0)
    width = DTYPES[recipe.model.dtype].itemsize
    quantised = _quantised(model) if recipe.model.quantize == "nf4" and kind != "whole" else set()
    return [
        Tensor(weight.numel(), weight.requires_grad, NF4 if weight in quantised else width, bool(BLOCK.search(name)))
        for name, weight in model.named_parameters()
    ]


def _quantised(model: torch.nn.Module) -> set[torch.Tensor]:
    """The weights that 4-bit loading quantises: those of experts and of the linear layers in blocks, not the head."""
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    experts = {getattr(holder, name) for _, holder, name in expert_tensors(model)}
    return experts | {module.weight for module in linear if not module.weight.requires_grad}


def memory(
    recipe: Recipe, folder: Path, kind: Kind, zero: Zero, ranks: int, share: Share, tensors: list[Tensor], on_gpu: bool
) -> Memory:
    """Memory of a stage.

    More than six parameters: `Stage.at` varies zero and share for one recipe, folder, kind and machine, and passes
    `tensors` because they are slow to build.

    Args:
        kind: refine, whole (stage 1 on the whole model), align, dpo or kto.
        tensors: of `tensors_of`.
    """
    section = recipe.refine if kind in ("refine", "whole") else recipe.align
    state = states(tensors, zero, ranks, on_gpu, section.optimizer)
    device = "cuda" if on_gpu else "cpu"
    passes = [rehearse(recipe, folder, work, zero.stage, device) for work in works_of(kind, share)]
    # bitsandbytes dequantises a weight for the duration of its product
    unpacked = max(
        (DTYPES[recipe.model.dtype].itemsize * tensor.elements for tensor in tensors if tensor.width < 1), default=0
    )
    bucket = zero.reduce_bucket * DTYPES[recipe.model.dtype].itemsize
    alone = share.micro_batches == 1
    worst = max(_peak(run, state, zero, bucket, is_first=alone and run is passes[0]) for run in passes)
    anchors = _anchor_bytes(recipe, folder, share)
    on_host = 0 if on_gpu else state.host + anchors  # on a CPU the memory of the rank is that of the host
    top = max(passes, key=lambda rehearsal: rehearsal.peak())
    return Memory(
        states=state,
        activations=top.kept,
        temporaries=top.peak() - top.kept + unpacked,
        unpacked=unpacked,
        backward=state.resident + state.gathered + worst + unpacked + on_host,
        step=state.resident + state.gradients + state.step + on_host,
        host=state.host + anchors,
    )


def works_of(kind: Kind, share: Share) -> list[Work]:
    """The kinds of forward pass in a step: a micro-batch, and one of the retain term."""
    works = [Work(kind, min(share.rows, share.micro_batch), share.tokens)]
    if share.retain_rows and kind == "refine":
        works.append(Work("retain", min(share.retain_rows, share.micro_batch), share.tokens))
    return works


def _peak(rehearsal: Rehearsal, state: States, zero: Zero, bucket: int, is_first: bool) -> int:
    """Peak bytes of activations, temporaries, gradients and their reduction in a pass.

    ZeRO-1 holds its buckets from the first backward pass to the optimizer step, ZeRO-2 only in backward passes.

    Args:
        is_first: whether it is the first pass of a step.
    """
    before = 0 if is_first else state.gradients
    if zero.stage < 2:
        buckets = 0 if is_first else state.buckets
        return rehearsal.peak(lambda done: state.buckets + (before or done), before + buckets)
    if zero.stage == 2:  # each pass has its own partition, complete as soon as a bucket is full
        gradients = state.gradients
        return rehearsal.peak(lambda done: state.buckets + before + (gradients if done >= bucket else 0), before)
    resident = state.buckets + state.gradients
    return rehearsal.peak(lambda done: resident, resident)


def _anchor_bytes(recipe: Recipe, folder: Path, share: Share) -> int:
    """Original activations of the retain term in host memory: an upper bound, for every row that a rank sees."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    rows = recipe.refine.max_steps * share.retain_rows
    return rows * share.tokens * config.hidden_size * DTYPES[recipe.model.dtype].itemsize

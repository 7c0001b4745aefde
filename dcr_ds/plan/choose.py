"""Which ZeRO stage and micro-batch fit, how long a step takes, and what to change if nothing fits."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from transformers import AutoConfig

from dcr_ds.engine.config import read_config
from dcr_ds.engine.machine import Machine
from dcr_ds.engine.resolve import resolve
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.models.load import DTYPES
from dcr_ds.plan.clock import Rates, StepTime, step_time
from dcr_ds.plan.memory import Memory, Share, memory, rows_of, share_of, tensors_of
from dcr_ds.plan.passes import Kind, Work, kind_of
from dcr_ds.plan.rehearsal import rehearse
from dcr_ds.plan.states import Zero
from dcr_ds.plan.traffic import Collective, Passes, traffic
from dcr_ds.recipe import TRAINING_STAGES, Recipe, shipped_file

GIB = 2**30
# tried in this order if nothing fits, each in addition to the ones before: section, field, value
REMEDIES = (
    ("model", "activation_checkpointing", True),
    ("{stage}", "adapter", "lora"),
    ("model", "quantize", "nf4"),
)


@dataclass(frozen=True)
class Cluster:
    """The GPUs of a plan with their links, or processes on a CPU.

    Attributes:
        reserve: share of memory left to the driver, fragmentation and NCCL.
        memory_factor: ratio of measured to rehearsed memory; 1 without measurement.
    """

    gpus: int
    per_node: int
    memory_gib: float
    rates: Rates
    reserve: float = 0.1
    on_gpu: bool = True
    memory_factor: float = 1.0

    @property
    def unit(self) -> str:
        """What one rank runs on."""
        return "GPU" if self.on_gpu else "process"

    @property
    def usable(self) -> int:
        return int(self.memory_gib * GIB * (1 - self.reserve))

    @property
    def machine(self) -> Machine:
        """The description that training resolves `auto` with: GPUs that compute in bfloat16, no optional kernels."""
        return Machine(
            on_gpu=self.on_gpu,
            memory_bytes=int(self.memory_gib * GIB),
            ranks=self.gpus,
            nodes=max(1, self.gpus // self.per_node),
            bf16=self.on_gpu,
        )


@dataclass(frozen=True)
class Lengths:
    """Mean tokens per row, for the time; memory is planned for rows of max_length."""

    refine: int
    align: int


@dataclass(frozen=True)
class Option:
    """A training stage under one ZeRO stage, with the largest micro-batch that fits; one row if none does."""

    zero: Zero
    micro_batch: int
    memory: Memory
    time: StepTime
    traffic: list[Collective]
    usable: int

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.usable

    @property
    def sent(self) -> int:
        """Bytes that a rank sends per step."""
        return sum(collective.bytes for collective in self.traffic)

    @property
    def sent_within(self) -> int:
        """Bytes of `sent` that stay in the node because only its ranks take part (hpZ)."""
        return sum(collective.bytes for collective in self.traffic if collective.ranks and not collective.across)


def planned(recipe: Recipe, folder: Path, cluster: Cluster) -> Recipe:
    """The recipe with `auto` resolved as by training on the cluster, except what depends on what fits.

    Optional kernels (flash-attn, liger-kernel) need slightly less memory than planned, so they are planned without.
    """
    values = recipe.model_dump()
    if values["model"]["attention"] == "flash_attention_2":
        values["model"]["attention"] = "auto"
    values["model"]["kernels"] = values["align"]["loss_backend"] = "auto"
    values["evaluate"]["ranks_per_copy"] = 1
    resolved, _ = resolve(Recipe.model_validate(values), model_config(folder), cluster.machine)
    values = resolved.model_dump()
    for stage in TRAINING_STAGES:
        section = getattr(recipe, stage)
        values[stage] |= {"micro_batch": section.micro_batch, "packed_length": section.packed_length}
    values["evaluate"]["ranks_per_copy"] = recipe.evaluate.ranks_per_copy
    return Recipe.model_validate(values)


class Stage:
    """One training stage of a planned recipe on a cluster.

    Args:
        kind: refine, align, or whole: stage 1 on the whole model, without the cut.
    """

    def __init__(self, recipe: Recipe, folder: Path, kind: Kind, cluster: Cluster, lengths: Lengths):
        self.recipe, self.folder, self.cluster, self.lengths = recipe, folder, cluster, lengths
        self.name: Literal["refine", "align"] = "align" if kind == "align" else "refine"
        self.kind: Kind = kind_of(recipe, "align") if kind == "align" else kind
        self.section = getattr(recipe, self.name)

    @cached_property
    def tensors(self):
        return tensors_of(self.recipe, self.folder, self.kind)

    @property
    def trained(self) -> int:
        return sum(tensor.elements for tensor in self.tensors if tensor.trains)

    @property
    def loaded(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    def options(self) -> list[Option]:
        """One per ZeRO stage that the model can train under, and hpZ on several nodes.

        Offloading and quantised messages only as in the recipe's own configuration.
        """
        own, quantised = Zero.of(read_config(self.recipe)), self.recipe.model.quantize != "none"
        zeros = [own if own.stage == stage else zero_of(stage) for stage in ([0, 1, 2] if quantised else [0, 1, 2, 3])]
        if self.cluster.gpus > self.cluster.per_node and not quantised and own.partition == 1:
            zeros.append(replace(zero_of(3), partition=self.cluster.per_node))
        return [self.option(zero) for zero in zeros]

    def option(self, zero: Zero) -> Option:
        """The largest micro-batch that fits: that of the recipe, or else the whole share, halved until it fits."""
        largest = share_of(self.recipe, self.name, self.cluster.gpus, self.section.global_batch)
        micro_batch = self.section.micro_batch
        micro_batch = largest.micro_batch if micro_batch == "auto" else micro_batch
        while True:
            option = self.at(zero, micro_batch)
            if option.fits or micro_batch == 1 or self.section.packing:
                return option
            micro_batch = max(1, micro_batch // 2)

    def at(self, zero: Zero, micro_batch: int) -> Option:
        """Memory, time and traffic with a ZeRO stage and a micro-batch."""
        cluster = self.cluster
        if self.name == "refine" or self.section.has_reference:
            zero = zero.without_reuse()
        share = share_of(self.recipe, self.name, cluster.gpus, micro_batch)
        held = memory(self.recipe, self.folder, self.kind, zero, cluster.gpus, share, self.tensors, cluster.on_gpu)
        held = held.calibrated(cluster.memory_factor)
        first = self._forward_first(share)
        retain = 0 if self._is_one_pass(zero, share) else -(-share.retain_rows // share.micro_batch)
        passes = Passes(
            first * share.micro_batches, share.micro_batches + retain, self.recipe.model.activation_checkpointing
        )
        embeddings = self._embedding_bytes() if self.name == "refine" else 0
        sent = traffic(self.tensors, zero, cluster.gpus, passes, embeddings, self.kind == "whole")
        flops = self._flops(zero, first)
        time = step_time(flops, sent, cluster.gpus, cluster.per_node, cluster.rates)
        return Option(zero, share.micro_batch, held, time, sent, cluster.usable)

    def _forward_first(self, share: Share) -> int:
        """The number of passes without gradients over the rows of a step, before the passes with gradients."""
        if self.name == "refine":
            return int(share.micro_batches > 1)
        # KTO estimates the KL, the loss of the routers counts the tokens of each expert
        return (self.kind == "kto") + (self.section.router_aux_loss_coef > 0)

    def _is_one_pass(self, zero: Zero, share: Share) -> bool:
        """Whether stage 1 computes both terms in one pass, for rows of mean length; see `refine.step.is_one_pass`."""
        if self.kind != "refine" or zero.stage != 3 or self.cluster.gpus == 1 or not self.section.packing:
            return False
        rows, retain = rows_of(self.recipe, "refine", self.cluster.gpus)
        return rows * self.lengths.refine + retain * self.lengths.align <= share.tokens

    def _flops(self, zero: Zero, forward_first: int) -> int:
        """Floating-point operations of one step on one rank, for rows of mean length."""
        tokens = getattr(self.lengths, self.name)
        samples, retain = rows_of(self.recipe, self.name, self.cluster.gpus)
        rows = min(8, samples)
        rehearsal = rehearse(self.recipe, self.folder, Work(self.kind, rows, tokens), zero.stage, self._device)
        flops = (rehearsal.flops + forward_first * rehearsal.forward_flops) * samples / rows
        if retain:
            kind: Kind = "retain" if self.kind == "refine" else self.kind
            work = Work(kind, rows, self.lengths.align)
            rehearsal = rehearse(self.recipe, self.folder, work, zero.stage, self._device)
            flops += rehearsal.flops * retain / rows
        return int(flops)

    @property
    def _device(self) -> str:
        return "cuda" if self.cluster.on_gpu else "cpu"

    def _embedding_bytes(self) -> int:
        config = AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
        return self.section.global_batch * config.hidden_size * DTYPES[self.recipe.model.dtype].itemsize


def zero_of(stage: int) -> Zero:
    """A ZeRO stage as configured in ds_configs/."""
    path = shipped_file(f"ds_configs/zero{stage}.json")
    assert path is not None, f"ds_configs/zero{stage}.json comes with the project"
    return Zero.of(json.loads(path.read_text(encoding="utf-8")))


def best(options: list[Option]) -> Option | None:
    """The fastest option that fits, by its slower time; within 2 % the lowest ZeRO stage."""
    fitting = [option for option in options if option.fits]
    if not fitting:
        return None
    least = min(option.time.serial for option in fitting)
    return next(option for option in fitting if option.time.serial <= 1.02 * least)


def remedy(stage: Stage) -> tuple[str, Option] | None:
    """The changes of the recipe (the first of REMEDIES) with which a stage fits, and the resulting option."""
    values, changes = stage.recipe.model_dump(), []
    for section, field, value in REMEDIES:
        name = section.format(stage=stage.name)
        if values[name][field] == value:
            continue
        values[name][field] = value
        changes.append(f"{name}.{field}: {str(value).lower()}")
        if field == "quantize":
            values["stages"] = [stage.name]  # the other stage might not be trainable in 4 bits
            if Zero.of(read_config(stage.recipe)).stage == 3:  # refused with 4-bit weights
                values["deepspeed"] = "ds_configs/zero2.json"
                changes.append(f"deepspeed: {values['deepspeed']}")
        recipe = Recipe.model_validate(values)
        changed = Stage(recipe, stage.folder, stage.name, stage.cluster, stage.lengths)
        if (option := best(changed.options())) is not None:
            return ", ".join(changes), option
    return None

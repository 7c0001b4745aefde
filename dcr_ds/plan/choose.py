"""Which ZeRO stage and micro-batch fit, how long their step takes, and what to change where nothing fits."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from transformers import AutoConfig

from dcr_ds.engine.config import read_config
from dcr_ds.models.load import DTYPES, NO_SDPA
from dcr_ds.plan.clock import Rates, StepTime, step_time
from dcr_ds.plan.memory import Memory, memory, rows_of, share_of, tensors_of
from dcr_ds.plan.rehearsal import Kind, Work, rehearse
from dcr_ds.plan.states import Zero
from dcr_ds.plan.traffic import Collective, Passes, traffic
from dcr_ds.recipe import Recipe, shipped_file

GIB = 2**30
# tried in this order where nothing fits, each with what went before it
REMEDIES = (
    ("model.activation_checkpointing: true", {"model": {"activation_checkpointing": True}}),
    ("{stage}.adapter: lora", {"{stage}": {"adapter": "lora"}}),
    ("model.quantize: nf4", {"model": {"quantize": "nf4"}}),
)


@dataclass(frozen=True)
class Machine:
    """The GPUs of a plan, or processes on a CPU.

    Attributes:
        reserve: share of memory left to the driver, the allocator's gaps and NCCL.
        memory_factor: how many times the rehearsed memory was taken where steps were measured.
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
        """What one rank has."""
        return "GPU" if self.on_gpu else "process"

    @property
    def usable(self) -> int:
        return int(self.memory_gib * GIB * (1 - self.reserve))


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a row, which set the time; the memory is that of rows as long as they may be."""

    refine: int
    align: int


@dataclass(frozen=True)
class Option:
    """A stage under one ZeRO stage, with the largest micro-batch that fits; one row, where none does."""

    zero: Zero
    micro_batch: int
    memory: Memory
    time: StepTime
    traffic: list[Collective]
    usable: int

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.usable


def planned(recipe: Recipe, folder: Path, on_gpu: bool = True) -> Recipe:
    """The recipe with each `auto` as it would be resolved on a GPU that computes in bfloat16, without extra kernels.

    flash-attn and liger-kernel, where they are installed, need a little less than is planned.
    """
    config = AutoConfig.from_pretrained(folder)
    values = recipe.model_dump()
    if values["refine"]["layer"] == "auto":
        values["refine"]["layer"] = config.num_hidden_layers // 2
    if values["model"]["dtype"] == "auto":
        values["model"]["dtype"] = "bfloat16" if on_gpu else "float32"
    if values["model"]["attention"] in ("auto", "flash_attention_2"):
        values["model"]["attention"] = "eager" if config.model_type in NO_SDPA else "sdpa"
    values["deepspeed"] = read_config(recipe)
    return Recipe.model_validate(values)


class Stage:
    """One training stage of a planned recipe on a machine.

    Args:
        kind: refine, align, or whole: stage 1 on the whole model, as it would be without the cut.
    """

    def __init__(self, recipe: Recipe, folder: Path, kind: Kind, machine: Machine, lengths: Lengths):
        self.recipe, self.folder, self.machine, self.lengths = recipe, folder, machine, lengths
        self.name: Literal["refine", "align"] = "align" if kind == "align" else "refine"
        self.kind: Kind = "dpo" if kind == "align" and recipe.align.method == "dpo" else kind
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
        """One for each ZeRO stage that the model can train under; and the recipe's own where it offloads."""
        own = Zero.of(read_config(self.recipe))
        stages = [0, 1, 2] if self.recipe.model.quantize != "none" else [0, 1, 2, 3]
        zeros = [own if own.stage == stage else zero_of(stage) for stage in stages]
        return [self.option(zero) for zero in zeros]

    def option(self, zero: Zero) -> Option:
        """The largest micro-batch that fits: the recipe's, where it names one, halved until it does."""
        at_most = share_of(self.recipe, self.name, self.machine.gpus, self.section.global_batch)
        wanted = self.section.micro_batch
        at_once = at_most.micro_batch if wanted == "auto" else wanted
        while True:
            option = self.at(zero, at_once)
            if option.fits or at_once == 1 or self.section.packing:
                return option
            at_once = max(1, at_once // 2)

    def at(self, zero: Zero, micro_batch: int) -> Option:
        """What a ZeRO stage and a micro-batch need."""
        machine = self.machine
        if self.kind != "align":
            zero = zero.without_reuse()
        share = share_of(self.recipe, self.name, machine.gpus, micro_batch)
        held = memory(self.recipe, self.folder, self.kind, zero, machine.gpus, share, self.tensors, machine.on_gpu)
        held = held.calibrated(machine.memory_factor)
        extra = share.micro_batches if self.name == "refine" and share.micro_batches > 1 else 0
        retain = -(-share.retain_rows // share.micro_batch)
        passes = Passes(extra, share.micro_batches + retain, self.recipe.model.activation_checkpointing)
        embeddings = self._embedding_bytes() if self.name == "refine" else 0
        sent = traffic(self.tensors, zero, machine.gpus, passes, embeddings, self.kind == "whole")
        flops = self._flops(zero, extra > 0)
        time = step_time(flops, sent, machine.gpus, machine.per_node, machine.rates)
        return Option(zero, share.micro_batch, held, time, sent, machine.usable)

    def _flops(self, zero: Zero, embeds_first: bool) -> int:
        """Floating-point operations of a rank's step, rows of mean length."""
        tokens = getattr(self.lengths, self.name)
        samples, retain = rows_of(self.recipe, self.name, self.machine.gpus)
        rows = min(8, samples)
        one = rehearse(self.recipe, self.folder, Work(self.kind, rows, tokens), zero.stage, self._device)
        flops = (one.flops + embeds_first * one.forward_flops) * samples / rows
        if retain:
            kind: Kind = "retain" if self.kind == "refine" else self.kind
            work = Work(kind, rows, self.lengths.align)
            kept = rehearse(self.recipe, self.folder, work, zero.stage, self._device)
            flops += kept.flops * retain / rows
        return int(flops)

    @property
    def _device(self) -> str:
        return "cuda" if self.machine.on_gpu else "cpu"

    def _embedding_bytes(self) -> int:
        config = AutoConfig.from_pretrained(self.folder)
        return self.section.global_batch * config.hidden_size * DTYPES[self.recipe.model.dtype].itemsize


def zero_of(stage: int) -> Zero:
    """A ZeRO stage as ds_configs/ has it."""
    path = shipped_file(f"ds_configs/zero{stage}.json")
    assert path is not None, f"ds_configs/zero{stage}.json comes with the project"
    return Zero.of(json.loads(path.read_text(encoding="utf-8")))


def best(options: list[Option]) -> Option | None:
    """The fastest that fits, by its slower time; of equals the lower stage. Within 2 % the lower stage wins, too."""
    fitting = [option for option in options if option.fits]
    if not fitting:
        return None
    least = min(option.time.serial for option in fitting)
    return next(option for option in fitting if option.time.serial <= 1.02 * least)


def remedy(stage: Stage) -> tuple[str, Option] | None:
    """The first change of the recipe, of REMEDIES, with which a stage fits, and what it then needs."""
    values, said = stage.recipe.model_dump(), []
    for text, change in REMEDIES:
        for section, fields in change.items():
            values[section.format(stage=stage.name)] |= fields
        said.append(text.format(stage=stage.name))
        if values["model"]["quantize"] != "none":
            values["stages"] = [stage.name]  # the other stage need not train in 4 bits for this one to be asked about
        recipe = Recipe.model_validate(values)
        changed = Stage(recipe, stage.folder, stage.name, stage.machine, stage.lengths)
        if (option := best(changed.options())) is not None:
            return ", ".join(said), option
    return None

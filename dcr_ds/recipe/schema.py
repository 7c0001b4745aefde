"""The schema of recipes. Each field has a type, a default, a range and a description, which --help prints."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dcr_ds.files import expand_user
from dcr_ds.recipe.evaluation import EvaluateSection
from dcr_ds.recipe.fields import MAX_SEED, Auto, Count, Data, DataSource, PositiveInt, Section
from dcr_ds.recipe.layout import STAGES, TRAINING_STAGES, Stage, TrainingStage
from dcr_ds.recipe.methods import (
    PAIRED,
    PREFERENCE_TITLES,
    WITH_REFERENCE,
    DpoSection,
    KtoSection,
    Method,
    OrpoSection,
    SimpoSection,
)
from dcr_ds.recipe.model import ModelSection
from dcr_ds.recipe.urls import expand_variables, refuse_other_variables, refuse_store

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]


class DataSection(Section):
    seemingly_toxic: Data = Field(DataSource(), description="harmless prompts that look harmful; stage 1")
    toxic: Data = Field(DataSource(), description="harmful prompts; stage 1")
    general: Data = Field(DataSource(), description="general conversations; stage 2 and the retain term of stage 1")
    refusals: Data = Field(DataSource(), description="harmful prompts with refusals as answers; stage 2")
    preferences: Data = Field(
        DataSource(),
        description="prompts with a chosen and a rejected answer, for kto also with one labelled answer; stage 2",
    )
    held_out: float = Field(
        0.15,
        gt=0,
        le=0.5,
        description="share of each stage-1 set that is not trained on; measures separation and drift",
    )


class StageSection(Section):
    """Fields of both training stages."""

    global_batch: PositiveInt = Field(16, description="samples per optimizer step, over all ranks")
    micro_batch: Auto | PositiveInt = Field("auto", description="samples per forward pass on each rank")
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw8bit", "paged_adamw32bit"] = Field(
        "adamw",
        description="AdamW of PyTorch, or of bitsandbytes with 8-bit or paged optimizer states",
    )
    packing: bool = Field(
        False, description="concatenate samples into rows without padding; attention stays within each sample"
    )
    packed_length: Auto | PositiveInt = Field("auto", description="tokens per packed row; each row is one forward pass")
    learning_rate: Auto | Annotated[float, Field(gt=0, le=1)] = Field(2e-5, description="peak learning rate")
    weight_decay: float = Field(
        0.0, ge=0, le=1, description="weight decay of AdamW; not of norms, biases and embeddings"
    )
    warmup_steps: Count = Field(0, description="steps of linear warm-up of the learning rate")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm, taken over all ranks")
    max_length: PositiveInt = Field(512, description="longest sample, in tokens; longer ones are left out and counted")

    @property
    def longest_sample(self) -> int:
        """Tokens of the longest sample."""
        return self.max_length


class LoraSection(Section):
    rank: PositiveInt = Field(16, description="rank r of the adapter")
    alpha: float = Field(32.0, gt=0, description="α; the adapter's output is scaled by α / r")
    rslora: bool = Field(False, description="scale by α / √r instead (rsLoRA), for high ranks")
    dora: bool = Field(False, description="train the norms of the weight's rows apart (DoRA); not under ZeRO-3")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of the adapter")
    targets: str | list[str] = Field("all-linear", description="names of the modules with an adapter, or all-linear")


class RefineSection(StageSection):
    layer: Auto | PositiveInt = Field(
        "auto", description="ℓ: blocks 1…ℓ are trained; the loss is on h, the output of block ℓ; auto: by a layer probe"
    )
    loss: Literal["circle", "supcon", "infonce", "ntxent", "triplet"] = Field(
        "circle", description="contrastive loss; circle is the paper's"
    )
    form: Literal["anchor", "global"] = Field(
        "anchor", description="Circle loss: one term per anchor, or one over all pairs"
    )
    margin: float = Field(0.25, gt=0, lt=1, description="margin m of circle and triplet")
    scale: float = Field(8.0, gt=0, le=1e6, description="scale γ of circle")
    temperature: float = Field(0.1, ge=1e-6, description="temperature τ of supcon, infonce and ntxent")
    backend: Literal["auto", "reference", "chunked", "triton"] = Field(
        "auto", description="implementation of the loss; auto: triton on a GPU if it is installed, else chunked"
    )
    pooling: Literal["last", "mean"] = Field(
        "last", description="h of a prompt: at its last token, or the mean over its tokens"
    )
    pairs: Literal["mixed", "matched"] = Field(
        "mixed", description="sample the two sets independently, or both prompts of a pair together"
    )
    global_batch: PositiveInt = Field(
        32, description="prompts per contrastive batch and step, half from each set, over all ranks"
    )
    learning_rate: Auto | Annotated[float, Field(gt=0, le=1)] = Field(
        "auto", description="peak learning rate; auto: measured on a 135M model and scaled by width (docs/training.md)"
    )
    max_steps: PositiveInt = Field(40, description="maximum number of steps")
    target_gap: float = Field(0.5, gt=0, le=2, description="stop when the held-out cosine gap reaches this value")
    patience: PositiveInt = Field(16, description="stop when no measurement was better for this many steps")
    min_steps: Count = Field(10, description="patience starts after this many steps")
    # on SmolLM2, 0.42 came with 13 % more loss on general answers, 0.17 with 4 % (docs/benchmarks-demo.md)
    max_drift: float = Field(
        0.4,
        gt=0,
        description="largest drift of general activations, relative to their norm, that exported weights may have",
    )
    on_failure: Literal["stop", "continue"] = Field(
        "stop", description="if no step raised the gap within max_drift: end the run, or align anyway"
    )
    measure_every: PositiveInt = Field(4, description="steps between measurements of held-out separation and drift")
    retain_weight: float = Field(30.0, ge=0, description="weight of the retain term; 0 turns it off")
    retain_batch: PositiveInt = Field(
        8, description="general conversations per step of the retain term, over all ranks"
    )
    adapter: Literal["none", "lora"] = Field(
        "none", description="none: train all weights; lora: train a LoRA adapter (peft)"
    )
    lora: LoraSection = Field(LoraSection(), description="the adapter; with refine.adapter: lora")

    @property
    def schedule(self) -> str:
        """Constant after the warm-up: stage 1 ends when the sets are separated, so its length is not known."""
        return "constant"


class AlignSection(StageSection):
    method: Method = Field(
        "sft", description="sft: supervised, on data.general and data.refusals; the others: on data.preferences"
    )
    dpo: DpoSection = Field(DpoSection(), description="the loss; with align.method: dpo")
    kto: KtoSection = Field(KtoSection(), description="the loss; with align.method: kto")
    orpo: OrpoSection = Field(OrpoSection(), description="the loss; with align.method: orpo")
    simpo: SimpoSection = Field(SimpoSection(), description="the loss; with align.method: simpo")
    loss_on: Literal["answers", "all"] = Field(
        "answers",
        description="tokens of the SFT loss (sft, orpo): the last answer and its end of turn, or prompts too",
    )
    epochs: float = Field(1.0, gt=0, le=10_000, description="passes over the training data")
    safe_ratio: Auto | Annotated[float, Field(gt=0, lt=1)] = Field(
        "auto",
        description="share of refusals in the training data; rows of the larger set are left out (auto: use all rows)",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="schedule of the learning rate after the warm-up"
    )
    loss_backend: Literal["auto", "liger", "chunked"] = Field(
        "auto",
        description="implementation of the cross-entropy at the LM head; auto: chunked; liger needs a GPU",
    )
    router_aux_loss_coef: Auto | Annotated[float, Field(ge=0)] = Field(
        "auto",
        description="weight of the load-balancing loss of routers that are trained (model.freeze_router: false); auto: "
        "that of the model's config.json (docs/models.md)",
    )
    measure_every: Count = Field(
        0, description="measure the refusal log-odds of held-out prompts every this many steps; 0: never"
    )
    target_refusal: float | None = Field(
        None, gt=0, le=1, description="stop at this share of held-out toxic prompts refused; needs align.measure_every"
    )
    adapter: Literal["none", "lora"] = Field(
        "none", description="none: train all weights; lora: train a LoRA adapter (peft)"
    )
    lora: LoraSection = Field(LoraSection(), description="the adapter; with align.adapter: lora")

    @property
    def longest_sample(self) -> int:
        """Tokens of the longest sample: a conversation, or the two of a pair."""
        return 2 * self.max_length if self.is_paired else self.max_length

    @property
    def is_paired(self) -> bool:
        """Whether a sample is a pair of answers."""
        return self.method in PAIRED

    @property
    def has_reference(self) -> bool:
        """Whether the untrained model reads the data before the first step."""
        return self.method in WITH_REFERENCE


class CheckpointSection(Section):
    every_steps: PositiveInt = Field(25, description="steps between checkpoints of the training state")
    keep: PositiveInt = Field(
        2, description="number of checkpoints to keep; older ones are a fallback if the newest is damaged"
    )


class WatchdogSection(Section):
    hang_minutes: float = Field(
        30.0,
        gt=0,
        le=525_600,
        description="end the run, with the position of each rank, after this many minutes without progress on any rank",
    )
    loss_spike: Literal["stop", "warn", "off"] = Field(
        "stop",
        description="what to do when the loss is far above that of the last steps; checked before the optimizer step",
    )


class Recipe(Section):
    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run; its folder is <output>/<name>"
    )
    stages: list[Stage] = Field(
        list(STAGES), min_length=1, description="stages to run, in this order; without refine it is the STL baseline"
    )
    control: Literal["none", "stl"] = Field(
        "none",
        description="stl: also run the same alignment from the base model, without refine, and evaluate it alongside",
    )
    model: ModelSection = Field(ModelSection(), description="the model, its precision and kernels")
    data: DataSection = Field(DataSection(), description="data sets for training, and the held-out part")
    allow_leakage: bool = Field(
        False, description="continue when training and evaluation data overlap; the overlap is reported"
    )
    refine: RefineSection = Field(RefineSection(), description="stage 1: contrastive refinement of blocks 1…ℓ")
    align: AlignSection = Field(AlignSection(), description="stage 2: safety fine-tuning, SFT or on preferences")
    evaluate: EvaluateSection = Field(EvaluateSection(), description="benchmarks, judges and generation")
    checkpoint: CheckpointSection = Field(CheckpointSection(), description="checkpoints within a stage")
    watchdog: WatchdogSection = Field(WatchdogSection(), description="ranks that hang and losses that spike")
    deepspeed: str | dict[str, Any] = Field(
        "ds_configs/zero2.json", description="DeepSpeed configuration: a file or a mapping"
    )
    output: str = Field("runs", description="folder that holds the run folders")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of the data order and of new adapters")
    log_every: PositiveInt = Field(1, description="steps between console lines (metrics.jsonl has every step)")
    track: list[TrackerName] = Field([], description="trackers that also get the metrics (docs/tracking.md)")
    tensorboard: bool = Field(False, description="the same as tensorboard in track")
    profile_steps: Count = Field(
        0, description="trace this many steps of each stage into <stage>/profile; 0: none (docs/plan.md)"
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
            raise ValueError("refine.micro_batch: larger than refine.global_batch; lower it, or use auto")
        if self.align.micro_batch != "auto" and self.align.micro_batch > self.align.global_batch:
            raise ValueError("align.micro_batch: larger than align.global_batch; lower it, or use auto")
        for name in TRAINING_STAGES:
            stage: StageSection = getattr(self, name)
            if stage.packed_length != "auto" and stage.packed_length < stage.longest_sample:
                longest = f"{name}.max_length ({stage.max_length})"
                if stage.longest_sample > stage.max_length:
                    longest = f"twice {longest}, the longest pair"
                raise ValueError(
                    f"{name}.packed_length: {stage.packed_length} is less than {longest}: a sample of that length fits "
                    "in no row; raise it, use auto, or lower max_length"
                )
        if self.align.learning_rate == "auto":
            raise ValueError("align.learning_rate: auto is for refine; set a number")
        self._check_method()
        if self.align.target_refusal is not None and not self.align.measure_every:
            raise ValueError("align.target_refusal: needs align.measure_every above 0, which says how often to measure")
        names = [benchmark.name for benchmark in self.evaluate.benchmarks]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"evaluate.benchmarks: two benchmarks have the same name, {repeated}; remove one")
        self._check_adapters()
        return self

    def _check_method(self) -> None:
        align = self.align
        if align.method not in ("sft", "orpo") and align.loss_on == "all":
            title = PREFERENCE_TITLES[align.method]
            raise ValueError(f"align.loss_on: all is for align.method: sft or orpo; {title} compares answers")
        if align.method == "kto" and align.global_batch < 2:
            raise ValueError(
                "align.global_batch: KTO needs at least 2: it reads each prompt with another sample's answer"
            )

    def _check_adapters(self) -> None:
        for stage in self.training_stages:
            if self.model.quantize != "none" and getattr(self, stage).adapter == "none":
                raise ValueError(
                    f"{stage}.adapter: none trains the weights, but model.quantize: {self.model.quantize} makes them "
                    "4-bit; use lora, or model.quantize: none"
                )
        if self.refine.adapter == "lora" and self.refine.lora.dropout:
            raise ValueError("refine.lora.dropout: must be 0: stage 1 may run a forward pass twice, with equal results")

    @property
    def training_stages(self) -> list[TrainingStage]:
        """The stages of the run that train."""
        return [stage for stage in TRAINING_STAGES if stage in self.stages]

    @property
    def folder(self) -> Path:
        """The run folder.

        Raises:
            UserError: it is on an object store, or names a variable that is not set, or in another form than ${NAME}.
        """
        refuse_other_variables(self.output)
        output = expand_variables(self.output, "output")
        refuse_store(output, "output")
        return expand_user(output) / self.name

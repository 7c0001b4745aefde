"""Time and memory of a stage-1 step, compared with the same step written without this project.

    python benchmarks/refine_step.py --layers 8,15,23 --zero 0 --csv benchmarks/results/refine_step.csv
    python benchmarks/refine_step.py --device cuda --dtype bfloat16 --shape qwen2.5-1.5b --csv …/refine_step.csv
    python benchmarks/refine_step.py --tiny                                a smoke test

ours: `refine.step.train_step` without the retain term, on the trunk of `load_trunk`.
theirs: AutoModelForCausalLM with `output_hidden_states=True`; the tail (blocks above ℓ, final norm, head) and the
embeddings tied to it frozen; CircleLoss of pytorch-metric-learning on the last token's hidden state of layer ℓ.

Both use the same random weights in the shape of a published model, the same batch of random tokens, and an engine of
`build_engine` with the same DeepSpeed configuration and AdamW. Before timing, their losses must agree to 1e-4 and the
gradients of every trunk parameter to 1e-3 (in bfloat16 to 0.05 and 0.2, since they round in different places; run
float32 as well). Our loss averages over the anchors that have partners, theirs over the anchors with a loss above zero
(our reduction="nonzero"); here these are all anchors, otherwise the losses would differ.

The two take steps in turn in one process, so that slow changes of the machine affect both. On a CPU the time is CPU
time of the process. Peak memory is measured separately, in a new process for each, over a whole step with parameters,
gradients and optimizer state: by `LiveBytes` on a CPU, by CUDA's allocator on a GPU. MFU divides the FLOP that each of
them needs by the device's bfloat16 peak.
"""

import argparse
import logging
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from deepspeed.utils import safe_get_full_optimizer_state
from measuring import in_new_process, in_new_processes, set_process_environment
from pytorch_metric_learning.losses import CircleLoss
from record import append, check_device, device_name, option_parser, provenance
from shapes import SHAPES, block_flop, config_of, head_flop, mfu, save_random
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dcr_ds.data.records import Prompt
from dcr_ds.data.sampler import ContrastiveSampler
from dcr_ds.engine.batching import Batching
from dcr_ds.engine.build import build_engine, stage_config
from dcr_ds.engine.distributed import Ranks, start
from dcr_ds.engine.launcher import set_environment
from dcr_ds.engine.machine import Machine
from dcr_ds.engine.resolve import resolve
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.models.fused import fuse_blocks
from dcr_ds.models.load import DTYPES
from dcr_ds.models.trunk import load_trunk
from dcr_ds.plan.live_bytes import LiveBytes
from dcr_ds.recipe import load_recipe
from dcr_ds.refine.objective import contrastive_loss
from dcr_ds.refine.prompts import RefinePrompts
from dcr_ds.refine.state import RefineState
from dcr_ds.refine.step import train_step

PROVIDERS = ("ours", "theirs")
TITLE = (
    "ℓ",
    "ZeRO",
    "ours s (quartiles)",
    "theirs s (quartiles)",
    "ratio",
    "FLOP",
    "time/FLOP",
    "ours GB",
    "theirs GB",
    "ratio",
    "MFU",
)
LINE = "{:>3}  {:>4}  {:>26}  {:>26}  {:>5}  {:>5}  {:>9}  {:>7}  {:>9}  {:>5}  {}"
TOLERANCES = {"float32": (1e-4, 1e-3), "bfloat16": (0.05, 0.2)}  # relative, of the losses and of the gradients


@dataclass(frozen=True)
class Setting:
    """What one row of the table measures."""

    source: Path
    layer: int
    zero: int
    batch: int
    tokens: int
    threads: int
    dtype: str


@dataclass
class Provider:
    """One of the two: `backward` runs a forward and a backward pass and returns the loss."""

    engine: Any
    backward: Callable[[], float]

    def step(self) -> None:
        self.backward()
        self.engine.step()


def flop_of_step(config: PreTrainedConfig, layer: int, lengths: list[int]) -> dict[str, float]:
    """FLOP per step: ours runs ℓ blocks forward and backward; theirs L blocks and the head forward, ℓ blocks backward.

    A backward pass costs twice the forward pass. The loss, AdamW, and what `block_flop` omits are not counted.
    """
    block, head = block_flop(config, lengths), head_flop(config, sum(lengths))
    return {"ours": 3 * layer * block, "theirs": config.num_hidden_layers * block + head + 2 * layer * block}


def time_steps(setting: Setting, steps: int) -> dict[str, Any]:
    """Check that losses and gradients agree, then time the steps in turn."""
    ranks = start_process(setting)
    on_gpu = ranks.device.type == "cuda"
    providers = {name: build(name, setting, ranks) for name in PROVIDERS}
    row: dict[str, Any] = {"device": device_name(ranks.device.type)}
    row |= compare_first_step(providers["ours"], providers["theirs"], *TOLERANCES[setting.dtype])
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in PROVIDERS}
    for _ in range(steps):
        for name, provider in providers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            provider.step()
            if on_gpu:
                torch.cuda.synchronize()
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    for column, clock in enumerate(("cpu", "wall")):
        for name in PROVIDERS:
            q25, median, q75 = numpy.percentile([step[column] for step in seconds[name]], (25, 50, 75))
            row |= {f"{name}_{clock}_median": median, f"{name}_{clock}_q25": q25, f"{name}_{clock}_q75": q75}
    row["clock"] = clock = "wall" if on_gpu else "cpu"
    flop = flop_of_step(
        AutoConfig.from_pretrained(setting.source, trust_remote_code=False),
        setting.layer,
        [setting.tokens] * setting.batch,
    )
    row |= {f"{name}_mfu": mfu(flop[name], row[f"{name}_{clock}_median"], row["device"]) for name in PROVIDERS}
    row["flop_ratio"] = flop["ours"] / flop["theirs"]
    row["time_ratio"] = row[f"ours_{clock}_median"] / row[f"theirs_{clock}_median"]
    return row | {"time_over_flop": row["time_ratio"] / row["flop_ratio"]}


def peak_bytes(setting: Setting, name: str) -> int:
    """Peak bytes in use during the second step, when AdamW's state exists."""
    ranks = start_process(setting)
    provider = build(name, setting, ranks)
    provider.step()
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        provider.step()
        return torch.cuda.max_memory_allocated()
    with LiveBytes() as live:
        provider.step()
    return live.peak


def build(name: str, setting: Setting, ranks: Ranks) -> Provider:
    """Build the engine and the step of a provider."""
    values = {
        "model.source": setting.source,
        "model.dtype": setting.dtype,
        "model.attention": "sdpa",
        "deepspeed": f"ds_configs/zero{setting.zero}.json",
        "refine.layer": setting.layer,
        "refine.global_batch": setting.batch,
        "refine.micro_batch": setting.batch,
        "refine.retain_weight": 0,
        "refine.max_grad_norm": 1e9,
    }
    recipe = load_recipe(None, [(field, str(value)) for field, value in values.items()])
    recipe, _ = resolve(recipe, model_config(setting.source), Machine.detect(ranks))
    stage = recipe.refine
    load = load_trunk if name == "ours" else load_whole
    model = load(setting.source, setting.layer, DTYPES[setting.dtype], recipe.model.attention).train()
    if name == "ours":
        fuse_blocks(model, recipe.model.kernels)  # patches the rotation of theirs, too, in this process
    config = stage_config(recipe.deepspeed, stage, recipe.model.dtype, ranks)
    engine = build_engine(model, stage, config, "constant", stage.max_steps, ranks)
    prompts = random_prompts(setting, model.config.vocab_size)
    if name == "ours":
        loss = contrastive_loss(stage, None)
        state = RefineState(engine, recipe, prompts, Batching.of(stage), ranks, loss)
        return Provider(engine, lambda: train_step(state, 0)["loss"])

    return Provider(engine, their_backward(engine, setting, prompts, CircleLoss(m=stage.margin, gamma=stage.scale)))


def their_backward(
    engine: Any, setting: Setting, prompts: RefinePrompts, criterion: torch.nn.Module
) -> Callable[[], float]:
    """The forward and backward pass of the whole model, which returns the states of all blocks."""
    device = engine.device
    batch = prompts.sampler.batch(0)
    ids = torch.tensor([prompts.tokens[label, prompt.id] for prompt, label in batch], device=device)
    labels = torch.tensor([label for _, label in batch], device=device)

    def backward() -> float:
        output = engine(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        h = output.hidden_states[setting.layer][:, -1]
        del output  # the logits need not live through the backward pass
        loss = criterion(h.float(), labels)
        engine.backward(loss, scale_wrt_gas=False)
        return loss.item()

    return backward


def load_whole(folder: Path, layer: int, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The whole model, frozen except for blocks 1…ℓ; without the key-value cache, which would cost memory."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, use_cache=False, trust_remote_code=False
    )
    model.requires_grad_(False)
    model.model.layers[:layer].requires_grad_(True)
    return model


def random_prompts(setting: Setting, vocabulary: int) -> RefinePrompts:
    """One batch of random tokens, half with each label."""
    generator = torch.Generator().manual_seed(0)
    half = [Prompt(str(index), "") for index in range(setting.batch // 2)]
    ids = torch.randint(vocabulary, (2, len(half), setting.tokens), generator=generator).tolist()
    tokens = {(label, prompt.id): ids[label][index] for label in (0, 1) for index, prompt in enumerate(half)}
    return RefinePrompts(ContrastiveSampler(half, half, setting.batch, "mixed", 0), tokens, 0, [], [], [])


def compare_first_step(ours: Provider, theirs: Provider, max_loss: float, max_gradient: float) -> dict[str, float]:
    """Run the first step of both, as a warm-up: relative differences of the losses and of the worst gradient."""
    losses, gradients = [], []
    for provider in (ours, theirs):
        losses.append(provider.backward())
        provider.engine.step()
        gradients.append(first_gradients(provider.engine))
    assert gradients[0].keys() == gradients[1].keys(), sorted(gradients[0].keys() ^ gradients[1].keys())
    loss = abs(losses[0] / losses[1] - 1)
    gradient = max(
        float((gradients[0][name] - expected).norm() / expected.norm()) for name, expected in gradients[1].items()
    )
    assert loss <= max_loss and gradient <= max_gradient, f"losses {losses}; gradients differ by {gradient:.1e}"
    return {"loss_difference": loss, "gradient_difference": gradient}


def first_gradients(engine: Any) -> dict[str, torch.Tensor]:
    """AdamW's first moments after one step, which are the gradients times 1 − β₁, as nothing is clipped."""

    def moment(parameter: torch.nn.Parameter) -> torch.Tensor:
        if engine.zero_optimization_stage():
            return safe_get_full_optimizer_state(parameter, "exp_avg")
        return engine.optimizer.state[parameter]["exp_avg"]

    trained = {name: parameter for name, parameter in engine.module.named_parameters() if parameter.requires_grad}
    return {name.removeprefix("model."): moment(parameter) for name, parameter in trained.items()}


def start_process(setting: Setting) -> Ranks:
    set_environment()  # a free port for this process
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    torch.set_num_threads(setting.threads)
    return start()


def show(row: dict[str, Any]) -> None:
    cells = [row["layer"], row["zero"]]
    for name in PROVIDERS:
        median, q25, q75 = (row[f"{name}_{row['clock']}_{which}"] for which in ("median", "q25", "q75"))
        cells.append(f"{median:.3f} ({q25:.3f} to {q75:.3f})")
    cells += [f"{row[name]:.3f}" for name in ("time_ratio", "flop_ratio", "time_over_flop")]
    cells += [f"{row[f'{name}_peak_bytes'] / 1e9:.3f}" for name in PROVIDERS]
    shares = [row[f"{name}_mfu"] for name in PROVIDERS]
    cells += [f"{row['memory_ratio']:.3f}", ", ".join(f"{share:.1%}" for share in shares if share)]
    print(LINE.format(*cells), flush=True)


def parse() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="smollm2-135m", help="default: %(default)s")
    parser.add_argument("--layers", help="layers ℓ (default: a quarter, half and three quarters of the blocks)")
    parser.add_argument("--dtype", choices=tuple(TOLERANCES), default="float32")
    parser.add_argument("--zero", type=int, choices=(0, 1, 2), help="ZeRO stage (default: 0, in bfloat16 2)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps (default: 5)")
    parser.add_argument("--batch", type=int, default=64, help="prompts per step (default: 64)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per prompt (default: 64)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    check_device(parser, options)
    options.shape = "tiny" if options.tiny else options.shape
    options.zero = (2 if options.dtype == "bfloat16" else 0) if options.zero is None else options.zero
    blocks = SHAPES[options.shape]["num_hidden_layers"]
    if options.layers:
        options.layers = [int(layer) for layer in options.layers.split(",")]
    else:
        options.layers = [math.ceil(blocks / 4), blocks // 2, math.ceil(3 * blocks / 4)]
    return options


def main() -> None:
    options = parse()
    set_process_environment(options.device, options.threads)
    set_environment()
    head = provenance("torch", "deepspeed", "transformers", "pytorch-metric-learning")
    head |= {"shape": options.shape}
    with tempfile.TemporaryDirectory() as folder:
        in_new_process(save_random, config_of(options.shape), Path(folder), DTYPES[options.dtype], options.device)
        print(LINE.format(*TITLE), flush=True)
        for layer in options.layers:
            sizes = {name: getattr(options, name) for name in ("zero", "batch", "tokens", "threads", "dtype")}
            row = head | {"layer": layer} | sizes | {"steps": options.steps}
            setting = Setting(Path(folder), layer, **sizes)
            apart = [(time_steps, setting, options.steps), *((peak_bytes, setting, name) for name in PROVIDERS)]
            times, *peaks = in_new_processes(apart)
            row |= times | {f"{name}_peak_bytes": peak for name, peak in zip(PROVIDERS, peaks, strict=True)}
            row["memory_ratio"] = row["ours_peak_bytes"] / row["theirs_peak_bytes"]
            show(row)
            if options.csv:
                append(options.csv, row)
    print("target: time/FLOP at most 1.10; memory ratio at most 0.60 at layer 15")


if __name__ == "__main__":
    main()

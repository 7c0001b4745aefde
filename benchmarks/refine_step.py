"""Time and memory of a stage-1 step, against the same step written without this project.

    python benchmarks/refine_step.py --layers 8,15,23 --zero 0 --csv benchmarks/results/refine_step.csv
    python benchmarks/refine_step.py --device cuda --zero 2
    python benchmarks/refine_step.py --tiny                                a smoke test

ours: `refine.loop.train_step` without the retain term, on the trunk of `load_trunk`.
theirs: AutoModelForCausalLM with `output_hidden_states=True`; the tail (blocks above ℓ, final norm, head) and the
embeddings tied to it frozen; CircleLoss of pytorch-metric-learning on the last token's hidden state of layer ℓ.

Both start from the same random weights in SmolLM2-135M's shape, with the same batch of random tokens, in float32, in
an engine of `build_engine` with the same DeepSpeed configuration and AdamW. Before anything is timed their losses
must agree to 1e-4 and the gradient of every trunk parameter to 1e-3. Our loss divides by the anchors that have
partners, theirs by those of loss above zero (our reduction="nonzero"): here every anchor is both, else they would
not agree.

The two step in turn in one process, so that a drift of the machine meets both. On a CPU the time is CPU seconds of
the process. Peak memory is measured apart, each alone in a new process, over a whole step with parameters, gradients
and optimizer state: by `LiveBytes` on a CPU, by CUDA's allocator on a GPU.
"""

import argparse
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from deepspeed.utils import safe_get_full_optimizer_state
from live_bytes import LiveBytes
from pytorch_metric_learning.losses import CircleLoss
from record import append, cpu_name, provenance
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dcr_ds.data.records import Prompt
from dcr_ds.data.sampler import ContrastiveSampler
from dcr_ds.engine.batches import Batching
from dcr_ds.engine.build import build_engine, stage_config
from dcr_ds.engine.ranks import Ranks, set_environment, start
from dcr_ds.engine.resolve import resolve
from dcr_ds.models.source import model_config
from dcr_ds.models.trunk import load_trunk
from dcr_ds.recipe import load_recipe
from dcr_ds.refine.loop import Trunk, train_step
from dcr_ds.refine.objective import contrastive_loss
from dcr_ds.refine.prompts import RefinePrompts
from dcr_ds.refine.retain import Anchors

SMOLLM2 = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
TINY = {
    "num_hidden_layers": 4,
    "hidden_size": 48,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}
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
)
LINE = "{:>3}  {:>4}  {:>26}  {:>26}  {:>5}  {:>5}  {:>9}  {:>7}  {:>9}  {:>5}"


@dataclass(frozen=True)
class Setting:
    """What one row of the table measures."""

    source: Path
    layer: int
    zero: int
    batch: int
    tokens: int
    threads: int


@dataclass
class Provider:
    """One of the two: `backward` runs a forward and a backward pass and returns the loss."""

    engine: Any
    backward: Callable[[], float]

    def step(self) -> None:
        self.backward()
        self.engine.step()


def flop_ratio(config: PreTrainedConfig, layer: int, tokens: int) -> float:
    """FLOP of our step over theirs: ℓ blocks forward and backward; L blocks and the head forward, ℓ backward.

    Counted for a token: 2 FLOP a weight of a block's linear layers and of the head (2·V·D), and attention's scores
    and weighted sum over all T positions (4·T·D); a backward pass costs twice the forward pass. Not counted: norms,
    activations, rotary embeddings, the loss, AdamW.
    """
    width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    kv_heads = config.num_key_value_heads * config.head_dim
    weights = 2 * width * heads + 2 * width * kv_heads + 3 * width * config.intermediate_size
    block = 2 * weights + 4 * tokens * heads
    head = 2 * config.vocab_size * width
    ours = 3 * layer * block
    theirs = config.num_hidden_layers * block + head + 2 * layer * block
    return ours / theirs


def time_steps(setting: Setting, steps: int) -> dict[str, Any]:
    """Check that the two compute the same, then time their steps in turn."""
    ranks = start_process(setting)
    on_gpu = ranks.device.type == "cuda"
    providers = {name: build(name, setting, ranks) for name in PROVIDERS}
    row: dict[str, Any] = {"device": torch.cuda.get_device_name() if on_gpu else cpu_name()}
    row |= compare_first_step(providers["ours"], providers["theirs"])
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
    return row | {"time_ratio": row[f"ours_{clock}_median"] / row[f"theirs_{clock}_median"]}


def peak_bytes(setting: Setting, name: str) -> int:
    """The most bytes alive in the second step, when AdamW's state exists."""
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
    """One of the two, with its engine."""
    values = {
        "model.source": setting.source,
        "model.dtype": "float32",
        "model.attention": "sdpa",
        "deepspeed": f"ds_configs/zero{setting.zero}.json",
        "refine.layer": setting.layer,
        "refine.global_batch": setting.batch,
        "refine.micro_batch": setting.batch,
        "refine.retain_weight": 0,
        "refine.max_grad_norm": 1e9,
    }
    recipe = load_recipe(None, [(field, str(value)) for field, value in values.items()])
    recipe, settings = resolve(recipe, model_config(setting.source), ranks.device, ranks.world_size)
    stage = recipe.refine
    load = load_trunk if name == "ours" else load_whole
    model = load(setting.source, setting.layer, torch.float32, recipe.model.attention).train()
    config = stage_config(settings.deepspeed, stage, recipe.model.dtype, ranks)
    engine = build_engine(model, stage, config, "constant", stage.max_steps, ranks)
    prompts = random_prompts(setting, model.config.vocab_size)
    if name == "ours":
        loss = contrastive_loss(stage, None)
        trunk = Trunk(engine, recipe, prompts, Batching.of(stage), ranks, Anchors(), Anchors(), None, loss)
        return Provider(engine, lambda: train_step(trunk, 0)["loss"])

    batch = prompts.sampler.batch(0)
    ids = torch.tensor([prompts.tokens[label, prompt.id] for prompt, label in batch], device=ranks.device)
    labels = torch.tensor([label for _, label in batch], device=ranks.device)
    criterion = CircleLoss(m=stage.margin, gamma=stage.scale)

    def backward() -> float:
        output = engine(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        h = output.hidden_states[setting.layer][:, -1]
        del output  # the logits need not live through the backward pass
        loss = criterion(h, labels)
        engine.backward(loss, scale_wrt_gas=False)
        return loss.item()

    return Provider(engine, backward)


def load_whole(folder: Path, layer: int, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The whole model with all but blocks 1…ℓ frozen; without a cache of keys and values, which would cost memory."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention, use_cache=False)
    model.requires_grad_(False)
    model.model.layers[:layer].requires_grad_(True)
    return model


def random_prompts(setting: Setting, vocabulary: int) -> RefinePrompts:
    """One batch of random tokens, half of either label."""
    generator = torch.Generator().manual_seed(0)
    half = [Prompt(str(index), "") for index in range(setting.batch // 2)]
    ids = torch.randint(vocabulary, (2, len(half), setting.tokens), generator=generator).tolist()
    tokens = {(label, prompt.id): ids[label][index] for label in (0, 1) for index, prompt in enumerate(half)}
    return RefinePrompts(ContrastiveSampler(half, half, setting.batch, "mixed", 0), tokens, 0, [], [], [])


def compare_first_step(ours: Provider, theirs: Provider) -> dict[str, float]:
    """Run the first step of both; it warms up. Relative differences of the losses, and of the worst gradient."""
    losses, gradients = [], []
    for provider in (ours, theirs):
        losses.append(provider.backward())
        provider.engine.step()
        gradients.append(first_gradients(provider.engine))
    assert gradients[0].keys() == gradients[1].keys(), sorted(gradients[0].keys() ^ gradients[1].keys())
    loss = abs(losses[0] / losses[1] - 1)
    gradient = max(
        float((mine - gradients[1][name]).norm() / gradients[1][name].norm()) for name, mine in gradients[0].items()
    )
    assert loss <= 1e-4 and gradient <= 1e-3, f"losses {losses}; gradients differ by {gradient:.1e}"
    return {"loss_difference": loss, "gradient_difference": gradient}


def first_gradients(engine: Any) -> dict[str, torch.Tensor]:
    """AdamW's first moments after one step: the gradients times 1 − β₁, since nothing is clipped."""

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


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of this file where nothing of an earlier measurement is alive."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def show(row: dict[str, Any]) -> None:
    cells = [row["layer"], row["zero"]]
    for name in PROVIDERS:
        median, q25, q75 = (row[f"{name}_{row['clock']}_{which}"] for which in ("median", "q25", "q75"))
        cells.append(f"{median:.3f} ({q25:.3f} to {q75:.3f})")
    cells += [f"{row[name]:.3f}" for name in ("time_ratio", "flop_ratio", "time_over_flop")]
    cells += [f"{row[f'{name}_peak_bytes'] / 1e9:.3f}" for name in PROVIDERS]
    print(LINE.format(*cells, f"{row['memory_ratio']:.3f}"), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", help="layers ℓ (default: 8,15,23; tiny: 1,2)")
    parser.add_argument("--zero", type=int, choices=(0, 1, 2), default=0, help="ZeRO stage (default: 0)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each (default: 5)")
    parser.add_argument("--batch", type=int, default=64, help="prompts (default: 64)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a prompt (default: 64)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    parser.add_argument("--tiny", action="store_true", help="a small shape, to try the benchmark")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU that torch can use; leave it out")
    options.layers = [int(layer) for layer in (options.layers or ("1,2" if options.tiny else "8,15,23")).split(",")]
    return options


def main() -> None:
    options = parse()
    # for the processes that measure: read when torch is imported there
    os.environ |= {
        "OMP_NUM_THREADS": str(options.threads),
        "DS_ACCELERATOR": options.device,
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    set_environment()
    head = provenance("torch", "deepspeed", "transformers", "pytorch-metric-learning")
    head |= {"shape": "tiny" if options.tiny else "smollm2-135m"}
    config = AutoConfig.for_model("llama", **(TINY if options.tiny else SMOLLM2))
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        print(LINE.format(*TITLE), flush=True)
        for layer in options.layers:
            setting = Setting(Path(folder), layer, options.zero, options.batch, options.tokens, options.threads)
            row = head | {name: getattr(setting, name) for name in ("layer", "zero", "batch", "tokens", "threads")}
            row |= {"steps": options.steps} | in_new_process(time_steps, setting, options.steps)
            row["flop_ratio"] = flop_ratio(config, layer, options.tokens)
            row["time_over_flop"] = row["time_ratio"] / row["flop_ratio"]
            row |= {f"{name}_peak_bytes": in_new_process(peak_bytes, setting, name) for name in PROVIDERS}
            row["memory_ratio"] = row["ours_peak_bytes"] / row["theirs_peak_bytes"]
            show(row)
            if options.csv:
                append(options.csv, row)
    print("bar: time/FLOP at most 1.10, memory ratio at most 0.60 at layer 15")


if __name__ == "__main__":
    main()

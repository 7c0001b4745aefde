"""What `dcr-ds plan` predicts of a rank's memory, against the tensors that are really there, on a CPU.

    python benchmarks/plan_check.py --tiny
    torchrun --nproc_per_node 2 benchmarks/plan_check.py --tiny --zero 1,2,3
    python benchmarks/plan_check.py --shape smollm2-135m --layers 15 --stages refine,whole --zero 0 --tokens 64

For each case a random-weight model of the shape is built, its engine made as the stages make it, and two steps are run.
Parameters, masters and moments are read off the engine after the first; gradients are what the second one's backward
passes leave; the peak is the most tensor bytes alive in the second step (`LiveBytes`). Bars: 2 % for parameters,
gradients and optimizer state, 15 % for the peak.
"""

import argparse
import gc
import itertools
import json
import logging
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import transformers
from record import append, one_or_more_of, provenance, whole_numbers
from transformers import AutoConfig, AutoModelForCausalLM

from dcr_ds.align import loop as align_loop
from dcr_ds.align.mix import Mix
from dcr_ds.data.records import Prompt
from dcr_ds.data.sampler import ContrastiveSampler
from dcr_ds.engine import ranks as process
from dcr_ds.engine.batches import Batching
from dcr_ds.engine.build import build_engine, checkpoint_activations, stage_config
from dcr_ds.engine.resolve import resolve
from dcr_ds.models.chat import Encoded
from dcr_ds.models.source import model_config
from dcr_ds.plan.live_bytes import LiveBytes
from dcr_ds.plan.memory import memory, share_of, tensors_of
from dcr_ds.plan.rehearsal import freeze_above
from dcr_ds.plan.states import Zero
from dcr_ds.recipe import load_recipe
from dcr_ds.refine import loop as refine_loop
from dcr_ds.refine.prompts import RefinePrompts

SHAPES = Path(__file__).resolve().parent.parent / "dcr_ds" / "plan" / "configs"
TINY = {
    "model_type": "llama",
    "num_hidden_layers": 6,
    "hidden_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 256,
    "vocab_size": 640,
    "tie_word_embeddings": False,
}
BUCKETS = ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size")
STATE_BAR, PEAK_BAR = 0.02, 0.15
RAGGED = 4  # rows of a batch differ in length by so many tokens: the attention mask is there, as in real batches
PARTS = ("parameters", "gradients", "optimizer", "peak")


@dataclass(frozen=True)
class Case:
    stage: str
    zero: int
    checkpointing: bool
    adapter: str
    dtype: str
    rows: int
    micro_batch: int
    tokens: int
    layer: int


def overrides(case: Case, folder: Path, bucket: int, ranks: int) -> list[tuple[str, str]]:
    config = json.loads((Path("ds_configs") / f"zero{case.zero}.json").read_text())
    section = config["zero_optimization"]
    section |= {name: bucket for name in BUCKETS if name in section}
    if case.zero == 3:
        section |= {"stage3_param_persistence_threshold": 1000}
    values = {
        "model.source": folder,
        "model.dtype": case.dtype,
        "model.attention": "sdpa",
        "model.activation_checkpointing": case.checkpointing,
        "deepspeed": json.dumps(config),
        "refine.layer": case.layer,
        "refine.global_batch": case.rows * ranks,
        "refine.micro_batch": case.micro_batch,
        "refine.max_length": case.tokens,
        "refine.retain_batch": 2 * ranks,
        "model.kernels": "none",
        "refine.max_steps": 2,
        "refine.retain_weight": 0 if case.stage == "whole" else 1,
        "align.global_batch": case.rows * ranks,
        "align.micro_batch": case.micro_batch,
        "align.max_length": case.tokens,
        "align.adapter": case.adapter,
    }
    return [(name, str(value)) for name, value in values.items()]


def measure(case: Case, folder: Path, recipe, settings, ranks) -> dict[str, int]:
    """Run two steps of a case and return its bytes."""
    before = alive()
    engine, backward = STAGES[case.stage](recipe, settings, folder, ranks)
    backward(0)
    engine.step()
    resident = alive()
    parameters, optimizer = parameter_bytes(engine), optimizer_bytes(engine)
    with LiveBytes() as live:
        backward(1)
        gradients = live.alive - resident - bucket_bytes(engine)
        engine.step()
    if case.zero == 3:
        gradients = engine.optimizer.grad_partitions_flat_buffer.nbytes
    return {
        "parameters": parameters,
        "gradients": gradients,
        "optimizer": optimizer,
        "peak": live.peak - before,
    }


def alive() -> int:
    return LiveBytes().alive


def parameter_bytes(engine) -> int:
    """The rank's own: whole parameters, or their shards."""
    tensors = [getattr(each, "ds_tensor", each) for each in engine.module.parameters()]
    return distinct_bytes(tensors)


def optimizer_bytes(engine) -> int:
    """Float32 masters and the state of AdamW."""
    wrapper = engine.optimizer
    adam = getattr(wrapper, "optimizer", wrapper)
    state = [each for one in adam.state.values() for each in one.values() if torch.is_tensor(each)]
    masters = [each for group in adam.param_groups for each in group["params"]]
    if engine.zero_optimization_stage() == 3:
        masters = wrapper.fp32_partitioned_groups_flat
    own = {each.untyped_storage()._cdata for each in engine.module.parameters()}
    return distinct_bytes(state + [each for each in masters if each.untyped_storage()._cdata not in own])


def bucket_bytes(engine) -> int:
    """The buffer that ZeRO-1 and 2 keep between a backward pass and the step."""
    buckets = getattr(engine.optimizer, "ipg_buckets", {})
    buffers = [
        each for bucket in buckets.values() for each in (bucket.buffer if isinstance(bucket.buffer, list) else [])
    ]
    return distinct_bytes(buffers)


def distinct_bytes(tensors) -> int:
    return sum({each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}.values())


def refine_stage(recipe, settings, folder: Path, ranks):
    stage, vocabulary = recipe.refine, model_config(folder)["vocab_size"]
    prompts = random_prompts(stage.global_batch, stage.max_length, vocabulary)
    trunk = refine_loop.build_trunk(recipe, settings, folder, prompts, ranks)
    return trunk.engine, lambda step: refine_loop.train_step(trunk, step)


def random_prompts(batch: int, tokens: int, vocabulary: int) -> RefinePrompts:
    generator = torch.Generator().manual_seed(0)
    half = [Prompt(str(index), "") for index in range(batch // 2)]
    random = torch.randint(vocabulary, (3 * batch, tokens), generator=generator).tolist()
    random = [row[: tokens - index % RAGGED] for index, row in enumerate(random)]
    rows = {(label, prompt.id): random.pop() for label in (0, 1) for prompt in half}
    general = random
    return RefinePrompts(ContrastiveSampler(half, half, batch, "mixed", 0), rows, 0, [], general, [general[0]])


def whole_stage(recipe, settings, folder: Path, ranks):
    """Stage 1 on the whole model, as it is without this project."""
    stage = recipe.refine
    config = stage_config(settings.deepspeed, stage, recipe.model.dtype, ranks)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, recipe.model.dtype), attn_implementation="sdpa"
    )
    model.config.use_cache = False
    freeze_above(model, stage.layer)
    model.train()
    if recipe.model.activation_checkpointing:
        checkpoint_activations(model)
    engine = build_engine(model, stage, config, "constant", 2, ranks)
    rows = stage.global_batch // ranks.world_size

    def backward(step: int) -> None:
        for start in range(0, rows, stage.micro_batch):
            ids = torch.ones(min(stage.micro_batch, rows - start), stage.max_length, dtype=torch.long)
            mask = torch.ones_like(ids)
            mask[0, -1] = 0
            output = engine(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            h = output.hidden_states[stage.layer][:, -1]
            del output
            engine.backward((h * torch.ones_like(h)).float().sum(), scale_wrt_gas=False)

    return engine, backward


def align_stage(recipe, settings, folder: Path, ranks):
    stage, vocabulary = recipe.align, model_config(folder)["vocab_size"]
    generator = torch.Generator().manual_seed(0)
    samples = [
        Encoded(torch.randint(vocabulary, (stage.max_length - index % RAGGED,), generator=generator).tolist(), 1)
        for index in range(stage.global_batch)
    ]
    mix = Mix(samples, [str(index) for index in range(len(samples))], 0)
    engine = align_loop.build_engine_for(recipe, settings, folder, 2, ranks)
    rows = list(range(len(samples)))
    return engine, lambda step: align_loop.train_step(engine, mix, rows, Batching.of(stage), ranks)


STAGES = {"refine": refine_stage, "whole": whole_stage, "align": align_stage}


def predict(case: Case, folder: Path, recipe, settings, ranks: int) -> dict[str, int]:
    section = "align" if case.stage == "align" else "refine"
    share = share_of(recipe, section, ranks)
    tensors = tensors_of(recipe, folder, case.stage)
    planned = memory(recipe, folder, case.stage, Zero.of(settings.deepspeed), ranks, share, tensors, on_gpu=False)
    state = planned.states
    return {
        "parameters": state.parameters,
        "gradients": state.gradients,
        "optimizer": state.masters + state.moments,
        "peak": planned.peak,
    }


def check(case: Case, folder: Path, bucket: int, ranks) -> dict[str, Any] | None:
    """Measured on all ranks, the most of any; planned and compared by rank 0, None on the others."""
    recipe = load_recipe(None, overrides(case, folder, bucket, ranks.world_size))
    recipe, settings = resolve(recipe, model_config(folder), ranks.device, ranks.world_size)
    measured = measure(case, folder, recipe, settings, ranks)
    gc.collect()
    most = torch.tensor([measured[part] for part in PARTS], dtype=torch.int64)
    if ranks.world_size > 1:
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    if not ranks.is_main:
        return None
    measured = dict(zip(PARTS, most.tolist(), strict=True))
    planned = predict(case, folder, recipe, settings, ranks.world_size)
    row = asdict(case) | {"ranks": ranks.world_size}
    for part in PARTS:
        row |= {f"{part}_planned": planned[part], f"{part}_measured": measured[part]}
        row[f"{part}_ratio"] = planned[part] / measured[part]
    return row


def random_model(shape: str, folder: Path) -> None:
    torch.manual_seed(0)
    values = TINY if shape == "tiny" else json.loads((SHAPES / shape / "config.json").read_text())
    config = AutoConfig.for_model(**values)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny", help="a shape of dcr_ds/plan/configs (default: a tiny one)")
    parser.add_argument("--layers", type=whole_numbers, default=[3], help="layers ℓ (default: 3)")
    parser.add_argument(
        "--stages", type=one_or_more_of(("refine", "whole", "align")), default=["refine", "whole", "align"]
    )
    parser.add_argument("--zero", type=one_or_more_of(("0", "1", "2", "3")), default=["0", "1", "2", "3"])
    parser.add_argument("--checkpointing", type=one_or_more_of(("off", "on")), default=["off", "on"])
    parser.add_argument("--adapters", type=one_or_more_of(("none", "lora")), default=["none", "lora"])
    parser.add_argument("--dtypes", type=one_or_more_of(("float32", "bfloat16")), default=["float32"])
    parser.add_argument("--rows", type=int, default=8, help="rows of a rank in a step (default: 8)")
    parser.add_argument("--micro-batches", type=whole_numbers, default=[8], help="rows at once (default: 8)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a row (default: 64)")
    parser.add_argument("--bucket", type=int, default=20_000, help="elements of DeepSpeed's buckets (default: 20000)")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    return parser.parse_args()


def main() -> int:
    options = parse()
    process.set_environment()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    ranks = process.start()
    folder = Path(process.from_main(tempfile.mkdtemp(prefix="plan_check") if ranks.is_main else None, ranks))
    if ranks.is_main:
        random_model(options.shape, folder)
    process.barrier(ranks)
    failed = 0
    grid = itertools.product(
        options.stages,
        options.adapters,
        options.zero,
        options.checkpointing,
        options.dtypes,
        options.micro_batches,
        options.layers,
    )
    for stage, adapter, zero, checkpointing, dtype, micro_batch, layer in grid:
        if adapter != "none" and stage != "align":
            continue
        case = Case(
            stage, int(zero), checkpointing == "on", adapter, dtype, options.rows, micro_batch, options.tokens, layer
        )
        row = check(case, folder, options.bucket, ranks)
        if row is None:
            continue
        bars = {part: PEAK_BAR if part == "peak" else STATE_BAR for part in PARTS}
        over = [part for part in PARTS if abs(row[f"{part}_ratio"] - 1) > bars[part]]
        failed += bool(over)
        ratios = "  ".join(f"{part} {row[f'{part}_ratio']:.3f}" for part in PARTS)
        case_text = f"{stage:6} {adapter:5} zero {zero}  checkpointing {checkpointing:3} {dtype} micro {micro_batch}"
        print(
            f"{case_text} layer {layer}  {ratios}"
            f"  {row['peak_measured'] / 1e6:.2f} MB{'  OVER: ' + ', '.join(over) if over else ''}",
            flush=True,
        )
        if options.csv:
            append(options.csv, provenance("torch", "deepspeed", "transformers") | {"shape": options.shape} | row)
    process.close()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

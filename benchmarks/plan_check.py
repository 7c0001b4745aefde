"""What `dcr-ds plan` predicts of a rank's memory, against the tensors that are really there, on a CPU.

    python benchmarks/plan_check.py
    torchrun --nproc_per_node 2 benchmarks/plan_check.py --zero 1,2,3
    python benchmarks/plan_check.py --stages refine,align,dpo --adapters qlora --packing off,on --zero 0
    python benchmarks/plan_check.py --shape smollm2-135m --layers 15 --stages refine,whole --zero 0 --tokens 64

For each case a random-weight model of the shape is built, its engine made as the stages make it, and two steps are run.
Parameters, masters and moments are read off the engine after the first; gradients are what the second one's backward
passes leave; the peak is the most tensor bytes alive in the second step (`LiveBytes`), and what is sent are that step's
messages as PyTorch's dispatcher sees them, each with the bytes that a ring makes of it. Bars: 2 % for parameters,
gradients and optimizer state, 15 % for the peak and for what is sent.
"""

import argparse
import gc
import itertools
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import transformers
from record import append, one_or_more_of, provenance, whole_numbers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from dcr_ds.engine import distributed as process
from dcr_ds.engine import machine
from dcr_ds.engine.build import build_engine, checkpoint_activations, stage_config
from dcr_ds.engine.optimizers import FROM_BITSANDBYTES
from dcr_ds.engine.resolve import resolve
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.plan.choose import Cluster, Lengths, Stage
from dcr_ds.plan.clock import GPUS
from dcr_ds.plan.live_bytes import LiveBytes
from dcr_ds.plan.passes import freeze_above
from dcr_ds.plan.states import Zero
from dcr_ds.plan.trial import TRIALS, Rows
from dcr_ds.recipe import load_recipe

SHAPES = Path(__file__).resolve().parent.parent / "dcr_ds" / "plan" / "configs"
TINY = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 128,  # bitsandbytes on a CPU wants multiples of 64
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
    "vocab_size": 640,
    "tie_word_embeddings": False,
}
BUCKETS = ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size")
BARS = {"parameters": 0.02, "gradients": 0.02, "optimizer": 0.02, "peak": 0.15, "sent": 0.15}
OPTIMIZERS = ("adamw", *FROM_BITSANDBYTES)
WARM_UP = (1, 1, 1, 2)  # steps by ZeRO stage; stage 3 knows the order of the modules only after two
RAGGED = 4  # rows of a batch differ in length by up to so many tokens: there is padding, as in real batches


@dataclass(frozen=True)
class Case:
    stage: str
    zero: int
    checkpointing: bool
    adapter: str
    packing: bool
    optimizer: str
    dtype: str
    rows: int
    micro_batch: int
    tokens: int
    layer: int

    @property
    def section(self) -> str:
        return "refine" if self.stage in ("refine", "whole") else "align"

    def __str__(self) -> str:
        extras = "recomputed " * self.checkpointing + "packed " * self.packing
        how = f"{self.adapter} {self.optimizer} zero {self.zero} {self.dtype} {extras}micro {self.micro_batch}"
        return f"{self.stage:6} {how} layer {self.layer}"


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
        "refine.max_steps": 3,
        "refine.retain_weight": 0 if case.stage == "whole" else 1,
        "align.global_batch": case.rows * ranks,
        "align.micro_batch": case.micro_batch,
        "align.max_length": case.tokens,
        "align.method": "dpo" if case.stage == "dpo" else "sft",
        "model.quantize": "nf4" if case.adapter == "qlora" else "none",
        f"{case.section}.adapter": "none" if case.adapter == "none" else "lora",
        f"{case.section}.packing": case.packing,
        f"{case.section}.packed_length": 2 * case.tokens * (2 if case.stage == "dpo" else 1),
        f"{case.section}.optimizer": case.optimizer,
        "stages": f"[{case.section}]",
    }
    return [(name, str(value)) for name, value in values.items()]


class Messages(TorchDispatchMode):
    """While open, counts the bytes that this rank would send on a ring, message by message."""

    def __init__(self, ranks: int):
        super().__init__()
        self.ranks, self.sent = ranks, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            sizes = [each.nbytes for each in tree_leaves(args) if isinstance(each, torch.Tensor)]
            if "allreduce" in func._schema.name:
                rounds, whole = 2, sum(sizes)
            else:  # all-gathers and reduce-scatters are given a part of the whole, too
                rounds, whole = 1, self.ranks * min(sizes, default=0)
            self.sent += rounds * whole * (self.ranks - 1) // self.ranks
        return func(*args, **(kwargs or {}))


def measure(case: Case, folder: Path, recipe, ranks) -> dict[str, int]:
    """Run two steps of a case and return its bytes."""
    before = alive()
    build = whole_trial if case.stage == "whole" else TRIALS[case.stage]
    engine, backward = build(recipe, folder, Rows(case.tokens, RAGGED), ranks)
    for step in range(WARM_UP[case.zero]):
        backward(step)
        engine.step()
    resident = alive()
    parameters, optimizer = parameter_bytes(engine), optimizer_bytes(engine)
    with Messages(ranks.world_size) as messages, LiveBytes() as live:
        backward(WARM_UP[case.zero])
        gradients = live.alive - resident - bucket_bytes(engine)
        engine.step()
    if case.zero == 3:
        gradients = engine.optimizer.grad_partitions_flat_buffer.nbytes
    return {
        "parameters": parameters,
        "gradients": gradients,
        "optimizer": optimizer,
        "peak": live.peak - before,
        "sent": messages.sent,
    }


def alive() -> int:
    return LiveBytes().alive


def parameter_bytes(engine) -> int:
    """The rank's own: whole parameters, or their shards."""
    tensors = [getattr(each, "ds_tensor", each) for each in engine.module.parameters()]
    for each in tensors:
        if state := getattr(each, "quant_state", None):  # of a weight in 4 bits: its scales, themselves quantised
            tensors += [state.absmax, state.state2.absmax]
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


def whole_trial(recipe, folder: Path, rows: Rows, ranks):
    """Stage 1 on the whole model, as it is without this project."""
    stage = recipe.refine
    config = stage_config(recipe.deepspeed, stage, recipe.model.dtype, ranks)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, recipe.model.dtype), attn_implementation="sdpa"
    )
    model.config.use_cache = False
    freeze_above(model, stage.layer)
    model.train()
    if recipe.model.activation_checkpointing:
        checkpoint_activations(model)
    engine = build_engine(model, stage, config, "constant", 2, ranks)
    share = stage.global_batch // ranks.world_size

    def hidden(start: int) -> torch.Tensor:
        ids = torch.ones(min(stage.micro_batch, share - start), rows.tokens, dtype=torch.long)
        mask = torch.ones_like(ids)
        mask[0, -1] = 0
        output = engine(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        return output.hidden_states[stage.layer][:, -1]

    def embed() -> None:
        with torch.no_grad():
            for start in starts:
                hidden(start)

    def backward(step: int) -> None:
        if len(starts) > 1:  # the embeddings of all come first
            embed()
        for start in starts:
            h = hidden(start)
            engine.backward((h * torch.ones_like(h)).float().sum(), scale_wrt_gas=False)

    starts = range(0, share, stage.micro_batch)
    embed()  # the held-out prompts are measured before the first step
    return engine, backward


def predict(case: Case, folder: Path, recipe, ranks: int) -> dict[str, int]:
    """What the plan says of a case."""
    cluster = Cluster(ranks, ranks, 64, GPUS["h100"], on_gpu=False)
    stage = Stage(recipe, folder, case.stage.replace("dpo", "align"), cluster, Lengths(case.tokens, case.tokens))
    planned = stage.at(Zero.of(recipe.deepspeed), stage.section.micro_batch)
    state = planned.memory.states
    return {
        "parameters": state.parameters,
        "gradients": state.gradients,
        "optimizer": state.masters + state.moments,
        "peak": planned.memory.peak,
        "sent": sum(one.bytes for one in planned.traffic),
    }


def check(case: Case, folder: Path, bucket: int, ranks) -> dict[str, Any] | None:
    """Measured on all ranks, the most of any; planned and compared by rank 0, None on the others."""
    recipe = load_recipe(None, overrides(case, folder, bucket, ranks.world_size))
    recipe, _ = resolve(recipe, model_config(folder), machine.Machine.detect(ranks))
    measured = measure(case, folder, recipe, ranks)
    gc.collect()
    most = torch.tensor([measured[part] for part in BARS], dtype=torch.int64)
    if ranks.world_size > 1:
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    if not ranks.is_main:
        return None
    measured = dict(zip(BARS, most.tolist(), strict=True))
    planned = predict(case, folder, recipe, ranks.world_size)
    row = asdict(case) | {"ranks": ranks.world_size}
    for part in BARS:
        row |= {f"{part}_planned": planned[part], f"{part}_measured": measured[part]}
        row[f"{part}_ratio"] = planned[part] / measured[part] if measured[part] else 1.0
    return row


def random_model(shape: str, folder: Path) -> None:
    torch.manual_seed(0)
    values = TINY if shape == "tiny" else json.loads((SHAPES / shape / "config.json").read_text())
    config = AutoConfig.for_model(**values)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny", help="a shape of dcr_ds/plan/configs (default: a tiny one)")
    parser.add_argument("--layers", type=whole_numbers, default=[2], help="layers ℓ (default: 2)")
    parser.add_argument(
        "--stages", type=one_or_more_of(("refine", "whole", "align", "dpo")), default=["refine", "whole", "align"]
    )
    parser.add_argument("--zero", type=one_or_more_of(("0", "1", "2", "3")), default=["0", "1", "2", "3"])
    parser.add_argument("--checkpointing", type=one_or_more_of(("off", "on")), default=["off", "on"])
    parser.add_argument("--adapters", type=one_or_more_of(("none", "lora", "qlora")), default=["none", "lora"])
    parser.add_argument("--packing", type=one_or_more_of(("off", "on")), default=["off"])
    parser.add_argument("--optimizers", type=one_or_more_of(OPTIMIZERS), default=["adamw"])
    parser.add_argument("--dtypes", type=one_or_more_of(("float32", "bfloat16")), default=["float32"])
    parser.add_argument("--rows", type=int, default=8, help="rows of a rank in a step (default: 8)")
    parser.add_argument("--micro-batches", type=whole_numbers, default=[8], help="rows at once (default: 8)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a row (default: 64)")
    parser.add_argument("--bucket", type=int, default=20_000, help="elements of DeepSpeed's buckets (default: 20000)")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    return parser.parse_args()


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All combinations asked for that there are: the whole model trains in full and padded, as it is without this."""
    for stage, adapter, zero, checkpointing, packing, optimizer, dtype, micro_batch, layer in itertools.product(
        options.stages,
        options.adapters,
        options.zero,
        options.checkpointing,
        options.packing,
        options.optimizers,
        options.dtypes,
        options.micro_batches,
        options.layers,
    ):
        case = Case(
            stage, int(zero), checkpointing == "on", adapter, packing == "on", optimizer, dtype, options.rows,
            micro_batch, options.tokens, layer,
        )  # fmt: skip
        if case.stage == "whole" and (case.adapter != "none" or case.packing or case.optimizer != "adamw"):
            continue
        yield case


def main() -> int:
    options = parse()
    process.set_environment()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    ranks = process.start()
    folder = Path(process.broadcast_from_main(tempfile.mkdtemp(prefix="plan_check") if ranks.is_main else None, ranks))
    if ranks.is_main:
        random_model(options.shape, folder)
    process.barrier(ranks)
    failed = 0
    for case in cases(options):
        row = check(case, folder, options.bucket, ranks)
        if row is None:
            continue
        over = [part for part, bar in BARS.items() if abs(row[f"{part}_ratio"] - 1) > bar]
        failed += bool(over)
        ratios = "  ".join(f"{part} {row[f'{part}_ratio']:.3f}" for part in BARS)
        print(
            f"{case}: {ratios}; {row['peak_measured'] / 1e6:.2f} MB, sent {row['sent_measured'] / 1e6:.2f} MB"
            f"{'  OVER: ' + ', '.join(over) if over else ''}",
            flush=True,
        )
        if options.csv:
            append(options.csv, provenance("torch", "deepspeed", "transformers") | {"shape": options.shape} | row)
    process.close()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

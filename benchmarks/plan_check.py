"""Memory and traffic per rank as `dcr-ds plan` predicts them, compared with those of real steps on a CPU.

    python benchmarks/plan_check.py
    torchrun --nproc_per_node 2 benchmarks/plan_check.py --zero 1,2,3
    python benchmarks/plan_check.py --stages refine,align,dpo --adapters qlora --packing off,on --zero 0
    python benchmarks/plan_check.py --shape smollm2-135m --layers 15 --stages refine,whole --zero 0 --tokens 64

Each case builds a random-weight model of the shape and its engine as the stages do, and runs two steps (three under
ZeRO-3). Parameters, master weights and moments are read from the engine before the last step. Of the last step come the
gradients (what its backward passes leave), the peak (of the bytes of live tensors, see `LiveBytes`), and the traffic
(the collectives that PyTorch's dispatcher sees, in bytes sent by a ring algorithm). Tolerances: 2 % for parameters,
gradients and optimizer state, 15 % for the peak and the traffic.
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
from typing import Any, Literal

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
from dcr_ds.engine.launcher import set_environment
from dcr_ds.engine.optimizers import FROM_BITSANDBYTES
from dcr_ds.engine.resolve import resolve
from dcr_ds.models.checkpoint_files import model_config
from dcr_ds.plan.choose import Cluster, Lengths, Stage
from dcr_ds.plan.clock import GPUS
from dcr_ds.plan.live_bytes import LiveBytes
from dcr_ds.plan.passes import Kind, freeze_above
from dcr_ds.plan.states import Zero
from dcr_ds.plan.trial import TRIALS, Rows
from dcr_ds.recipe import PREFERENCE_TITLES, load_recipe
from dcr_ds.recipe.methods import PAIRED

SHAPES = Path(__file__).resolve().parent.parent / "dcr_ds" / "plan" / "configs"
TINY = {"model_type": "llama", "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
TINY |= {"hidden_size": 128, "intermediate_size": 256}  # bitsandbytes on a CPU needs multiples of 64
TINY |= {"head_dim": 32, "vocab_size": 640, "tie_word_embeddings": False}
BUCKETS = ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size")
TOLERANCES = {"parameters": 0.02, "gradients": 0.02, "optimizer": 0.02, "peak": 0.15, "sent": 0.15}
OPTIMIZERS = ("adamw", *FROM_BITSANDBYTES)
WARM_UP = (1, 1, 1, 2)  # steps by ZeRO stage; stage 3 needs two to learn the order of the modules
RAGGED = 4  # lengths within a batch differ by up to this many tokens, so that there is padding, as in real batches


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
    def section(self) -> Literal["refine", "align"]:
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
        "align.method": case.stage if case.stage in PREFERENCE_TITLES else "sft",
        "model.quantize": "nf4" if case.adapter == "qlora" else "none",
        f"{case.section}.adapter": "none" if case.adapter == "none" else "lora",
        f"{case.section}.packing": case.packing,
        f"{case.section}.packed_length": 2 * case.tokens * (2 if case.stage in PAIRED else 1),
        f"{case.section}.optimizer": case.optimizer,
        "stages": f"[{case.section}]",
    }
    return [(name, str(value)) for name, value in values.items()]


class Messages(TorchDispatchMode):
    """A context that counts the bytes that this rank's collectives send, assuming ring algorithms."""

    def __init__(self, ranks: int):
        super().__init__()
        self.ranks, self.sent = ranks, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            sizes = [leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            if "allreduce" in func._schema.name:
                rounds, total = 2, sum(sizes)
            else:  # arguments of an all-gather or reduce-scatter include this rank's part, the smallest of them
                rounds, total = 1, self.ranks * min(sizes, default=0)
            self.sent += rounds * total * (self.ranks - 1) // self.ranks
        return func(*args, **(kwargs or {}))


def measure(case: Case, folder: Path, recipe, ranks) -> dict[str, int]:
    """Build a case, run its steps, and return the bytes of each part."""
    before = LiveBytes().alive
    build = whole_trial if case.stage == "whole" else TRIALS[case.section]
    engine, backward = build(recipe, folder, Rows(case.tokens, RAGGED), ranks)
    for step in range(WARM_UP[case.zero]):
        backward(step)
        engine.step()
    resident = LiveBytes().alive
    parameters, optimizer = parameter_bytes(engine), optimizer_bytes(engine)
    with Messages(ranks.world_size) as messages, LiveBytes() as live:
        backward(WARM_UP[case.zero])
        gradients = live.alive - resident - bucket_bytes(engine)
        engine.step()
    if case.zero == 3:
        gradients = engine.optimizer.grad_partitions_flat_buffer.nbytes
    weights = {"parameters": parameters, "gradients": gradients, "optimizer": optimizer}
    return weights | {"peak": live.peak - before, "sent": messages.sent}


def parameter_bytes(engine) -> int:
    """Bytes of this rank's parameters, or of its shards of them."""
    tensors = [getattr(parameter, "ds_tensor", parameter) for parameter in engine.module.parameters()]
    states = [state for tensor in tensors if (state := getattr(tensor, "quant_state", None))]
    scales = [scale for state in states for scale in (state.absmax, state.state2.absmax)]  # of weights in 4 bits
    return distinct_bytes(tensors + scales)


def optimizer_bytes(engine) -> int:
    """Bytes of the float32 master weights and of AdamW's state."""
    wrapper = engine.optimizer
    adam = getattr(wrapper, "optimizer", wrapper)
    moments = [value for state in adam.state.values() for value in state.values() if torch.is_tensor(value)]
    masters = [parameter for group in adam.param_groups for parameter in group["params"]]
    if engine.zero_optimization_stage() == 3:
        masters = wrapper.fp32_partitioned_groups_flat
    parameters = storages(engine.module.parameters())
    return distinct_bytes(moments + [master for master in masters if not storages([master]).keys() & parameters.keys()])


def bucket_bytes(engine) -> int:
    """Bytes of the buffers that ZeRO-1 and 2 keep between a backward pass and the step."""
    buckets = getattr(engine.optimizer, "ipg_buckets", {}).values()
    return distinct_bytes([part for bucket in buckets if isinstance(bucket.buffer, list) for part in bucket.buffer])


def storages(tensors) -> dict[int, int]:
    """Identity → bytes of the distinct storages behind some tensors."""
    return {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}


def distinct_bytes(tensors) -> int:
    return sum(storages(tensors).values())


def whole_trial(recipe, folder: Path, rows: Rows, ranks):
    """Stage 1 on the whole model instead of the trunk, as one would write it without this project."""
    stage = recipe.refine
    config = stage_config(recipe.deepspeed, stage, recipe.model.dtype, ranks)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, recipe.model.dtype), attn_implementation="sdpa", trust_remote_code=False
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
        if len(starts) > 1:  # the loss needs the embeddings of all micro-batches first
            embed()
        for start in starts:
            h = hidden(start)
            engine.backward((h * torch.ones_like(h)).float().sum(), scale_wrt_gas=False)

    starts = range(0, share, stage.micro_batch)
    embed()  # stage 1 measures the held-out prompts before the first step
    return engine, backward


def predict(case: Case, folder: Path, recipe, ranks: int) -> dict[str, int]:
    """The plan of a case."""
    cluster = Cluster(ranks, ranks, 64, GPUS["h100"], on_gpu=False)
    kind: Kind = "whole" if case.stage == "whole" else case.section
    stage = Stage(recipe, folder, kind, cluster, Lengths(case.tokens, case.tokens))
    planned = stage.at(Zero.of(recipe.deepspeed), stage.section.micro_batch)
    state = planned.memory.states
    return {
        "parameters": state.parameters,
        "gradients": state.gradients,
        "optimizer": state.masters + state.moments,
        "peak": planned.memory.peak,
        "sent": sum(message.bytes for message in planned.traffic),
    }


def check(case: Case, folder: Path, bucket: int, ranks) -> dict[str, Any] | None:
    """Measure on all ranks and compare the maximum with the plan: a row on rank 0, None on the others."""
    recipe = load_recipe(None, overrides(case, folder, bucket, ranks.world_size))
    recipe, _ = resolve(recipe, model_config(folder), machine.Machine.detect(ranks))
    measured = measure(case, folder, recipe, ranks)
    gc.collect()
    largest = torch.tensor([measured[part] for part in TOLERANCES], dtype=torch.int64)
    if ranks.world_size > 1:
        torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    if not ranks.is_main:
        return None
    measured = dict(zip(TOLERANCES, largest.tolist(), strict=True))
    planned = predict(case, folder, recipe, ranks.world_size)
    row = asdict(case) | {"ranks": ranks.world_size}
    for part in TOLERANCES:
        row |= {f"{part}_planned": planned[part], f"{part}_measured": measured[part]}
        row[f"{part}_ratio"] = planned[part] / measured[part] if measured[part] else 1.0
    return row


def random_model(shape: str, folder: Path) -> None:
    torch.manual_seed(0)
    values = TINY if shape == "tiny" else json.loads((SHAPES / shape / "config.json").read_text())
    config = AutoConfig.for_model(**values)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).save_pretrained(folder)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny", help="name in dcr_ds/plan/configs (default: %(default)s)")
    parser.add_argument("--layers", type=whole_numbers, default=[2], help="layers ℓ (default: 2)")
    parser.add_argument(
        "--stages",
        type=one_or_more_of(("refine", "whole", "align", *PREFERENCE_TITLES)),
        default=["refine", "whole", "align"],
    )
    parser.add_argument("--zero", type=one_or_more_of(("0", "1", "2", "3")), default=["0", "1", "2", "3"])
    parser.add_argument("--checkpointing", type=one_or_more_of(("off", "on")), default=["off", "on"])
    parser.add_argument("--adapters", type=one_or_more_of(("none", "lora", "qlora")), default=["none", "lora"])
    parser.add_argument("--packing", type=one_or_more_of(("off", "on")), default=["off"])
    parser.add_argument("--optimizers", type=one_or_more_of(OPTIMIZERS), default=["adamw"])
    parser.add_argument("--dtypes", type=one_or_more_of(("float32", "bfloat16")), default=["float32"])
    parser.add_argument("--rows", type=int, default=8, help="rows per rank and step (default: 8)")
    parser.add_argument("--micro-batches", type=whole_numbers, default=[8], help="micro-batch sizes (default: 8)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per row (default: 64)")
    parser.add_argument("--bucket", type=int, default=20_000, help="elements of DeepSpeed's buckets (default: 20000)")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    return parser.parse_args()


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All combinations of the options; `whole` only without adapter and packing, and with plain AdamW."""
    axes = {
        "stage": options.stages,
        "adapter": options.adapters,
        "zero": map(int, options.zero),
        "checkpointing": [word == "on" for word in options.checkpointing],
        "packing": [word == "on" for word in options.packing],
        "optimizer": options.optimizers,
        "dtype": options.dtypes,
        "micro_batch": options.micro_batches,
        "layer": options.layers,
    }
    for values in itertools.product(*axes.values()):
        case = Case(**dict(zip(axes, values, strict=True)), rows=options.rows, tokens=options.tokens)
        if case.stage == "whole" and (case.adapter != "none" or case.packing or case.optimizer != "adamw"):
            continue
        yield case


def main() -> int:
    options = parse()
    set_environment()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    ranks = process.start()
    folder = Path(process.broadcast_from_main(tempfile.mkdtemp(prefix="plan_check") if ranks.is_main else None, ranks))
    if ranks.is_main:
        random_model(options.shape, folder)
    process.barrier(ranks)
    failed = False
    for case in cases(options):
        row = check(case, folder, options.bucket, ranks)
        if row is None:
            continue
        over = [part for part, tolerance in TOLERANCES.items() if abs(row[f"{part}_ratio"] - 1) > tolerance]
        failed |= bool(over)
        ratios = "  ".join(f"{part} {row[f'{part}_ratio']:.3f}" for part in TOLERANCES)
        print(
            f"{case}: {ratios}; {row['peak_measured'] / 1e6:.2f} MB, sent {row['sent_measured'] / 1e6:.2f} MB"
            f"{'  OVER: ' + ', '.join(over) if over else ''}",
            flush=True,
        )
        if options.csv:
            append(options.csv, provenance("torch", "deepspeed", "transformers") | {"shape": options.shape} | row)
    process.close()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

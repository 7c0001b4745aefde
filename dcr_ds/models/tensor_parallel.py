"""Models spread over several ranks: transformers' tensor parallelism, in groups of ranks that hold one copy each.

Every rank reads its own part of each weight and no more. Partial products are summed or gathered within the group, so
that all its ranks have the same hidden states and the same logits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dcr_ds.errors import UserError, one_line
from dcr_ds.progress import heartbeat_while_moving

OLDEST = "5.20"  # the first transformers whose device meshes can be given
AXES = ("pp", "dp_replicate", "fsdp", "tp")  # of transformers' meshes; only the last has more than one rank here


def why_not_spread(config: PreTrainedConfig, size: int) -> str:
    """Why a model cannot be spread over `size` ranks; "" if it can."""
    plan = config.base_model_tp_plan
    if not plan:
        return f"transformers has no tensor-parallel plan for {config.model_type}"
    for name, count in _divided(config, plan).items():
        if count % size:
            return f"{name} = {count} of the model is not a multiple of {size}"
    return ""


def _divided(config: PreTrainedConfig, plan: dict[str, str]) -> dict[str, int]:
    """The numbers of a config that are divided among the ranks."""
    names = []
    if plan.get("layers.*.self_attn.k_proj") == "colwise":  # else every rank computes all heads
        names += ["num_attention_heads", "num_key_value_heads"]
    if plan.get("layers.*.mlp.down_proj") == "rowwise":
        names.append("intermediate_size")
    if "layers.*.mlp.experts.down_proj" in plan:
        names.append("moe_intermediate_size" if hasattr(config, "moe_intermediate_size") else "intermediate_size")
    return {name: count for name in names if (count := getattr(config, name, None))}


def load_spread(folder: Path, dtype: torch.dtype, attention: str, size: int, device: torch.device) -> PreTrainedModel:
    """Load a causal language model in eval mode, spread over each `size` consecutive ranks. All ranks.

    Raises:
        UserError: the installed transformers is too old.
    """
    try:
        from transformers.distributed import DistributedConfig
        from transformers.distributed.utils import TransformersDeviceMesh
    except ImportError:
        raise UserError(
            f"evaluate.ranks_per_copy: {size} needs transformers {OLDEST} or newer: pip install -U transformers"
        ) from None
    mesh = _mesh_of_groups(dist.group.WORLD, device.type, size)[AXES]
    with _prepared(device, TransformersDeviceMesh(mesh, mesh)), heartbeat_while_moving(f"loading {folder}"):
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            distributed_config=DistributedConfig(tp_size=size),
            trust_remote_code=False,
        ).eval()


@lru_cache(maxsize=1)
def _mesh_of_groups(world: Any, device_type: str, size: int) -> DeviceMesh:
    """The mesh of all ranks of the process group `world`; the same for all models, as its groups are never freed."""
    copies = dist.get_world_size(world) // size
    return init_device_mesh(device_type, (copies, 1, 1, 1, size), mesh_dim_names=("copy", *AXES))


@contextmanager
def _prepared(device: torch.device, mesh: Any) -> Iterator[None]:
    """While entered, transformers loads onto this device and mesh; by itself it always spreads over all ranks."""

    def prepare(_: type, config: Any, device_map: Any = None) -> tuple[Any, torch.device, Any]:
        return config, device, mesh

    PreTrainedModel.prepare_distribute_model = classmethod(prepare)  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        del PreTrainedModel.prepare_distribute_model  # the inherited one remains


def own_rows(weight: torch.Tensor) -> torch.Tensor:
    """The rows of a weight that this rank holds: all of them unless the weight is spread."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def first_own_row(weight: torch.Tensor) -> int:
    """The number of the first row that this rank holds."""
    if not isinstance(weight, DTensor):
        return 0
    mesh = weight.device_mesh
    return min(len(weight), -(-len(weight) // mesh.size()) * mesh.get_local_rank())  # as torch.chunk divides


def gather_parts(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The values of all ranks that hold a weight together [ranks, …]; [1, …] unless the weight is spread."""
    if not isinstance(weight, DTensor):
        return values[None]
    return DTensor.from_local(values[None], weight.device_mesh, [Shard(0)], run_check=False).full_tensor()


def gather_columns(product: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Products [n, V] with all rows of a weight from those [n, v] with `own_rows(weight)`. All ranks of a group."""
    if not isinstance(weight, DTensor):
        return product
    size = (len(product), len(weight))
    spread = DTensor.from_local(
        product, weight.device_mesh, [Shard(1)], run_check=False, shape=torch.Size(size), stride=(size[1], 1)
    )
    return spread.full_tensor()


def as_config(values: dict) -> PreTrainedConfig:
    """The config of a model from its config.json, with the defaults of its architecture.

    Raises:
        UserError: transformers does not accept the values.
    """
    others = {name: value for name, value in values.items() if name not in ("model_type", "torch_dtype", "dtype")}
    try:
        return AutoConfig.for_model(values["model_type"], **others)
    except Exception as error:  # what an inconsistent config raises depends on the field
        reason = one_line(error)
        raise UserError(f"config.json: transformers cannot read it ({reason}); copy the model again") from None

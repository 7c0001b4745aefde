"""Communication options of a DeepSpeed configuration: overlap, hpZ and the quantised messages of ZeRO++.

hpZ keeps a second copy of the parameters, sharded within each node, so that all gathers of a step but the first stay in
the node. Quantised weights and gradients send 8 and 4 bits instead of 16 (arXiv 2306.10209).

Nothing here imports torch.
"""

from typing import Any

from dcr_ds.errors import UserError

PARTITION = "zero_hpz_partition_size"
QUANTISED = ("zero_quantized_weights", "zero_quantized_gradients")


def check_communication(zero: dict[str, Any], quantize: str, place: str) -> None:
    """Check the options as far as they do not depend on the machine.

    Args:
        zero: the section zero_optimization, whose stage is valid.
        quantize: `model.quantize` of the recipe.

    Raises:
        UserError: an option is not supported, or does not apply to the ZeRO stage.
    """
    stage = zero.get("stage", 0)
    overlap, size = zero.get("overlap_comm"), zero.get(PARTITION, 1)
    if overlap not in (None, "auto") and not isinstance(overlap, bool):
        raise UserError(f'{place}: overlap_comm is {overlap!r}; use true, false or "auto"')
    if overlap is True and stage < 2:
        raise UserError(f"{place}: overlap_comm is supported with ZeRO stages 2 and 3, not {stage}; set it to false")
    if size != "auto" and (type(size) is not int or size < 1):
        raise UserError(f'{place}: {PARTITION} is {size!r}; use the number of ranks of a node, or "auto"')
    for name in QUANTISED:
        if not isinstance(zero.get(name, False), bool):
            raise UserError(f"{place}: {name} is {zero[name]!r}; use true or false")
    if zero.get("zero_quantized_nontrainable_weights"):
        raise UserError(
            f"{place}: zero_quantized_nontrainable_weights is not supported, since it changes the frozen weights; "
            "remove it, or train with model.quantize: nf4"
        )
    used = [name for name in QUANTISED if zero.get(name)] + ([PARTITION] if size != 1 else [])
    if used and stage != 3:
        raise UserError(f"{place}: {used[0]} applies to ZeRO stage 3 only, not {stage}; remove it, or use stage 3")
    if used and quantize != "none":
        raise UserError(f"{place}: {used[0]} is not supported with model.quantize: {quantize}; remove it")
    if used and zero.get("offload_param"):
        raise UserError(f"{place}: {used[0]} is not supported with offload_param; remove one of them")


def resolve_partition(zero: dict[str, Any], ranks: int, nodes: int, on_gpu: bool) -> tuple[dict[str, Any], list[str]]:
    """Fill in the size of the secondary partition, and check the options against the machine.

    Returns:
        The section zero_optimization, and notes: what was decided, and what has no use here.

    Raises:
        UserError: the partition does not fit the nodes, or the GPU kernels for quantised messages are missing.
    """
    per_node, size, notes = ranks // nodes, zero.get(PARTITION, 1), []
    quantised = next((name for name in QUANTISED if zero.get(name)), None)
    if quantised and not on_gpu:
        raise UserError(f"deepspeed: {quantised} needs CUDA kernels, and there is no GPU; remove it")
    if size == "auto":
        size = per_node if nodes > 1 else 1
        zero = zero | {PARTITION: size}
        where = (
            f"the ranks of a node, of {nodes}" if nodes > 1 else "one node: a second partition would save no traffic"
        )
        notes.append(f"{PARTITION}: {size} ({where})")
    elif size > 1:
        if ranks % size:
            raise UserError(
                f"deepspeed: {PARTITION}: {size} does not divide the {ranks} ranks; use the {per_node} ranks of a "
                'node, or "auto"'
            )
        if per_node % size:
            raise UserError(
                f"deepspeed: {PARTITION}: {size} does not divide the {per_node} ranks of a node, so that partitions "
                f'would cross nodes; use {per_node}, or "auto"'
            )
        if nodes == 1:
            notes.append(
                f"WARNING: {PARTITION}: {size} on one node takes memory for a second copy of the parameters and saves "
                "no traffic between nodes; remove it"
            )
    if quantised and nodes == 1:
        notes.append(f"WARNING: {quantised} on one node: its links are fast, and the rounding remains; remove it")
    return zero, notes


def resolve_overlap(zero: dict[str, Any], world_size: int, on_gpu: bool) -> bool:
    """`overlap_comm` for DeepSpeed; "auto", or absent, is on where the first step of a stage can check it."""
    overlap = zero.get("overlap_comm", "auto")
    return is_checked(zero, world_size, on_gpu) if overlap in ("auto", None) else bool(overlap)


def is_checked(zero: dict[str, Any], world_size: int, on_gpu: bool) -> bool:
    """Whether overlap is decided by comparing the first step with and without it (`engine.overlap`).

    Only under ZeRO-3, on several GPUs, without offloading: elsewhere there is nothing to overlap, or no way to compare.
    """
    offloads = zero.get("offload_optimizer") or zero.get("offload_param")
    asked = zero.get("overlap_comm", "auto") in ("auto", None)
    return bool(asked and zero.get("stage") == 3 and world_size > 1 and on_gpu and not offloads)

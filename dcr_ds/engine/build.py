"""Build the model and DeepSpeed engine of a training stage."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pydantic
import torch
from transformers import PreTrainedModel

from dcr_ds.engine.config import OFFLOADS, resolve_config
from dcr_ds.engine.deepspeed_import import deepspeed
from dcr_ds.engine.distributed import Ranks
from dcr_ds.engine.memory import reset_peak_memory
from dcr_ds.engine.optimizers import build_optimizer, build_schedule, parameter_groups
from dcr_ds.errors import UserError
from dcr_ds.models.adapters import add_lora
from dcr_ds.models.experts import freeze_routers
from dcr_ds.models.fused import fuse_blocks
from dcr_ds.models.load import DTYPES
from dcr_ds.models.varlen import stage_attention
from dcr_ds.progress import heartbeat_while_moving
from dcr_ds.recipe import Recipe, StageSection
from dcr_ds.recipe.layout import Stage


def stage_config(config: str | dict[str, Any], stage: StageSection, dtype: str, ranks: Ranks) -> dict[str, Any]:
    """Return the DeepSpeed configuration of one stage, for `sharded_loading` and `build_engine`.

    Args:
        config: `deepspeed` of the resolved recipe; a mapping, since `resolve` reads the file.
    """
    if isinstance(config, str):
        raise TypeError(f"deepspeed is still the file {config}: the recipe is not resolved")
    return resolve_config(config, stage, ranks.world_size, dtype, on_gpu=ranks.device.type == "cuda")


def check_config(recipe: Recipe, ranks: Ranks) -> None:
    """Raise UserError unless DeepSpeed accepts the configurations of the training stages; loads nothing. All ranks."""
    for name in recipe.training_stages:
        config = stage_config(recipe.deepspeed, getattr(recipe, name), recipe.model.dtype, ranks)
        try:
            deepspeed.DeepSpeedConfig(config)
        except pydantic.ValidationError as error:
            places = (f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" for wrong in error.errors())
            raise UserError(f"deepspeed: DeepSpeed rejects {error.title}: {'; '.join(places)}") from None
        except Exception as error:  # assertions, ValueError, its own: DeepSpeed has no common one
            raise UserError(f"deepspeed: DeepSpeed rejects the configuration: {error}") from None
        devices = [(config["zero_optimization"].get(part) or {}).get("device") for part in OFFLOADS]
        if "nvme" in devices and not deepspeed.ops.op_builder.AsyncIOBuilder().is_compatible(verbose=False):
            raise UserError(
                "deepspeed: offloading to nvme needs DeepSpeed's extension async_io, which cannot be compiled here; "
                "install libaio and a compiler (ds_report prints what is missing), or use cpu"
            )


def build_stage(
    name: Stage,
    recipe: Recipe,
    load: Callable[..., Any],
    total_steps: int,
    ranks: Ranks,
    wrap: Callable[[Any], torch.nn.Module] | None = None,
) -> deepspeed.DeepSpeedEngine:
    """Load the model of a training stage and build its engine: kernels, adapter, recomputation, optimizer. All ranks.

    Args:
        recipe: resolved, without any `auto`.
        load: loads the model, given `dtype`, `attention`, `quantize` and `device`.
        wrap: makes of the finished model what the engine calls; None: the model itself.
    """
    reset_peak_memory(ranks.device)
    stage, quantize = getattr(recipe, name), recipe.model.quantize
    config = stage_config(recipe.deepspeed, stage, recipe.model.dtype, ranks)
    with sharded_loading(config, quantize):
        model = load(
            dtype=DTYPES[recipe.model.dtype],
            attention=stage_attention(recipe.model, stage.packing, ranks.device),
            quantize=quantize,
            device=None if quantize == "none" else ranks.device,  # DeepSpeed moves a model that is not quantised
        )
    if recipe.model.freeze_router:
        freeze_routers(model)
    fuse_blocks(model, recipe.model.kernels)
    if stage.adapter == "lora":
        torch.manual_seed(recipe.seed)  # the same initial adapter on all ranks
        model = add_lora(model, stage.lora, f"{name}.lora")
    model.train()
    if recipe.model.activation_checkpointing:
        checkpoint_activations(model)
    return build_engine(wrap(model) if wrap else model, stage, config, stage.schedule, total_steps, ranks)


@contextmanager
def sharded_loading(config: dict[str, Any], quantize: str = "none") -> Iterator[None]:
    """Under ZeRO-3, let transformers partition parameters while it loads them.

    Not for a quantised model: transformers does not partition its parameters; DeepSpeed does so later.
    """
    from transformers.integrations import HfDeepSpeedConfig

    # transformers keeps only a weak reference, so this object must stay alive
    partitions = config["zero_optimization"]["stage"] == 3 and quantize == "none"
    keep_alive = HfDeepSpeedConfig(config) if partitions else None
    # of the stage before; DeepSpeed refuses to create the groups of hpZ while it has others
    deepspeed.utils.groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
    try:
        yield
    finally:
        del keep_alive


def build_engine(
    model: torch.nn.Module, stage: StageSection, config: dict[str, Any], schedule: str, total_steps: int, ranks: Ranks
) -> deepspeed.DeepSpeedEngine:
    """Build an engine around a model, with the stage's optimizer over its trainable parameters. All ranks.

    An optimizer step is any number of `engine.backward(loss, scale_wrt_gas=False)`, then one `engine.step()`.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(parameter_groups(model, stage.weight_decay), stage)
    scheduler = build_schedule(schedule, optimizer, stage.warmup_steps, total_steps)
    is_whole, in_bf16 = config["zero_optimization"]["stage"] == 0, config["bf16"]["enabled"]
    if is_whole and not in_bf16:
        config = config | {"gradient_clipping": 0.0}
        optimizer.register_step_pre_hook(partial(_clip, parameters, stage.max_grad_norm))
    with heartbeat_while_moving("building the DeepSpeed engine"):
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config)
    if is_whole and in_bf16:
        _undo_first_step(engine.optimizer)
    return engine


def _undo_first_step(wrapper: Any) -> None:
    """Undo the step that DeepSpeed 0.19 takes, on gradients of 0, as it builds its optimizer for bf16 under ZeRO-0.

    AdamW would count it, so that its first updates were up to a quarter too small, and the masters have decayed.

    Args:
        wrapper: DeepSpeed's optimizer around that of the stage.
    """
    for state in wrapper.optimizer.state.values():
        state["step"] = state["step"] * 0  # a tensor, or a number
    for weights, masters in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
        for weight, master in zip(weights, masters, strict=True):
            master.data.copy_(weight.data)


def _clip(parameters: list[torch.nn.Parameter], limit: float, optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Clip gradients and keep their norm, which DeepSpeed does not do under ZeRO-0 in fp32.

    Without a finite norm the gradients are removed, so that the optimizer skips the step as DeepSpeed does elsewhere.
    """
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    optimizer.gradient_norm = norm  # type: ignore[attr-defined]  # where `gradient_norm` below reads it
    if not torch.isfinite(norm):
        for parameter in parameters:
            parameter.grad = None


def gradient_norm(engine: deepspeed.DeepSpeedEngine) -> float:
    """The norm of the last step's gradient over all ranks, before clipping; not finite: the step was skipped."""
    norm = engine.get_global_grad_norm()
    return float(engine.optimizer.gradient_norm if norm is None else norm)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass; works with frozen parameters under ZeRO-3 from DeepSpeed 0.19.4."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

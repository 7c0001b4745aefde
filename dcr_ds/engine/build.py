"""Build a DeepSpeed engine for one stage, and take its trained weights out again."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import deepspeed
import pydantic
import torch
from transformers import PreTrainedModel, get_scheduler

from dcr_ds.engine.config import resolve_config
from dcr_ds.engine.distributed import Ranks
from dcr_ds.engine.optimizers import build_optimizer
from dcr_ds.errors import UserError
from dcr_ds.recipe import StageSection

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def stage_config(config: str | dict[str, Any], stage: StageSection, dtype: str, ranks: Ranks) -> dict[str, Any]:
    """Return the DeepSpeed configuration of one stage, for `sharded_loading` and `build_engine`.

    Args:
        config: `deepspeed` of the resolved recipe; a mapping, since `resolve` reads the file.
    """
    if isinstance(config, str):
        raise TypeError(f"deepspeed is still the file {config}: the recipe is not resolved")
    return resolve_config(config, stage, ranks.world_size, dtype, on_gpu=ranks.device.type == "cuda")


@contextmanager
def sharded_loading(config: dict[str, Any], quantize: str = "none") -> Iterator[None]:
    """While open, transformers partitions parameters as it loads them, where the configuration is ZeRO-3.

    Not those of a quantised model: transformers does not partition them, and DeepSpeed does it later.
    """
    from transformers.integrations import HfDeepSpeedConfig

    # transformers keeps a weak reference: it looks for ZeRO-3 only as long as this object lives
    partitions = config["zero_optimization"]["stage"] == 3 and quantize == "none"
    keep_alive = HfDeepSpeedConfig(config) if partitions else None
    try:
        yield
    finally:
        del keep_alive


def build_engine(
    model: torch.nn.Module, stage: StageSection, config: dict[str, Any], schedule: str, total_steps: int, ranks: Ranks
) -> deepspeed.DeepSpeedEngine:
    """Wrap a model with the stage's optimizer over its trainable parameters. All ranks.

    One optimizer step is as many `engine.backward(loss, scale_wrt_gas=False)` as the window has, then one
    `engine.step()`.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    offloaded = "offload_optimizer" in config["zero_optimization"]
    optimizer = build_optimizer(parameters, stage, fused=ranks.device.type == "cuda" and not offloaded)
    scheduler = get_scheduler(
        SCHEDULES[schedule], optimizer, num_warmup_steps=stage.warmup_steps, num_training_steps=total_steps
    )
    if config["zero_optimization"]["stage"] == 0 and not config["bf16"]["enabled"]:
        config = config | {"gradient_clipping": 0.0}
        optimizer.register_step_pre_hook(partial(_clip, parameters, stage.max_grad_norm))
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config)
    except pydantic.ValidationError as error:
        raise UserError(f"deepspeed: the configuration is refused by DeepSpeed: {error}") from None
    return engine


def _clip(parameters: list[torch.nn.Parameter], most: float, optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Clip and keep the norm: under ZeRO-0 in fp32 DeepSpeed clips without telling it."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, most)
    optimizer.gradient_norm = norm  # type: ignore[attr-defined]  # where `gradient_norm` below reads it


def gradient_norm(engine: deepspeed.DeepSpeedEngine) -> float:
    """The norm over all ranks of the gradient of the last step, before clipping."""
    norm = engine.get_global_grad_norm()
    return float(engine.optimizer.gradient_norm if norm is None else norm)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass; works with frozen parameters under ZeRO-3 from DeepSpeed 0.19.4."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def trained_weights(engine: deepspeed.DeepSpeedEngine, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Trainable parameters by name, whole, on the CPU of rank 0; empty elsewhere. All ranks, a parameter at a time."""
    weights = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        partitioned = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter], enabled=partitioned):
            if ranks.is_main:
                weights[name] = parameter.detach().to("cpu", copy=True)
    return weights

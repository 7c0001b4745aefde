"""A DeepSpeed configuration that contradicts the recipe, or cannot be read, is refused."""

import json

import pytest

BF16 = {"bf16": {"enabled": True}}
CONFIGS = {
    "a batch": ({"train_batch_size": 8}, [], ["train_batch_size is set", "global_batch", '"auto"']),
    "a micro-batch": ({"train_micro_batch_size_per_gpu": 8}, [], ["train_micro_batch_size_per_gpu", "micro_batch"]),
    "accumulation": ({"gradient_accumulation_steps": 2}, [], ["gradient_accumulation_steps", "global_batch"]),
    "clipping": ({"gradient_clipping": 1.0}, [], ["gradient_clipping", "max_grad_norm"]),
    "an optimizer": ({"optimizer": {"type": "Adam"}}, [], ["optimizer is set", "learning_rate", "remove it"]),
    "a scheduler": ({"scheduler": {"type": "WarmupLR"}}, [], ["scheduler is set", "warmup_steps"]),
    "fp16": ({"fp16": {"enabled": True}}, [], ["fp16 is not supported", "model.dtype"]),
    "bf16, recipe float32": (BF16, ["--model.dtype", "float32"], ["bf16.enabled is True", "model.dtype is float32"]),
    "bf16, recipe auto": (BF16, ["--model.dtype", "auto"], ["bf16.enabled is True", "model.dtype is auto"]),
    "no bf16, recipe bfloat16": (
        {"bf16": {"enabled": False}},
        ["--model.dtype", "bfloat16"],
        ["bf16.enabled is False", '"auto"'],
    ),
    "no check of gradients": (
        {"bf16": {"check_grad_overflow": False}},
        [],
        ["check_grad_overflow is false", "not finite", "remove it"],
    ),
    "gradients in fp16": ({"communication_data_type": "fp16"}, [], ["communication_data_type is fp16", "bf16 or fp32"]),
    "masters in bf16": (
        {"bf16": {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}},
        [],
        ["bf16_master_weights_and_grads is true", "rounded away", "remove it"],
    ),
    "no gradient norm": (
        {"zero_optimization": {"stage": 2, "compute_grad_norm": False}},
        [],
        ["compute_grad_norm is false", "clipped"],
    ),
    "a resume from rounded weights": (
        {"zero_optimization": {"stage": 2, "load_from_fp32_weights": False}},
        [],
        ["load_from_fp32_weights is false", "rounded weights"],
    ),
    "another order of weights": (
        {"zero_optimization": {"stage": 2, "round_robin_gradients": True}},
        [],
        ["round_robin_gradients is true", "exchange weights"],
    ),
    "offloading by its old name": (
        {"zero_optimization": {"stage": 2, "cpu_offload": True}},
        [],
        ["cpu_offload is true", "use offload_optimizer"],
    ),
    "stage 7": ({"zero_optimization": {"stage": 7}}, [], ["zero_optimization.stage is 7", "0, 1, 2 or 3"]),
    "stage as text": ({"zero_optimization": {"stage": "2"}}, [], ["stage is '2'", "0, 1, 2 or 3"]),
    "stage true": ({"zero_optimization": {"stage": True}}, [], ["stage is True", "0, 1, 2 or 3"]),
    "a number for a section": ({"zero_optimization": 2}, [], ["zero_optimization", "must be an object", "2"]),
    "true for a section": ({"bf16": True}, [], ["bf16", "must be an object", "True"]),
    "overlap with stage 1": (
        {"zero_optimization": {"stage": 1, "overlap_comm": True}},
        [],
        ["overlap_comm", "stages 2 and 3, not 1", "false"],
    ),
    "overlap as text": (
        {"zero_optimization": {"stage": 3, "overlap_comm": "yes"}},
        [],
        ["overlap_comm is 'yes'", '"auto"'],
    ),
    "overlap as a number": ({"zero_optimization": {"stage": 1, "overlap_comm": 1}}, [], ["overlap_comm is 1", "true"]),
    "quantised as text": (
        {"zero_optimization": {"stage": 3, "zero_quantized_weights": "false"}},
        [],
        ["zero_quantized_weights is 'false'", "true or false"],
    ),
    "hpZ with stage 2": (
        {"zero_optimization": {"stage": 2, "zero_hpz_partition_size": "auto"}},
        [],
        ["zero_hpz_partition_size applies to ZeRO stage 3 only, not 2"],
    ),
    "hpZ as text": (
        {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": "8"}},
        [],
        ["zero_hpz_partition_size is '8'", "ranks of a node"],
    ),
    "hpZ with offload": (
        {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8, "offload_param": {"device": "cpu"}}},
        [],
        ["zero_hpz_partition_size is not supported with offload_param"],
    ),
    "quantised weights with stage 1": (
        {"zero_optimization": {"stage": 1, "zero_quantized_weights": True}},
        [],
        ["zero_quantized_weights applies to ZeRO stage 3 only, not 1"],
    ),
    "quantised frozen weights": (
        {"zero_optimization": {"stage": 3, "zero_quantized_nontrainable_weights": True}},
        [],
        ["zero_quantized_nontrainable_weights is not supported", "nf4"],
    ),
    "offload with stage 1": (
        {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}},
        [],
        ["offload_optimizer", "not 1"],
    ),
    "compiled blocks with stage 3": (
        {"zero_optimization": {"stage": 3}},
        ["--model.kernels", "compile"],
        ["model.kernels: compile does not work with ZeRO-3"],
    ),
    "a stage outside of its section": ({"stage": 3}, [], ["'stage' is unknown", "zero_optimization"]),
    "sums of gradients, which depend on the ranks": ({"gradient_allreduce_op": "sum"}, [], ["gradient_allreduce_op"]),
    "another trainer's recomputation": (
        {"activation_checkpointing": {"cpu_checkpointing": True}},
        [],
        ["activation_checkpointing is set", "model.activation_checkpointing"],
    ),
    "offload to nowhere": (
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
        [],
        ["offload_param.device is nvme without nvme_path"],
    ),
    "offload to a disk": (
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "disk"}}},
        [],
        ["offload_optimizer.device is 'disk'", "cpu or nvme"],
    ),
    "a part of the optimizer offloaded": (
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
        [],
        ["offload_optimizer.ratio", "remove it"],
    ),
    "offloaded parameters with stage 2": (
        {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
        [],
        ["offload_param needs ZeRO stage 3, not 2"],
    ),
    "DeepSpeed's optimizer": ({"zero_force_ds_cpu_optimizer": True}, [], ["zero_force_ds_cpu_optimizer", "AdamW"]),
    "an array": ([1], [], ["a JSON object", "list"]),
}
TEXTS = {
    "not JSON": (b'{\n"a": 1,\n}', ["line 3", "not valid JSON"]),
    "not UTF-8": (b'{"a": "\xe9"}', ["not UTF-8"]),
    "empty": (b"", ["line 1", "not valid JSON"]),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_that_contradicts_the_recipe(refused, tmp_path, case):
    config, options, expected = CONFIGS[case]
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(config))
    message = refused("--deepspeed", path, *options)
    assert message.startswith(str(path)), message
    assert all(word in message for word in expected), message


@pytest.mark.parametrize("case", TEXTS)
def test_config_that_cannot_be_read(refused, tmp_path, case):
    content, expected = TEXTS[case]
    path = tmp_path / "ds.json"
    path.write_bytes(content)
    message = refused("--deepspeed", path)
    assert message.startswith(str(path)), message
    assert all(word in message for word in expected), message


def test_missing_config(refused):
    message = refused("--deepspeed", "ds_configs/zero7.json")
    assert "ds_configs/zero7.json" in message and "ds_configs/zero0.json" in message


def test_config_in_the_recipe_itself(refused):
    message = refused("--deepspeed", "{train_batch_size: 8}")
    assert message.startswith("deepspeed: train_batch_size is set")


REJECTED = {
    "zero_optimization: {stage: 2, reduce_bucket_size: many}": "reduce_bucket_size: Input should be a valid integer",
    "communication_data_type: int8": "Invalid communication_data_type",
    "wall_clock_breakdown: maybe": "",
}


@pytest.mark.parametrize("section", REJECTED)
def test_field_that_deepspeed_rejects(failing, tmp_path, section):
    """DeepSpeed checks its own fields; its errors are messages, before anything is loaded, so also on a dry run."""
    message = failing("--dry-run", "--deepspeed", f"{{{section}}}", "--output", tmp_path)
    assert message.startswith("deepspeed: DeepSpeed rejects ") and REJECTED[section] in message


@pytest.mark.parametrize("content", ['{"bf16": {}, "bf16": {}}', '{"a": {"b": 1, "b": 2}}', "[" * 100_000])
def test_a_file_with_a_key_twice_or_without_end(tmp_path, content):
    from dcr_ds.engine.config import read_config
    from dcr_ds.errors import UserError
    from dcr_ds.recipe import load_recipe

    (tmp_path / "ds.json").write_text(content)
    with pytest.raises(UserError, match=r"ds\.json"):
        read_config(load_recipe(None, [("deepspeed", str(tmp_path / "ds.json"))]))

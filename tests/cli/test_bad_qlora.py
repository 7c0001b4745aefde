"""Settings that cannot be trained in 4 bits or with an adapter: the message names the field and what to do."""

import pytest

QUANTISED = ["--model.quantize", "nf4"]
LORA = ["--refine.adapter", "lora", "--align.adapter", "lora"]
CASES = {
    "full-parameter stage 1": (
        [*QUANTISED, "--align.adapter", "lora"],
        "refine.adapter: none trains the weights, but model.quantize: nf4 makes them 4-bit; use lora",
    ),
    "full-parameter stage 2": ([*QUANTISED, "--refine.adapter", "lora"], "align.adapter: none trains the weights"),
    "ZeRO-3": (
        [*QUANTISED, *LORA, "--deepspeed", "ds_configs/zero3.json"],
        "ds_configs/zero3.json: ZeRO-3 with model.quantize: nf4: every rank loads the whole 4-bit model",
    ),
    "DoRA under ZeRO-3": (
        [*LORA, "--align.lora.dora", "true", "--deepspeed", "ds_configs/zero3.json"],
        "ds_configs/zero3.json: align.lora.dora reads whole weights, which ZeRO-3 has partitioned; use",
    ),
    "dropout in stage 1": ([*LORA, "--refine.lora.dropout", "0.1"], "refine.lora.dropout: must be 0"),
    "8-bit state on the CPU": (
        ["--deepspeed", "ds_configs/zero3_offload.json", "--align.optimizer", "adamw8bit"],
        "offload_optimizer runs the optimizer on the CPU, and align.optimizer: adamw8bit is made for a GPU",
    ),
    "an unknown optimizer": (["--align.optimizer", "adamw4bit"], "align.optimizer: input should be 'adamw', "),
}


@pytest.mark.parametrize("case", CASES)
def test_unsupported_combination(refused, case):
    options, expected = CASES[case]
    assert expected in refused(*options)


@pytest.mark.parametrize("stage", ["refine", "align"])
def test_targets_that_match_no_module(failing, tmp_path, stage):
    message = failing("--output", tmp_path, *LORA, f"--{stage}.lora.targets", "[no_such_proj]")
    assert message.startswith(f"{stage}.lora.targets: ") and "no_such_proj" in message


def test_the_adapter_of_a_stage_that_does_not_run_is_not_checked(failing, tmp_path):
    """Alignment alone, in 4 bits, passes the check of stage 1's adapter; this model is then too narrow for a CPU."""
    message = failing("--output", tmp_path, *QUANTISED, "--align.adapter", "lora", "--stages", "[align]")
    assert message.startswith("model.quantize: nf4 on a CPU needs layer widths that are a multiple of 64")

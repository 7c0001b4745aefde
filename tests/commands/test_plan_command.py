"""`dcr-ds plan` end to end: shipped shapes, what fits, what does not fit and what to do, bad input."""

import json
import re

import pytest
from tiny import make_model

from dcr_ds.cli import main
from dcr_ds.files import write_json


def flat(text: str) -> str:
    """The text without line breaks, as prose is wrapped."""
    return " ".join(text.split())


@pytest.fixture
def plan(capsys, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "")  # restored after the test
    monkeypatch.delenv("DS_ACCELERATOR")

    def run(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(["plan", *arguments]) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    return run


def test_a_plan_of_llama_3_8b(plan, tmp_path):
    half = ["--stages", "[refine]", "--refine.layer", "16"]
    out = plan("recipes/llama-3-8b.yaml", "--gpus", "8", *half, "--json", str(tmp_path / "plan.json"))
    assert max(map(len, out[out.index("llama-3-8b:") :].splitlines())) <= 100
    assert "4.015e9 parameters trained of 4.015e9 loaded" in flat(out)  # half of the blocks, and the embeddings
    assert "<- chosen" in out and "Without the cut" in flat(out) and "control:" not in out
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["refine"]["peak_bytes"] <= 0.9 * 80 * 2**30
    assert 0 < figures["refine"]["step_seconds"][0] <= figures["refine"]["step_seconds"][1]


def test_zero_3_is_not_recommended_for_a_frozen_base(plan):
    out = plan("recipes/llama-3-8b.yaml", "--gpus", "8", "--stages", "[align]")
    assert "because it gathers the frozen base" in flat(out)
    assert next(line for line in out.splitlines() if "<- chosen" in line).startswith("ZeRO-0")


def test_a_model_that_does_not_fit_gets_a_suggestion(plan):
    one_row = ["--refine.micro_batch", "1"]  # no other sizes are tried
    out = plan("recipes/qwen2.5-7b.yaml", "--gpu", "rtx4090", "--stages", "[refine]", *one_row)
    assert "Nothing fits" in out and "With refine.adapter: lora it fits" in flat(out)  # which recomputes already
    out = plan("recipes/qwen2.5-7b.yaml", "--gpu-memory", "12", "--stages", "[align]", "--align.micro_batch", "1")
    assert "With model.quantize: nf4, deepspeed: ds_configs/zero2.json it fits" in flat(out)  # the recipe has ZeRO-3


def test_qlora_keeps_a_7b_trunk_in_4_bits(plan, tmp_path):
    file = tmp_path / "plan.json"
    half = ["--refine.layer", "14"]
    plan("recipes/qwen2.5-7b-qlora.yaml", "--gpus", "1", "--gpu", "rtx4090", *half, "--json", str(file))
    parts = json.loads(file.read_text())["refine"]["parts"]
    assert parts["parameters"] < 3 * 2**30  # 14 of 28 blocks in 4 bits, embeddings in 16


def test_a_local_folder_needs_no_shape(plan, tmp_path):
    folder = make_model(tmp_path / "tiny", tied=False)
    out = plan("recipes/smollm2-135m.yaml", "--model.source", str(folder), "--refine.layer", "2")
    assert "its config.json" in flat(out)
    assert "control: the steps of align again" in out  # the recipe asks for one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "no"], "--gpus: 'no' is not a whole number above 0; see dcr-ds plan --help"),
        (["--gpus", "9" * 20], "--gpus, --nodes: more than 1,000,000 GPUs"),
        (["--nodes", "1,200000"], "--gpus, --nodes: more than 1,000,000 GPUs"),
        (["--gpu-memory", "1e30"], "--gpu-memory: 1e+30 is out of range; it is in GiB"),
        (["--gpus", "12"], "--gpus: 12 do not fill nodes of 8; set --gpus-per-node"),
        (["--gpus", "0"], "--gpus: '0' is not a whole number above 0"),
        (["--mfu", "1.5"], "--mfu: 1.5 is out of range; it is a fraction"),
        (["--gpu", "abacus"], "--gpu: invalid choice: 'abacus'"),
        (["--nodes", "2", "--gpus", "7"], "--gpus and --nodes: give one of them"),
        (["--nodes", ","], "--nodes: ',' has an empty word between its commas"),
        (["--nodes", "1,x"], "--nodes: 'x' is not a whole number above 0"),
        (["--model.source", "nobody/nothing"], "or a shipped shape"),
        (["--refine.layr", "3"], "unknown field"),
        (["--model.source", "/nowhere"], "is not a model folder"),
        (["--gpu-memory", "inf"], "--gpu-memory: inf is not a finite number"),
        (["--gpu-memory", "80GB"], "--gpu-memory: '80GB' is not a number; give the GiB as a number, such as 80"),
        (["--refine-tokens", "9999"], "--refine-tokens: 9999 is above refine.max_length = 512"),
        (["--json", "docs"], "--json: docs is a folder"),
        (["--json", "--gpus"], "--json: expected one argument"),
        (["--measure", "--mfu", "0.3"], "--measure finds --mfu"),
        (["--measure=no"], "--measure: ignored explicit argument 'no'"),
        (["--dry-run"], "--dry-run and --redo are options of train"),
        (
            [
                "--measure",  # refused before the steps are taken
                "--nodes",
                "1,2",
                "--model.quantize",
                "nf4",
                "--refine.adapter",
                "lora",
                "--align.adapter",
                "lora",
                "--deepspeed",
                "ds_configs/zero2.json",
            ],
            "does not support model.quantize: nf4",
        ),
    ],
)
def test_bad_input(plan, arguments, message):
    assert message in plan("recipes/llama-3-8b.yaml", *arguments, code=2)


def test_models_that_cannot_be_trained_have_no_plan(plan, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "is an adapter; merge it" in plan("recipes/llama-3-8b.yaml", "--model.source", str(tmp_path), code=2)
    quantised = {"model_type": "llama", "num_hidden_layers": 4, "quantization_config": {"quant_method": "gptq"}}
    write_json(tmp_path / "config.json", quantised)
    assert "quantised already (config.json says gptq)" in plan(
        "recipes/llama-3-8b.yaml", "--model.source", str(tmp_path), code=2
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3}, "config.json: transformers cannot build the model (Class validation error"),
        ({"hidden_size": "64"}, "config.json: transformers cannot build the model (Validation error for field"),
        ({"vocab_size": 0}, "vocab_size must be a number above 0, not 0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a number above 0, not 0"),
        ({"num_key_value_heads": 3}, "config.json: a model of it cannot compute ("),
        ({"num_hidden_layers": 1}, "refine.layer: 2 is out of range; "),
        ({"num_hidden_layers": None, "model_type": "gpt2"}, "has no num_hidden_layers, so gpt2 cannot be trained"),
        ({"model_type": "bert"}, "failed the check: its blocks were not found at model.layers"),
    ],
)
def test_a_config_that_training_would_refuse_has_no_plan(plan, tmp_path, changes, message):
    config = make_model(tmp_path / "tiny", tied=False) / "config.json"
    write_json(config, json.loads(config.read_text()) | changes)
    options = ["--model.source", str(tmp_path / "tiny"), "--refine.layer", "2"]
    assert message in plan("recipes/smollm2-135m.yaml", *options, code=2)


def test_gpus_without_a_sample_and_a_config_with_defaults(plan, tmp_path):
    """What config.json leaves out is the architecture's default: 4096 and 11008 of Llama."""
    config = make_model(tmp_path / "tiny", tied=False) / "config.json"
    values = {name: value for name, value in json.loads(config.read_text()).items() if name[:4] not in ("hidd", "inte")}
    write_json(config, values)
    options = ["--model.source", str(tmp_path / "tiny"), "--refine.layer", "2", "--gpus", "8", "--stages", "[align]"]
    out = flat(plan("recipes/smollm2-135m.yaml", *options, "--align.global_batch", "6"))
    assert "2 of the 8 GPUs get no sample in a step; raise align.global_batch = 6" in out
    assert "get no sample" not in plan("recipes/smollm2-135m.yaml", *options, "--align.global_batch", "8")


@pytest.mark.slow
def test_plan_with_measure_uses_measured_rates_and_memory(plan, tmp_path):
    """Both stages run; the plan is for the device that they ran on."""
    folder, file = make_model(tmp_path / "tiny", tied=False), tmp_path / "plan.json"
    options = {"model.source": folder, "refine.layer": 2, "refine.global_batch": 4, "refine.retain_batch": 1}
    options |= {"align.global_batch": 2, "align.max_length": 512, "json": file}
    out = flat(plan("--measure", *(word for name, value in options.items() for word in (f"--{name}", str(value)))))
    assert "Measured, refine: " in out and "Measured, align: " in out and "the measured rates" in out
    factors = [float(factor) for factor in re.findall(r"planned ([0-9.]+) times as large", out)]
    assert len(factors) == 2 and all(0.9 < factor < 1.1 for factor in factors)
    assert "float32, 1 × process of" in out
    step = json.loads(file.read_text())["align"]["step_seconds"][1]
    plan("--model.source", str(folder), "--stages", "[align]", "--align.global_batch", "2", "--json", str(file))
    assert step > 10 * json.loads(file.read_text())["align"]["step_seconds"][1]  # as an H100 would take, at 40 %


def test_odd_micro_batches_are_rounded_up_to_even(plan, tmp_path):
    folder = make_model(tmp_path / "tiny", tied=False)
    arguments = ("--model.source", str(folder), "--refine.layer", "2", "--stages", "[refine]")
    assert "stage 1, cut trunk" in plan(*arguments, "--nodes", "1,3", "--gpus-per-node", "1", "--rows-per-gpu", "5")


def test_time_of_a_packed_row_is_that_of_its_samples(plan, tmp_path):
    """A packed row of two samples costs as many operations as both samples."""
    folder, file = make_model(tmp_path / "tiny", tied=False), tmp_path / "plan.json"
    seconds = []
    for packing in ("false", "true"):
        plan("--model.source", str(folder), "--stages", "[align]", "--align.packing", packing, "--align.packed_length",
             "1024", "--align.max_length", "512", "--json", str(file))  # fmt: skip
        seconds.append(json.loads(file.read_text())["align"]["step_seconds"][0])
    assert seconds[0] == pytest.approx(seconds[1], rel=0.01)


def test_steps_that_cannot_run_are_an_error(plan, tmp_path):
    folder = make_model(tmp_path / "tiny", tied=False)
    message = plan("--measure", "--model.source", str(folder), "--refine.layer", "9", code=2)
    assert message.startswith("error: dcr-ds plan: --measure: ") and "refine.layer: 9 is out of range" in message


def test_a_recipe_without_training_is_refused(plan):
    assert "nothing to plan" in plan("--stages", "[evaluate]", code=2)

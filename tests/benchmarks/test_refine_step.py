"""The stage-1 benchmark runs and writes well-formed rows; its speed is not tested."""

import pytest
from scripts import FOLDER, rows_of


@pytest.mark.slow
@pytest.mark.parametrize("zero", ["0", "2"])
def test_losses_agree_and_ratios_are_written(tmp_path, zero):
    pytest.importorskip("pytorch_metric_learning")
    options = ["--tiny", "--layers", "2", "--zero", zero, "--steps", "2"]
    (row,) = rows_of(tmp_path / "rows.csv", "benchmarks/refine_step.py", *options)
    assert (row["shape"], row["layer"], row["zero"], row["clock"]) == ("tiny", "2", zero, "cpu")
    assert row["commit"] and row["device"] and row["torch"] and row["deepspeed"]
    for name in ("ours", "theirs"):
        assert 0 < float(row[f"{name}_cpu_q25"]) <= float(row[f"{name}_cpu_median"]) <= float(row[f"{name}_cpu_q75"])
    ratio = float(row["ours_cpu_median"]) / float(row["theirs_cpu_median"])
    assert float(row["time_ratio"]) == pytest.approx(ratio, rel=1e-4)
    assert 0 < int(row["ours_peak_bytes"]) < int(row["theirs_peak_bytes"])
    assert float(row["memory_ratio"]) == pytest.approx(int(row["ours_peak_bytes"]) / int(row["theirs_peak_bytes"]))
    assert float(row["loss_difference"]) <= 1e-4 and float(row["gradient_difference"]) <= 1e-3


def test_flop_ratios_are_those_of_the_target(monkeypatch):
    pytest.importorskip("pytorch_metric_learning")
    monkeypatch.syspath_prepend(str(FOLDER))
    from refine_step import flop_of_step
    from shapes import config_of

    steps = [flop_of_step(config_of("smollm2-135m"), layer, [64] * 64) for layer in (8, 15, 23)]
    assert [step["ours"] / step["theirs"] for step in steps] == pytest.approx([0.446, 0.663, 0.823], abs=0.002)

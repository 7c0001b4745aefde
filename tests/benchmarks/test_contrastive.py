"""The benchmarks of the kernels run and write well-formed rows; their speed is not tested."""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scripts import FOLDER, rows_of

PROVIDERS = ("pml", "eager", "chunked", "gemm3")
MODES = {"fwd": 2, "bwd": 4, "full": 6}


@pytest.fixture
def load_script(monkeypatch):
    """Imports a file of benchmarks/."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def setting(contrastive: ModuleType, **values):
    problem = {"n": 24, "d": 16, "loss": "circle", "dtype": "fp32", "classes": 3, "data": "isotropic", "scale": 8.0}
    return contrastive.Setting(**(problem | {"threads": 1, "device": "cpu"} | values))


def test_each_provider_has_a_row_per_mode(tmp_path):
    pytest.importorskip("pytorch_metric_learning")
    rows = rows_of(tmp_path / "rows.csv", "benchmarks/contrastive.py", "--tiny")
    assert [(row["provider"], row["mode"]) for row in rows] == [(name, mode) for name in PROVIDERS for mode in MODES]
    for row in rows:
        assert (row["outcome"], row["clock"], row["n"], row["d"], row["threads"]) == ("ok", "cpu", "64", "32", "1")
        assert row["commit"] and row["device"] and row["torch"] and row["pytorch-metric-learning"]
        low, median, high = (float(row[f"q{which}_ms"]) for which in (20, 50, 80))
        assert low <= median <= high and float(row["peak_mb"]) >= 0
        flop = MODES[row["mode"]] * 64 * 64 * 32
        assert float(row["tflops"]) == pytest.approx(flop / median / 1e9, rel=1e-2)
        if row["provider"] != "gemm3":
            assert float(row["loss_error"]) <= 1e-6 and float(row["gradient_error"]) <= 1e-4
    assert len({row["loss_value"] for row in rows} - {""}) == 1


def test_pooling_has_a_row_per_provider(tmp_path):
    rows = rows_of(tmp_path / "rows.csv", "benchmarks/pooling.py", "--tiny", "--dtype", "bf16")
    assert [row["provider"] for row in rows] == ["eager", "reference"]
    for row in rows:
        assert row["outcome"] == "ok" and float(row["gradient_error"]) < 1e-2
        assert float(row["gbs"]) == pytest.approx(2 * 3 * 8 * 16 * 2 / float(row["q50_ms"]) / 1e6, rel=1e-2)


@pytest.mark.parametrize(
    "script, options, word",
    [
        ("contrastive", ["--providers", "pml,numpy"], "numpy"),
        ("contrastive", ["--n", "1024,many"], "many"),
        ("contrastive", ["--n", "0"], "above 0"),
        ("contrastive", ["--mode", "sideways"], "sideways"),
        ("contrastive", ["--n", "64", "--classes", "33"], "--classes 33"),
        ("contrastive", ["--repeats", "0"], "at least 1"),
        ("contrastive", ["--device", "cuda"], "no GPU"),
        ("pooling", ["--shape", "4,8"], "B,T,D"),
        ("pooling", ["--device", "cuda"], "no GPU"),
        ("plot", ["nowhere.csv", "--out", "x.png"], "no such file"),
        ("plot", [__file__, "--out", "x.png"], "not the rows"),
        ("plot", [__file__, "--out", "x.doc"], ".png"),
    ],
)
def test_bad_options_are_errors(load_script, monkeypatch, capsys, script, options, word):
    if script == "plot":
        pytest.importorskip("matplotlib")
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", [script, *options])
    with pytest.raises(SystemExit) as refused:
        load_script(script).main()
    assert refused.value.code == 2
    assert word in capsys.readouterr().err.splitlines()[-1]


def test_nothing_is_timed_when_the_kernel_tests_fail(load_script, monkeypatch, capsys):
    contrastive = load_script("contrastive")
    calls = []
    failing = subprocess.CompletedProcess([], returncode=1)
    monkeypatch.setattr(contrastive.subprocess, "run", lambda command, **_: calls.append(command) or failing)
    monkeypatch.setattr(contrastive, "in_new_process", None)
    monkeypatch.setattr(sys, "argv", ["contrastive", "--tiny", "--gate"])
    with pytest.raises(SystemExit) as refused:
        contrastive.main()
    assert refused.value.code not in (0, None) and "tests/kernels" in calls[0]


def measured(contrastive: ModuleType, *names: str, max_bytes: float = 1e12, **values) -> dict[str, dict]:
    options = argparse.Namespace(providers=names, mode=["full"], repeats=1, seconds=0, max_bytes=max_bytes)
    return contrastive.measure(setting(contrastive, **values), options)[1]


def test_quadratic_providers_that_do_not_fit_are_skipped(load_script):
    results = measured(load_script("contrastive"), "pml", "eager", "compile", "chunked", max_bytes=100)
    assert all("skipped: needs about" in results[name]["outcome"] for name in ("pml", "eager", "compile"))
    assert results["chunked"]["outcome"] == "ok"


def test_a_failing_provider_has_a_row_and_the_others_continue(load_script, monkeypatch):
    contrastive = load_script("contrastive")
    build = contrastive.build

    def broken(name, problem):
        if name == "eager":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if name == "gemm3":
            raise ValueError("no such product\nat all")
        return build(name, problem)

    monkeypatch.setattr(contrastive, "build", broken)
    results = measured(contrastive, "eager", "gemm3", "chunked")
    assert [results[name]["outcome"] for name in results] == ["oom", "failed: ValueError: no such product", "ok"]
    row = contrastive.row_of(setting(contrastive), "eager", "full", results["eager"])
    assert row["q50_ms"] is None and row["rounds"] == 0


@pytest.mark.parametrize("factor", [3.0, float("nan")])
def test_only_our_backends_fail_on_a_wrong_gradient(load_script, monkeypatch, factor):
    contrastive = load_script("contrastive")
    build = contrastive.build

    def wrong(name, problem):
        loss = build(name, problem)
        return lambda h, labels: loss(h + (factor - 1) * (h - h.detach()), labels)  # the value is unchanged

    monkeypatch.setattr(contrastive, "build", wrong)
    results = measured(contrastive, "eager", "chunked")
    assert results["eager"]["outcome"] == "ok" and not results["eager"]["gradient_error"] < 1
    assert results["chunked"]["outcome"].startswith("failed: ArithmeticError")


@pytest.mark.parametrize("loss", ["circle", "supcon", "ntxent", "triplet"])
def test_all_providers_compute_the_same_loss(load_script, loss):
    pytest.importorskip("pytorch_metric_learning")
    results = measured(load_script("contrastive"), "pml", "pml_fp32", "eager", "chunked", loss=loss)
    for result in results.values():
        assert result["outcome"] == "ok"
        assert result["loss_error"] <= 1e-6 and result["gradient_error"] <= 1e-5


def test_compile_bf16_rounds_its_products(load_script):
    rounding = load_script("contrastive_providers").with_bf16_products
    a, b = torch.randn(5, 7), torch.randn(7, 3)
    assert torch.equal(rounding(torch.matmul)(a, b), (a.bfloat16() @ b.bfloat16()).float())
    assert torch.equal(rounding(lambda x, y: x @ y)(a, b), (a.bfloat16() @ b.bfloat16()).float())


def test_peak_memory_is_that_of_two_temporaries(load_script):
    measuring = load_script("measuring")
    peak = measuring.in_lean_process(_peak_of_two_temporaries, str(FOLDER))
    assert peak == pytest.approx(2 * 40e6, rel=0.05)


def _peak_of_two_temporaries(folder: str) -> int:
    sys.path.insert(0, folder)
    measuring = importlib.import_module("measuring")

    def work() -> None:
        first = torch.ones(10_000_000)
        second = first + 1
        del first, second
        torch.ones(5_000_000)

    work()
    return measuring.peak_bytes(work, "cpu")


def test_commit_comes_from_the_environment_without_git(load_script, monkeypatch, tmp_path):
    record = load_script("record")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("COMMIT", "1234567")
    assert record.commit() == "1234567"
    monkeypatch.delenv("COMMIT")
    assert record.commit() == "unknown"
    assert record.provenance("no-such-package")["no-such-package"] == ""


def write_rows(path: Path, contrastive: ModuleType, dtypes: tuple[str, ...] = ("fp32",)) -> None:
    record = importlib.import_module("record")
    head = {"date": "2026-01-01", "commit": "1234567"}
    for n in (1024, 4096, 16384):
        for name in ("pml", "chunked", "gemm3"):
            fits = name != "pml" or n < 16384
            result = {"outcome": "ok", "times": {"full": [n / 10]}, "peaks": {"full": n * 1e3}}
            result = result if fits else {"outcome": "oom"}
            for dtype in dtypes:
                row = contrastive.row_of(setting(contrastive, n=n, dtype=dtype), name, "full", result)
                record.append(path, head | row)


def test_plot_writes_a_picture(load_script, monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib").use("agg")
    plot, path, out = load_script("plot"), tmp_path / "rows.csv", tmp_path / "pictures" / "rows.png"
    write_rows(path, load_script("contrastive"), ("fp32", "bf16"))
    command = ["plot", str(path), "--out", str(out), "--tflops", "1", "--gbs", "10"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        plot.main()
    assert "several values of dtype: bf16, fp32; choose one with --dtype" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--dtype", "bf16"])
    plot.main()
    assert out.read_bytes().startswith(b"\x89PNG")


def test_plot_names_the_extra_that_installs_matplotlib(load_script, monkeypatch, tmp_path, capsys):
    plot, path = load_script("plot"), tmp_path / "rows.csv"
    write_rows(path, load_script("contrastive"))
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["plot", str(path), "--out", str(tmp_path / "rows.png")])
    with pytest.raises(SystemExit) as refused:
        plot.main()
    assert refused.value.code == 2 and "eval" in capsys.readouterr().err


def test_roofline_is_the_larger_of_arithmetic_and_traffic(load_script):
    plot = load_script("plot")
    options = argparse.Namespace(mode="full", tflops=790.0, gbs=4300.0)
    assert plot.roofline(16384, 2048, options, item=2) == pytest.approx(4.18e-3, rel=0.01)
    assert plot.roofline(16, 2048, options, item=2) == pytest.approx(14 * 16 * 2048 / 4.3e12)

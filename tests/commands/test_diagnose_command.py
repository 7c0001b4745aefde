"""`dcr-ds diagnose`: each diagnosis on tiny models and the built-in prompts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_runs import the_error, write_rows
from tiny import make_model, one_thread_environment

from dcr_ds.cli import main
from dcr_ds.commands.diagnose.prompts import _prompts_of
from dcr_ds.data.records import Conversation, DataSet
from dcr_ds.recipe.layout import RunFolder

PROMPTS = {
    "HARMLESS": [{"prompt": f"Paint {number} doors"} for number in range(12)],
    "ONE_PAIR": [{"prompt": f"Wreck {number} doors", "pair": "doors"} for number in range(12)],
    "LONG": [{"prompt": "Wreck " + word * 600} for word in "ab"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "tiny", layers=3, tied=False)


@pytest.fixture(scope="module")
def finished_run(model, tmp_path_factory):
    """A run folder with a base model and a refined model of other weights."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    run.stage("refine").folder.mkdir(parents=True)
    make_model(run.stage("refine").model, layers=3, tied=False, seed=1)
    run.stage("refine").summary.write_text(json.dumps({"steps": 1}))
    run.recipe.write_text(yaml.safe_dump({"model": {"source": str(model)}, "refine": {"layer": 2}}))
    return run


def test_the_kernel_is_printed_and_written(model, tmp_path, capsys):
    assert main(["diagnose", "entk", str(model), "--prompts", "3", "--k", "4", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny: mean ‖K(x', x)‖")
    assert [line[:15].strip() for line in lines[2:5]] == ["seemingly toxic", "toxic", "general"]
    written = json.loads((tmp_path / "tiny" / "entk.json").read_text())
    assert written["k"] == 4


def test_models_of_two_runs_are_compared_by_their_names(model, finished_run, tmp_path, capsys):
    refined, options = finished_run.stage("refine").model, ["--prompts", "2", "--k", "2", "--out", str(tmp_path)]
    assert main(["diagnose", "entk", str(refined), f"stl={model}", *options]) == 0
    out = capsys.readouterr().out
    assert "change from run-refine with" in out and "\n  stl " in out
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["run-refine", "stl"]
    assert main(["diagnose", "entk", str(finished_run.folder), f"run-base={model}"]) == 2
    assert "two models have the name 'run-base'; give one of them another" in the_error(capsys.readouterr().err)


def test_the_models_of_a_run_are_compared_in_its_folder(finished_run, capsys):
    assert main(["diagnose", "entk", str(finished_run.folder), "--prompts", "3", "--k", "2"]) == 0
    out = capsys.readouterr().out
    blocks = {
        name: {
            (block["row"], block["column"]): block["mean"]
            for block in json.loads((finished_run.diagnosis("entk") / name / "entk.json").read_text())["blocks"]
        }
        for name in ("base", "refined")
    }
    compared = out[out.index("x' seemingly toxic, x toxic:") :].splitlines()[1:3]
    assert [line.split()[0] for line in compared] == ["base", "refined"]
    block = ("seemingly_toxic", "toxic")
    assert f"{blocks['refined'][block]:.3f} (" in compared[1]
    assert f"{blocks['refined'][block] - blocks['base'][block]:+.3f} (" in compared[1]


@pytest.mark.slow
def test_entk_compares_the_aligned_model_with_its_control(finished_run, model, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    for seed, stage in enumerate(("control", "align"), 2):
        run.stage(stage).folder.mkdir(parents=True)
        make_model(run.stage(stage).model, layers=3, tied=False, seed=seed)
        run.stage(stage).summary.write_text(json.dumps({"steps": 1}))
    run.recipe.write_text(finished_run.recipe.read_text())
    command = ["diagnose", "entk", str(run.folder), "--prompts", "3", "--k", "2"]
    assert main(command) == 0
    out = capsys.readouterr().out
    first, second = (part.splitlines() for part in out.split("Blocks of seemingly toxic and toxic prompts, ")[1:])
    assert first[0].startswith("and the change from base") and second[0].startswith("and the change from control")
    assert [line.split()[0] for line in first[2:5]] == ["base", "control", "aligned"]
    assert [line.split()[0] for line in second[2:4]] == ["control", "aligned"] and second[2] in [
        line[: len(second[2])] for line in first
    ]
    bin = Path(sys.executable).parent
    launcher = [bin / "torchrun", "--standalone", "--nproc_per_node", "2", "--no-python", bin / "dcr-ds"]
    launched = subprocess.run(
        [*launcher, *command], capture_output=True, text=True, env=one_thread_environment(), timeout=300
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.endswith(out)  # after two lines of DeepSpeed


def test_layers_probes_every_layer_but_the_last_and_chooses_one(model, tmp_path, capsys):
    assert main(["diagnose", "layers", str(model), "--prompts", "20", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["1", "2"]
    assert lines[4].startswith("refine.layer: ")
    written = json.loads((tmp_path / "tiny" / "layers.json").read_text())
    assert [row["layer"] for row in written["layers"]] == [1, 2] and written["chosen"] in (1, 2)


def test_rows_of_a_file_that_are_left_out_are_noted(model, tmp_path, capsys):
    rows = [*PROMPTS["HARMLESS"], {"prompt": None}]
    files = [write_rows(tmp_path / "safe.jsonl", rows), write_rows(tmp_path / "harm.jsonl", PROMPTS["ONE_PAIR"])]
    main(["diagnose", "layers", str(model), "--seemingly-toxic", str(files[0]), "--toxic", str(files[1])])
    assert "seemingly toxic: 1 of 13 prompts left out: 'prompt' is missing" in capsys.readouterr().err


def test_drift_is_measured_from_the_first_model(model, finished_run, tmp_path):
    refined = finished_run.stage("refine").model
    words = ["diagnose", "layers", str(model), "--prompts", "10", "--out", str(tmp_path)]
    assert main([*words, "--refined", str(refined)]) == 0
    assert all(row["drift"] > 0.1 for row in json.loads((tmp_path / "refined" / "layers.json").read_text())["layers"])
    assert main([*words, "--refined", str(model)]) == 0
    assert all(row["drift"] == 0 for row in json.loads((tmp_path / "refined" / "layers.json").read_text())["layers"])


def test_the_sets_of_a_recipe_are_checked_for_confounds(tmp_path, capsys):
    short = write_rows(tmp_path / "short.jsonl", [{"prompt": f"Name {i} cats"} for i in range(30)])
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": f"Tell me about {i} cats " * 5} for i in range(30)])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data: {{seemingly_toxic: {short}}}")
    assert main(["diagnose", "confounds", str(recipe), "--data.toxic", str(long), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "characters" in out and "WARNING: the feature 'characters' alone separates" in out
    written = json.loads((tmp_path / "confounds.json").read_text())["confounds"]
    assert written[0]["feature"] == "characters" and written[0]["auc"]["value"] == 1


def test_what_cannot_be_measured_of_the_sources_is_no_number(tmp_path, capsys):
    sets = {name: [{"prompt": f"{name} {i}", "category": name} for i in range(20)] for name in ("paint", "wreck")}
    safe, harm = (write_rows(tmp_path / f"{name}.jsonl", rows) for name, rows in sets.items())
    options = ["--data.seemingly_toxic", str(safe), "--data.toxic", str(harm), "--out", str(tmp_path)]
    assert main(["diagnose", "confounds", *options]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("other sources")]
    assert "cannot be measured" in line and "nan" not in line
    text = (tmp_path / "confounds.json").read_text()
    assert "NaN" not in text and json.loads(text)["confounds"][-1]["auc"]["value"] is None


def test_the_question_of_a_conversation_is_asked_behind_its_system_prompt():
    system, user, answer = ({"role": role, "content": role.upper()} for role in ("system", "user", "assistant"))
    rows = [Conversation("a", (system, user, answer, user, answer)), Conversation("b", (user, answer))]
    read = _prompts_of(DataSet("general", "", rows, ""))
    assert [prompt.messages for prompt in read] == [(system, user), (user,)]


@pytest.mark.parametrize(("out", "reason"), [("file", "is a file"), ("file/below", "is not a folder")])
def test_an_output_folder_that_cannot_be_made_is_found_before_any_work(out, reason, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["diagnose", "entk", "no-such-model", "--out", str(tmp_path / out)]) == 2
    message = the_error(capsys.readouterr().err)
    assert f"--out: {tmp_path / out}" in message and reason in message


def test_layers_pools_as_the_run_does(model, finished_run, tmp_path):
    run = shutil.copytree(finished_run.folder, tmp_path / "run")
    recipe = {"model": {"source": str(model)}, "refine": {"layer": 2, "pooling": "mean"}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    options = ["--prompts", "10", "--out", str(tmp_path)]
    assert main(["diagnose", "layers", str(run), *options]) == 0
    assert main(["diagnose", "layers", f"mean={model}", "--pooling", "mean", *options]) == 0
    assert main(["diagnose", "layers", f"last={model}", *options]) == 0
    figures = [json.loads((tmp_path / name / "layers.json").read_text()) for name in ("base", "mean", "last")]
    assert figures[0] == figures[1] != figures[2]


def test_pca_plots_prompts_before_and_after_refine(finished_run, capsys):
    assert main(["diagnose", "pca", str(finished_run.folder), "--prompts", "5"]) == 0
    assert "layer 2, 10 prompts: the two axes explain" in capsys.readouterr().out
    folder = finished_run.diagnosis("pca")
    assert (folder / "pca.png").stat().st_size > 1000
    assert len((folder / "pca.csv").read_text().splitlines()) == 11


def test_openings_are_listed_with_their_coverage(model, tmp_path, capsys):
    assert main(["diagnose", "openings", str(model), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    written = json.loads((tmp_path / "openings.json").read_text())
    assert all(f"“{opening['text']}”" in out for opening in written["openings"][:3])
    assert f"begin {written['refusals_covered']:.1%} of the refusals" in out
    assert "first tokens can also begin ordinary answers" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "unknown tool 'nothing'; there are entk, layers, confounds"),
        (["layers", "MODEL", "--prompts", "4"], "layer probe: 4 seemingly toxic prompts"),
        (["layers", "MODEL", "--prompts", "9999"], "seemingly toxic: 9999 prompts asked for, the set has 161"),
        (["layers", "RUN", "--refined", "MODEL"], "is a run, whose models are compared anyway"),
        (["layers", "MODEL", "--prompts", "10", "--refined", "DEEPER"], "compare a model with one that was trained"),
        (["entk", "MODEL", "--prompts", "2", "--k", "999"], "999"),
        (["entk", "/no/such/folder"], "/no/such/folder"),
        (["entk", "DEEPER", "MODEL", "--parameters", r"layers\.3\."], "matches no parameter"),
        (["entk", "MODEL", "HOOK"], "name its source model"),
        (["entk", "http://localhost/v1#model"], "an endpoint shows neither gradients nor hidden states"),
        (["layers", "MODEL", "--chat-template-kwargs", '{"thinking": true}'], "no variable 'thinking'"),
        (["layers", "RUN", "--chat-template", "instruction"], "is a run, whose recipe has the chat template"),
        (["entk", "MODEL", "MODEL"], "two models have the name 'tiny'"),
        (["pca", "MODEL"], "not a run folder with a refined model"),
        (["confounds", "--dry-run"], "options of train"),
        (["layers", "ONE_BLOCK", "--prompts", "10"], "layer probe: the model has 1 block"),
        (["layers", "MODEL", "--toxic", "HARMLESS", "--seemingly-toxic", "HARMLESS"], "12 prompts in common"),
        (["confounds", "--data.toxic", "HARMLESS", "--data.seemingly_toxic", "HARMLESS"], "12 prompts in common"),
        (["layers", "MODEL", "--toxic", "ONE_PAIR"], "the toxic prompts belong to 1 pair"),
        (["confounds", "--data.toxic", "ONE_PAIR"], "1 pairs are too few for the confound check"),
        (["entk", "MODEL", "--toxic", "LONG", "--prompts", "2"], "tokens, but the model reads at most 512"),
    ],
)
def test_bad_input_is_a_single_message(model, finished_run, tmp_path, arguments, message, capsys):
    places = {"MODEL": str(model), "RUN": str(finished_run.folder)}
    for name, layers in {"DEEPER": 4, "ONE_BLOCK": 1}.items():
        if name in arguments:
            places[name] = str(make_model(tmp_path / name.lower(), layers=layers, tied=False))
    for name, rows in PROMPTS.items():
        places[name] = str(write_rows(tmp_path / f"{name}.jsonl", rows))
    if "HOOK" in arguments:
        places["HOOK"] = str(tmp_path / "hook")
        assert main(["baseline", "knob", str(model), "--strength", "1", "--out", places["HOOK"]]) == 0
    capsys.readouterr()
    assert main(["diagnose", *(places.get(word, word) for word in arguments)]) == 2
    printed = capsys.readouterr()
    assert message in the_error(printed.err) and not printed.out, "work before all models were checked"

"""A run resumes only with the model, tokenizer, template and data it started with; anything else is an error."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TEMPLATE

from dcr_ds.run.folder import settings_of


def change_weights(place):
    file = place / "model" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 2.0)
    save_file(weights, file, metadata={"format": "pt"})


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_config(place):
    change_json(place / "model" / "config.json", rms_norm_eps=1e-3)


def change_data(place):
    path = place / "general.jsonl"
    path.write_text(path.read_text().replace("Here it is.", "There it is."))


def change_template(place):
    path = place / "model" / "chat_template.jinja"
    if path.exists():
        path.write_text(path.read_text() + "{# other #}")
    else:
        config = place / "model" / "tokenizer_config.json"
        change_json(config, chat_template=json.loads(config.read_text())["chat_template"] + "{# other #}")


def change_tokenizer(place):
    change_json(place / "model" / "tokenizer_config.json", model_max_length=77)


CHANGES = {
    change_weights: "weights of the model in",
    change_config: "config.json of the model",
    change_data: "rows of data.general",
    change_template: "chat template",
    change_tokenizer: "tokenizer",
}


@pytest.mark.parametrize("change", CHANGES)
def test_resume_with_changed_inputs_is_an_error(train, refused, place, run_folder, change):
    train("--stages", "[refine]", stop=True)
    before = run_folder.environment.read_text()
    change(place)
    message = refused("--stages", "[refine]")
    assert message.startswith(f"{run_folder.stage('refine').folder}: refine began with something else:")
    assert CHANGES[change] in message and "--redo refine" in message and "--name" in message
    assert len(message.splitlines()) == 3  # what differs, and nothing else
    assert json.loads(run_folder.environment.read_text())["data"] == json.loads(before)["data"]


def test_stage_can_be_repeated_with_other_data(train, place, run_folder):
    train("--stages", "[refine]", stop=True)
    change_data(place)
    train("--stages", "[refine]", "--redo", "refine")
    assert run_folder.stage("refine").is_done


def test_finished_stage_is_not_reported_as_done_with_other_data(train, refused, place, run_folder):
    train("--stages", "[refine]")
    change_data(place)
    assert "rows of data.general" in refused("--stages", "[refine]")
    identity = run_folder.stage("refine").identity
    identity.write_text(identity.read_text()[:-9])
    assert refused("--stages", "[refine]").startswith(f"{identity}: damaged, so what refine was trained with")


def test_refined_model_that_was_replaced_during_align_is_an_error(train, refused, run_folder):
    train("--stages", "[refine]")
    train("--stages", "[align]", "--align.epochs", "3", stop=True)
    change_weights(run_folder.stage("refine").folder)
    message = refused("--stages", "[align]", "--align.epochs", "3")
    assert "align began with something else" in message and "weights of the model" in message


def test_the_same_model_in_another_file_is_accepted(train, place):
    train("--stages", "[refine]", stop=True)
    file = place / "model" / "model.safetensors"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    train("--stages", "[refine]")


def test_other_versions_are_reported_and_the_run_continues(train, run_folder):
    train("--stages", "[refine]", stop=True)
    identity = json.loads(run_folder.stage("refine").identity.read_text())
    identity["software"]["torch"] = "1.0"
    run_folder.stage("refine").identity.write_text(json.dumps(identity))
    message = train("--stages", "[refine]")
    assert "refine began with torch 1.0, and now has" in message
    assert json.loads(run_folder.stage("refine").identity.read_text())["software"]["torch"] == "1.0"


def test_a_stage_that_began_before_a_field_existed_is_resumed(train, refused, run_folder, monkeypatch):
    def older_settings(recipe, stage):
        settings = settings_of(recipe, stage)
        del settings["refine"]["patience"]
        return settings

    with monkeypatch.context() as older:
        older.setattr("dcr_ds.run.identity.settings_of", older_settings)
        train("--stages", "[refine]", stop=True)
    assert "refine.margin" in refused("--stages", "[refine]", "--refine.margin", "0.4")
    train("--stages", "[refine]")
    assert run_folder.stage("refine").is_done


def test_run_of_an_older_version_is_resumed_with_a_note(train, run_folder):
    train("--stages", "[refine]", stop=True)
    run_folder.stage("refine").identity.unlink()
    assert "began before identities were recorded" in train("--stages", "[refine]")


def test_each_attempt_is_recorded(train, run_folder):
    train("--stages", "[refine]", stop=True)
    train("--stages", "[refine]")
    environment = json.loads(run_folder.environment.read_text())
    assert len(environment["attempts"]) == 2
    for attempt in environment["attempts"]:
        assert attempt["packages"] == environment["packages"] and attempt["started"]


def test_recipe_that_was_edited_in_the_run_folder_is_refused(train, refused, run_folder):
    train("--stages", "[refine]", stop=True)
    saved = run_folder.recipe.read_text()
    run_folder.recipe.write_text(saved.replace("max_grad_norm: 1.0", "max_grad_norm: 0.5", 1))
    assert "  refine.max_grad_norm: 1.0 there, 0.5 now" in refused(
        "--stages", "[refine]", "--refine.max_grad_norm", "0.5"
    )
    run_folder.recipe.write_text(saved)
    train("--stages", "[refine]")


@pytest.mark.parametrize("saved", ["auto", "0.25"])
def test_unresolved_auto_is_compared_as_a_value(train, refused, saved):
    options = ("--stages", "[align]", "--align.epochs", "3", "--align.safe_ratio")
    other = {"auto": "0.25", "0.25": "auto"}[saved]
    train(*options, saved, stop=True)
    assert "align.safe_ratio" in refused(*options, other)


def test_chat_template_in_a_file_that_was_changed_is_refused(train, refused, place):
    template = place / "template.jinja"
    template.write_text(TEMPLATE)
    options = ("--stages", "[refine]", "--model.chat_template", template)
    train(*options, stop=True)
    template.write_text(template.read_text() + "{# other #}")
    assert "chat template" in refused(*options)


def test_prompts_that_end_the_alignment_are_part_of_its_identity(train, refused, place):
    options = ("--stages", "[align]", "--align.epochs", "3", "--align.measure_every", "1")
    train(*options, stop=True)
    path = place / "toxic.jsonl"
    path.write_text(path.read_text().replace("wreck", "ruin"))
    assert "rows of data.toxic" in refused(*options)


def test_deepspeed_configuration_that_is_less_precise_is_refused(train, refused):
    options = ("--stages", "[refine]", "--deepspeed")
    train(*options, '{"zero_optimization": {"stage": 2}}', stop=True)
    lossy = '{"zero_optimization": {"stage": 2}, "communication_data_type": "fp16"}'
    assert "communication_data_type" in refused(*options, lossy)


def test_other_sharding_is_reported_and_the_run_continues(train, run_folder):
    options = ("--stages", "[refine]", "--deepspeed")
    train(*options, '{"zero_optimization": {"stage": 2}}', stop=True)
    message = train(*options, '{"zero_optimization": {"stage": 1}}')
    assert "refine began with sharding {'stage': 2}, and now has {'stage': 1}" in message
    assert run_folder.stage("refine").is_done


def test_run_folder_that_was_copied_and_renamed_is_the_same_run(train, place, run_folder, steps):
    train("--stages", "[refine]", stop=True)
    shutil.copytree(run_folder.folder, place / "elsewhere" / "copied")
    shutil.rmtree(run_folder.folder)
    message = train("--stages", "[refine]", "--output", place / "elsewhere", "--name", "copied")
    assert "resuming from" in message and "began with" not in message


def test_checkpoints_of_another_run_are_refused(train, refused, run_folder):
    train("--stages", "[refine]", "--seed", "1", "--name", "other", stop=True)
    train("--stages", "[refine]", stop=True)
    checkpoints = run_folder.stage("refine").checkpoints
    shutil.rmtree(checkpoints)
    shutil.copytree(run_folder.folder.with_name("other") / "refine" / "checkpoints", checkpoints)
    assert "saved by another refine, with another recipe, model or data" in refused("--stages", "[refine]")


def move_inputs(place):
    """Move model and data, as to another disk, and return the options that name them there."""
    (place / "moved").mkdir()
    for name in ("model", "general.jsonl"):
        (place / name).rename(place / "moved" / name)
    return "--model.source", place / "moved" / "model", "--data.general", place / "moved" / "general.jsonl"


def test_model_and_data_in_another_place_are_the_same_by_content(train, refused, place):
    train("--stages", "[refine]", stop=True)
    options = "--stages", "[refine]", *move_inputs(place)
    assert "resuming from" in train(*options)
    change_data(place / "moved")
    assert "rows of data.general" in refused(*options)


def test_a_trained_stage_that_does_not_run_is_compared_by_its_recipe(train, refused, place):
    """Its data is not read, so whether it is the same is not known."""
    train("--stages", "[refine]")
    assert "data.general.source" in refused("--stages", "[align]", *move_inputs(place))


def test_data_that_only_a_stage_without_results_reads_may_change(train, refused, place):
    train("--stages", "[refine]")
    (place / "refusals.jsonl").rename(place / "others.jsonl")
    options = "--data.refusals", place / "others.jsonl", "--data.refusals.rows", "5"
    assert "refine: already done" in train("--stages", "[refine,align]", *options)
    assert "data.refusals.rows: 5 there, 4 now" in refused("--stages", "[refine,align]", *options[:3], "4")

"""Free space is checked before the first step, by what the stages then write."""

from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

import dcr_ds
from dcr_ds.engine.checkpoint import checkpoints
from dcr_ds.errors import UserError
from dcr_ds.models.locate import prepare_source
from dcr_ds.recipe import ModelSection
from dcr_ds.recipe.layout import StageFolder
from dcr_ds.run import space
from dcr_ds.run.space import StageFiles, peaks
from tests.small_runs import write_recipe
from tests.tiny import make_model

Usage = namedtuple("Usage", "total used free")
OVERHEAD = 150_000  # bytes of a checkpoint's small files


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), hidden_size=64, vocab_size=6000, tied=False)


@pytest.fixture
def train(tmp_path, model):
    def run(**overrides):
        values = {name.replace("__", "."): value for name, value in overrides.items()}
        dcr_ds.train(dcr_ds.load_recipe(str(write_recipe(tmp_path, model)), values))

    return run


@pytest.mark.parametrize(
    ("config", "dtype", "adapter", "optimizer"),
    [
        ("zero0", "float32", "none", "adamw"),
        ("zero1", "bfloat16", "lora", "adamw"),
        ("zero2", "float32", "none", "adamw8bit"),
        ("zero3", "bfloat16", "none", "adamw"),
    ],
)
def test_planned_checkpoints_are_as_large_as_real_ones(train, monkeypatch, config, dtype, adapter, optimizer):
    planned, written = [], []
    plan, seal = space.files_of_stage, checkpoints.seal

    def note_plan(*arguments):
        planned.append(plan(*arguments))
        return planned[-1]

    def note_written(folder, saved):
        manifest = seal(folder, saved)
        written.append(manifest.num_bytes)
        return manifest

    monkeypatch.setattr(space, "files_of_stage", note_plan)
    monkeypatch.setattr(checkpoints, "seal", note_written)
    train(
        deepspeed=f"ds_configs/{config}.json",
        model__dtype=dtype,
        refine__adapter=adapter,
        align__adapter=adapter,
        refine__optimizer=optimizer,
        align__optimizer=optimizer,
    )
    assert len(planned) == len(written) == 2
    for stage, actual in zip(planned, written, strict=True):
        assert actual <= stage.checkpoint + OVERHEAD  # of refine, the plan includes the best weights
        assert actual >= (0.6 if stage is planned[0] else 0.95) * stage.checkpoint
        assert (stage.at_once, stage.kept) == (1, 1)
        exported = sum(path.stat().st_size for folder in stage.folder.exports for path in folder.glob("*.safetensors"))
        assert 0.95 * stage.model <= exported <= 1.05 * stage.model


def stage(folder: Path, checkpoint: int, at_once: int, kept: int, model: int) -> StageFiles:
    folder.mkdir(exist_ok=True)
    return StageFiles(StageFolder(folder), checkpoint, at_once, kept, model)


@pytest.mark.parametrize(
    ("refine", "align", "expected"),
    [
        ((10, 3, 2, 4), (20, 3, 2, 4), 4 + 60),  # while checkpoints of align are written
        ((10, 3, 2, 40), (1, 3, 2, 4), 2 * 10 + 40),  # while refine is exported
        ((10, 1, 1, 40), (1, 3, 2, 40), 80 + 2),  # while align is exported
    ],
)
def test_most_bytes_at_once(tmp_path, refine, align, expected):
    stages = [stage(tmp_path / "refine", *refine), stage(tmp_path / "align", *align)]
    assert [needed for _, needed in peaks(stages)] == [expected]


def test_checkpoints_that_are_there_already_are_not_needed_again(tmp_path):
    stages = [stage(tmp_path / "align", 100, 3, 2, 0)]
    (tmp_path / "align" / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "align" / "checkpoints" / "step-1" / "file").write_bytes(b"x" * 100)
    assert [needed for _, needed in peaks(stages)] == [200]


def test_what_an_interrupted_export_left_is_not_needed_again(tmp_path):
    stages = [stage(tmp_path / "align", 100, 1, 1, 1000)]
    (tmp_path / "align" / "model.partial").mkdir()
    (tmp_path / "align" / "model.partial" / "file").write_bytes(b"x" * 400)
    assert [needed for _, needed in peaks(stages)] == [100 + 1000 - 400]


def test_too_little_space_ends_a_run_before_the_first_step(train, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(10**12, 0, 1_000_000))
    with pytest.raises(UserError) as error:
        train(checkpoint__every_steps=1, checkpoint__keep=3)
    message = str(error.value)
    assert "the run needs" in message and "checkpoint of" in message and "0.001 GB free" in message
    assert "Lower checkpoint.keep (now 3), set --output" in message
    assert not list((tmp_path / "runs").rglob("checkpoints"))


def test_a_file_system_that_reports_no_size_gives_a_warning(train, monkeypatch, capfd, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(0, 0, 0))
    train(stages=["refine"])
    assert "does not report its free space; the run needs" in capfd.readouterr().err
    assert (tmp_path / "runs" / "run" / "refine" / "model").is_dir()


def test_a_download_that_does_not_fit_is_refused(monkeypatch, tmp_path):
    files = [
        SimpleNamespace(rfilename=name, size=size) for name, size in (("model.safetensors", 5 * 10**9), ("x.bin", 1))
    ]
    info = SimpleNamespace(siblings=files, sha="0" * 40)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **options: info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **options: str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(10**12, 0, 10**9))
    with pytest.raises(UserError, match="owner/name needs 5 GB in .*, which has 1 GB free; .* HF_HUB_CACHE"):
        prepare_source(ModelSection(source="owner/name"))
    files[0].size = 10**8
    with pytest.raises(UserError, match="has no config.json"):  # of what was downloaded
        prepare_source(ModelSection(source="owner/name"))

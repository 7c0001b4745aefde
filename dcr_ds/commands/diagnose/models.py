"""The models that a command line names: all models of a run, or a single one; how they are loaded."""

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcr_ds.commands.model_names import named_models
from dcr_ds.commands.parser import output_folder
from dcr_ds.errors import UserError
from dcr_ds.evaluate.targets import LocalModel, locate_target
from dcr_ds.recipe import EndpointSection, ModelSection, load_recipe
from dcr_ds.recipe.layout import BASE, MODELS, STAGE_OF_MODEL, RunFolder

if TYPE_CHECKING:
    import torch

HELP = "run folder, model or adapter folder, hub id, GGUF file or smollm2-135m; NAME=MODEL names it"


@dataclass(frozen=True)
class Target:
    """A model to diagnose.

    Attributes:
        title: in tables, and the name of its folder of results.
        run: the run that it belongs to, if any.
    """

    title: str
    section: ModelSection
    files: LocalModel
    run: RunFolder | None = None

    def tokenizer(self) -> Any:
        from dcr_ds.models.tokenizer import load_tokenizer

        return load_tokenizer(self.files.tokenizer, self.section.template, self.files.source)

    def load(self, device: "torch.device | None" = None) -> Any:
        """The model in float32, with its adapter merged. Device: the GPU if there is one."""
        import torch

        from dcr_ds.models.hooks.load import load_model

        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return load_model(self.files.source, self.files.adapter, None, torch.float32, "eager", device)


def targets_of(words: Sequence[str], template: Mapping[str, Any] | None = None) -> list[Target]:
    """The models that are named, each checked to be complete; those of a run in the order base, control, refined, …

    Args:
        words: MODEL or NAME=MODEL; of several, a run's models are called `NAME-base`, `NAME-control`, …
        template: chat_template and chat_template_kwargs of models that are not those of a run.

    Raises:
        UserError: a model is missing or incomplete, an endpoint or a hook; two have the same title; a template for a
            run.
    """
    targets = []
    for name, model in named_models(words).items():
        run = RunFolder(Path(model))
        if run.is_run:
            targets += _models_of(run, f"{name}-" if len(words) > 1 else "", template or {})
        else:
            targets.append(_target(name, ModelSection(source=model, **(template or {}))))
    titles = [target.title for target in targets]
    if repeated := [title for title in titles if titles.count(title) > 1]:
        raise UserError(f"two models have the name {repeated[0]!r}; give one of them another: NAME=MODEL")
    return targets


def add_out(parser: ArgumentParser, files: str) -> None:
    text = f"write {files} into DIR (default for a run: RUN/diagnose)"
    parser.add_argument("--out", type=output_folder, metavar="DIR", help=text)


def folder_of(target: Target, what: str, out: Path | None) -> Path | None:
    """Where the results of a model go; None: they are only printed."""
    home = out or (target.run.diagnosis(what) if target.run else None)
    return home and home / target.title


def _models_of(run: RunFolder, prefix: str, template: Mapping[str, Any]) -> list[Target]:
    """All models of a run."""
    if template:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in template)
        raise UserError(f"{run.folder}: is a run, whose recipe has the chat template; leave out {options}")
    section = load_recipe(str(run.recipe), []).model
    sections = {BASE: section}
    for title in MODELS[1:]:
        folder = run.stage(STAGE_OF_MODEL[title])
        if folder.is_done:
            sections[title] = section.model_copy(update={"source": str(folder.model), "revision": None})
    return [_target(f"{prefix}{title}", of_model, run) for title, of_model in sections.items()]


def _target(title: str, section: ModelSection, run: RunFolder | None = None) -> Target:
    files = locate_target(section, EndpointSection())
    if not isinstance(files, LocalModel):
        raise UserError(f"{section.source}: an endpoint shows neither gradients nor hidden states; name a model folder")
    if files.hook is not None:
        raise UserError(
            f"{files.hook}: the hook of a baseline changes answers, not the model that is diagnosed; name its source "
            "model"
        )
    return Target(title, section, files, run)

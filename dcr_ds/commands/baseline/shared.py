"""What the baselines share: the options of the model, the output folder and the prompts, and the checks before work."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcr_ds.baselines.prompts import ROLES, describe, option_of, read_role
from dcr_ds.commands.parser import add_template, command_parser, output_path, template_fields
from dcr_ds.data.kept import kept_rows
from dcr_ds.data.load import refuse_common_prompts
from dcr_ds.data.records import DataSet, PromptSet
from dcr_ds.errors import UserError
from dcr_ds.evaluate.targets import LocalModel, locate_target
from dcr_ds.files import expand_user
from dcr_ds.models.checkpoint_files import check_not_quantised
from dcr_ds.new_folder import is_taken
from dcr_ds.recipe import EndpointSection, ModelSection

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HELP_MODEL = "model or adapter folder, hub id, GGUF file or smollm2-135m"
HELP_ROLE = {
    "harmful": "harmful prompts (default: toxic prompts of the built-in training split)",
    "harmless": "harmless prompts (default: general ones of the built-in training split)",
    "seemingly_toxic": "harmless prompts that look harmful (default: built-in training split)",
}


@dataclass(frozen=True)
class Source:
    """The model that a baseline is made from.

    Attributes:
        name: how another command finds the model: an absolute path, a hub id or the name of the demo's model.
    """

    name: str
    section: ModelSection
    files: LocalModel

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        from dcr_ds.models.tokenizer import load_tokenizer

        return load_tokenizer(self.files.tokenizer, self.section.template, self.files.source)

    def load(self) -> "PreTrainedModel":
        """The model in float32, with its adapter merged, on the GPU if there is one."""
        import torch

        from dcr_ds.models.hooks.load import load_model

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return load_model(self.files.source, self.files.adapter, None, torch.float32, "eager", device)


def baseline_parser(name: str, description: str) -> ArgumentParser:
    """A parser with the options of all baselines: the model, its chat template, and the output folder."""
    parser = command_parser(f"baseline {name}", description)
    parser.add_argument("model", metavar="MODEL", help=HELP_MODEL)
    parser.add_argument("--out", type=output_path, required=True, metavar="DIR", help="a new folder")
    add_template(parser)
    return parser


def add_prompt_sets(parser: ArgumentParser, roles: Sequence[str]) -> None:
    """Add the options that name files of prompts, and the seed of what is sampled from them."""
    for role in roles:
        parser.add_argument(option_of(role), metavar="FILE", help=HELP_ROLE[role])
    parser.add_argument("--seed", type=int, default=0, help="of the sample of prompts (default: 0)")


def read_prompt_sets(options: Namespace, roles: Sequence[str]) -> dict[str, PromptSet]:
    """The prompts of each role, from its file or built-in.

    Raises:
        UserError: a file cannot be read, or a harmful prompt is in another set, too.
    """
    assert set(roles) <= set(ROLES)
    sets = {role: read_role(role, getattr(options, role)) for role in roles}
    for role in roles:
        if role != "harmful":
            refuse_common_prompts(sets["harmful"], sets[role], (option_of("harmful"), option_of(role)))
    return sets


def check_out(out: Path) -> None:
    """Raise UserError unless the output folder is new, or empty."""
    folder = out.resolve()
    if is_taken(folder) or (folder.exists() and folder.samefile(Path.cwd())):
        raise UserError(f"--out: {out} exists already; name a new folder")


def locate_source(options: Namespace) -> Source:
    """Locate the model and check that a baseline can be made from it.

    Raises:
        UserError: it is an endpoint, a baseline, quantised or incomplete, or its chat template cannot be used.
    """
    fields: dict[str, Any] = template_fields(options)
    section = ModelSection(source=options.model, **fields)
    if options.model.startswith(("http://", "https://")):
        raise UserError(f"{options.model}: a baseline changes weights or activations; an endpoint shows neither")
    files = locate_target(section, EndpointSection())
    assert isinstance(files, LocalModel)
    if files.hook is not None:
        raise UserError(f"{options.model}: is a baseline itself; make the baseline from its source model")
    check_not_quantised(files.source)
    for folder in filter(None, (files.source, files.adapter)):
        if options.out.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--out: {options.out} is inside the model's folder {folder}; name a folder elsewhere")
    path = expand_user(options.model)
    return Source(str(path.resolve()) if path.exists() else options.model, section, files)


def write(
    name: str,
    source: Source,
    settings: dict[str, Any],
    data: Mapping[str, DataSet],
    out: Path,
    vectors: "Mapping[str, torch.Tensor] | None" = None,
) -> None:
    """Write the baseline folder of a hook.

    Args:
        data: the sets that it was made from, by role.
    """
    from dcr_ds.models.hooks.record import BaselineRecord, content_hash, write_baseline
    from dcr_ds.models.tokenizer import template_hash

    content = content_hash(source.files.source, source.files.adapter)
    described = {role: describe(rows) for role, rows in data.items()}
    record = BaselineRecord(name, source.name, content, template_hash(source.tokenizer()), settings, described)
    prompts = kept_rows({role: rows.rows for role, rows in data.items()})
    write_baseline(out, record, prompts, vectors or {}, source.files.tokenizer, source.section.template)

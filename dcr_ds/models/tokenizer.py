"""Load tokenizers and the chat templates that they render with."""

import hashlib
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dcr_ds.errors import UserError, first_line
from dcr_ds.models.limits import ids_beyond, model_limits
from dcr_ds.models.rendering import check_template
from dcr_ds.models.template_variables import with_variables
from dcr_ds.recipe import ChatTemplate, find_file

PROBE = "It's 1234 x+y=0.5, don't!\n\n  na\u00efve \u706b \t end"  # what pre-tokenizers divide in their own ways
TEMPLATES = Path(__file__).parent / "templates"


def load_tokenizer(
    folder: Path, chat_template: ChatTemplate | str | None = None, model: Path | None = None
) -> PreTrainedTokenizerBase:
    """Load a tokenizer with a chat template: its own, a Jinja file, or the name of a shipped template.

    Args:
        chat_template: the file, or also values of the template's variables.
        model: folder of the model that reads the tokens, whose limits are known to `limits_of` from then on; None: the
            same folder.

    Raises:
        UserError: there is no tokenizer, no chat template, or the template is not valid.
    """
    tokenizer = read_tokenizer(folder, model)
    template = ChatTemplate.of(chat_template)
    if template.file is not None:
        tokenizer.chat_template = read_template(template.file)
    if tokenizer.chat_template is None:
        raise UserError(
            f"{folder}: this tokenizer has no chat template (a base model?); set model.chat_template to a Jinja "
            "file (dcr-ds evaluate: --chat-template FILE) or to a shipped template: "
            f"{_shipped_templates()}"
        )
    check_template(str(tokenizer.chat_template), f"{folder}")
    if template.variables:
        tokenizer.chat_template = with_variables(tokenizer.get_chat_template(), template.variables)
    return tokenizer


def read_tokenizer(folder: Path, model: Path | None = None) -> PreTrainedTokenizerBase:
    """As `load_tokenizer`, with a chat template or without."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if makes_other_tokens(tokenizer, folder):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain exceptions
        raise UserError(
            f"{folder}: no tokenizer that transformers can load ({first_line(error)[:200]}); copy the model's own "
            "there: tokenizer.json and tokenizer_config.json"
        ) from None
    tokenizer.model_limits = model_limits(model or folder)  # where `limits_of` finds it
    if tokenizer.pad_token_id is None or ids_beyond(tokenizer.pad_token_id, tokenizer.model_limits.rows):
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def makes_other_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> bool:
    """Whether a tokenizer makes other tokens than the tokenizer.json that the model was trained with.

    transformers 5 builds the pre-tokenizer of some classes, such as GPT2Tokenizer, itself. SmolLM2 names that class,
    and its digits, which tokenizer.json separates, would be merged.
    """
    file = folder / "tokenizer.json"
    if type(tokenizer) is PreTrainedTokenizerFast or not file.is_file():
        return False
    saved = Tokenizer.from_file(str(file))
    saved.no_truncation()
    saved.no_padding()
    return saved.encode(PROBE, add_special_tokens=False).ids != tokenizer(PROBE, add_special_tokens=False).input_ids


def read_template(name: str) -> str:
    """The text of a chat template: a Jinja file, or the name of a shipped template."""
    shipped = TEMPLATES / f"{name}.jinja"
    path = shipped if shipped.is_file() else find_file(name)
    if path is None:
        raise UserError(
            f"model.chat_template: no such file {name!r}, and no shipped template of that name ({_shipped_templates()})"
        )
    try:
        return check_template(path.read_text(encoding="utf-8"), "model.chat_template")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"model.chat_template: {path}: cannot be read as UTF-8 text ({first_line(error)[:200]})"
        ) from None


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Short hash of the chat template: equal in training and evaluation, or they are not comparable."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]


def _shipped_templates() -> str:
    return ", ".join(sorted(path.stem for path in TEMPLATES.glob("*.jinja")))

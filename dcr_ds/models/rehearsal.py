"""Check an architecture that no test covers: cut, splice and pack a small random model with the config at hand.

The small model has the kinds of blocks of the real one, few of them, and small widths where its config allows that.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dcr_ds.errors import UserError, one_line
from dcr_ds.models.architectures import TESTED, untested_warning
from dcr_ds.models.batches import token_batch
from dcr_ds.models.checkpoint_files import model_config, read_headers
from dcr_ds.models.likelihood import as_likelihood
from dcr_ds.models.limits import SPECIAL_IDS
from dcr_ds.models.load import load_causal_lm
from dcr_ds.models.splice import splice
from dcr_ds.models.trunk import load_trunk

PREFIX = "model."  # of the base model's weights in a causal language model
ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")  # blocks whose masks separate packed rows
VOCABULARY, FEWEST_BLOCKS, MOST_WEIGHTS = 64, 4, 300_000_000
SMALL: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "sliding_window": 4}
SMALL |= {"initializer_range": 0.2}  # outputs that differ by more than rounding
FEW = {name: 4 for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")}
FEW |= {"moe_k": 2, "num_experts_per_tok": 2, "num_experts_per_token": 2, "n_group": 1, "topk_group": 1}
LENGTHS = (7, 12, 1, 9)  # tokens of the rows that are compared
TOLERANCE = 1e-3  # relative; rows that attend to each other differ by orders of magnitude more
CPU = torch.device("cpu")


class Unfit(Exception):
    """What an architecture does not do that training needs."""


def check_architecture(folder: Path) -> str:
    """Return the warning about a model of an architecture that is not tested; "" for one that is.

    Raises:
        UserError: a small model of this architecture cannot be cut after a block and written back.
    """
    config = model_config(folder)
    if config["model_type"] not in TESTED:
        _rehearse(folder, _check_training)
    return untested_warning(config)


def check_can_be_packed(folder: Path, field: str) -> None:
    """Raise UserError unless packed rows of a model are computed as each row alone.

    Args:
        field: of the recipe, such as `refine.packing`.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if others := sorted(set(getattr(config, "layer_types", None) or ()) - set(ATTENTION)):
        raise UserError(
            f"{field}: {config.model_type} has blocks with {others[0]}, which carry a state from each packed row into "
            f"the next one; set it to false ({folder})"
        )
    if config.model_type not in TESTED:
        _rehearse(folder, _check_packing, f"{field}: set it to false: ")


def _rehearse(folder: Path, check: Callable[[Path], None], remedy: str = "") -> None:
    model_type = model_config(folder)["model_type"]
    reasons = []
    for widths in (SMALL, {}):
        with tempfile.TemporaryDirectory(prefix="dcr-ds-") as place:
            try:
                return check(_saved(_small_config(folder, widths), Path(place) / "model"))
            except Exception as error:  # what an architecture raises that does not fit is not known
                reasons.append(one_line(error))
    raise UserError(
        f"{folder}: {remedy}the architecture {model_type} is not tested (docs/models.md), and a small random model of "
        f"it failed the check: {reasons[-1]}"
    )


def _small_config(folder: Path, widths: Mapping[str, Any]) -> PreTrainedConfig:
    """The config of the model with few blocks, and with other widths."""
    values = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    changed = {name: value for name, value in widths.items() if values.get(name) is not None}
    heads, key_heads = values.get("num_attention_heads"), values.get("num_key_value_heads")
    if widths and key_heads is not None:
        changed["num_key_value_heads"] = 4 if key_heads == heads else min(2, key_heads)
    return AutoConfig.for_model(**_with_few_blocks(values) | changed)


def _with_few_blocks(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config with a few blocks of every kind, experts, inner widths and tokens."""
    blocks = values["num_hidden_layers"]
    kinds = values.get("layer_types") or [None]
    few = min(blocks, max(FEWEST_BLOCKS, *(kinds.index(kind) + 1 for kind in set(kinds)), 1))
    # an id within the vocabulary, as some configs require a number
    changed = dict(values) | {name: 0 for name in SPECIAL_IDS if values.get(name) is not None}
    for name, value in values.items():
        if isinstance(value, list) and len(value) == blocks:
            changed[name] = value[:few]
        elif name.endswith("intermediate_size") and isinstance(value, int):
            changed[name] = 32
        elif name.startswith("vocab_size") and isinstance(value, int):
            changed[name] = VOCABULARY
        elif name in FEW and isinstance(value, int):
            changed[name] = min(value, FEW[name])
    return changed | {"num_hidden_layers": few}


def _saved(config: PreTrainedConfig, folder: Path) -> Path:
    """Save a random model.

    Raises:
        Unfit: it would be too large.
    """
    with torch.device("meta"):
        weights = sum(
            weight.numel() for weight in AutoModelForCausalLM.from_config(config, trust_remote_code=False).parameters()
        )
    if weights > MOST_WEIGHTS:
        raise Unfit("its config cannot be made small")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.save_pretrained(folder)
    return folder


def _rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in LENGTHS]


def _check_training(source: Path) -> None:
    """Cut a model before its last block, write changed weights back, and compute the loss.

    Raises:
        Unfit: the trunk does not compute the model's hidden states, a tensor of the tail changed, or the loss is wrong.
    """
    model = load_causal_lm(source, torch.float32, "eager", CPU)
    layer = model.config.num_hidden_layers - 1
    blocks = getattr(getattr(model, PREFIX[:-1], None), "layers", ())
    if len(blocks) != layer + 1:
        raise Unfit("its blocks were not found at model.layers")
    trunk = load_trunk(source, layer, torch.float32, "eager").eval()
    _compare(_output(trunk), _hidden(model, layer), "the model cut after block ℓ does not compute hidden_states[ℓ]")
    _check_causal(model)
    _check_loss(model)
    trained = {name: weight.detach() + 0.01 for name, weight in trunk.named_parameters() if weight.requires_grad}
    target = source.with_name("spliced")
    splice(trunk, trained, source, target, prefix=PREFIX)
    if changed := [name for name in _changed(source, target) if f".layers.{layer}." in name]:
        raise Unfit(f"writing the trained blocks changed {changed[0]}, which is above them")
    trunk.load_state_dict(trained, strict=False)
    _compare(_output(trunk), _hidden(load_causal_lm(target, torch.float32, "eager", CPU), layer), "splicing failed")


@torch.no_grad()
def _check_causal(model: PreTrainedModel) -> None:
    """Compare the logits of a row with those of its beginning. Raises Unfit if they differ."""
    row = torch.tensor([_rows()[1]])
    half = row.shape[1] // 2
    _compare(model(row[:, :half]).logits, model(row).logits[:, :half], "its tokens read later ones")


def _check_loss(model: PreTrainedModel) -> None:
    """Compare −log π of training with that of the model's own logits.

    Raises:
        Unfit: they differ.
    """
    ids = torch.tensor(_rows()[1])
    with torch.no_grad():
        log_p = model(ids[None]).logits[0, :-1].log_softmax(-1)
        with as_likelihood(model) as likelihood:
            nll = likelihood(torch.arange(len(ids) - 1), ids[1:], "none", input_ids=ids[None])
    _compare(nll, -log_p.gather(-1, ids[1:, None])[:, 0], "it changes its logits after the head in an unknown way")


def _check_packing(source: Path) -> None:
    """Compare packed rows with each row alone.

    Raises:
        Unfit: they differ.
    """
    model = load_causal_lm(source, torch.float32, "eager", CPU)
    alone = torch.cat([_last_hidden(model, [row], packed=False) for row in _rows()])
    _compare(_last_hidden(model, _rows(), packed=True), alone, "packed rows attend to each other")


@torch.no_grad()
def _last_hidden(model: PreTrainedModel, rows: list[list[int]], packed: bool) -> torch.Tensor:
    batch = token_batch(rows, packed, CPU)
    return batch.tokens_of(model.get_decoder()(**batch.inputs, use_cache=False).last_hidden_state)


@torch.no_grad()
def _output(trunk: PreTrainedModel) -> torch.Tensor:
    return trunk(torch.tensor([_rows()[1]])).last_hidden_state


@torch.no_grad()
def _hidden(model: PreTrainedModel, layer: int) -> torch.Tensor:
    return model(torch.tensor([_rows()[1]]), output_hidden_states=True).hidden_states[layer]


def _compare(one: torch.Tensor, other: torch.Tensor, problem: str) -> None:
    if one.shape != other.shape or not (one - other).norm() <= TOLERANCE * other.norm():
        raise Unfit(problem)


def _changed(source: Path, target: Path) -> list[str]:
    """Names of the tensors that differ between two checkpoints."""
    before, after = read_headers(source), read_headers(target)

    def differs(name: str) -> bool:
        if name not in after:
            return True
        with safe_open(before[name]["file"], "pt") as one, safe_open(after[name]["file"], "pt") as two:
            return not torch.equal(one.get_tensor(name), two.get_tensor(name))

    return [name for name in before if differs(name)]

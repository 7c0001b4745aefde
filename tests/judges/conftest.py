"""Tiny random guards in the shapes of real ones, and declarations of them."""

import json
from pathlib import Path

import pytest
import torch
from guard_examples import CLASSES
from tiny import make_model, make_tokenizer
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig, ModernBertConfig

from dcr_ds.recipe import GuardJudge


@pytest.fixture(scope="session")
def causal(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("causal"), layers=2)


@pytest.fixture(scope="session", params=["bert", "llama", "modernbert"])
def classifier(request, tmp_path_factory) -> Path:
    """A random classifier with two classes, of which both occur."""
    folder = tmp_path_factory.mktemp(request.param)
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 256, "initializer_range": 0.3, "pad_token_id": 0}
    kind = {"bert": BertConfig, "llama": LlamaConfig, "modernbert": ModernBertConfig}[request.param]
    sizes |= {"global_attn_every_n_layers": 2, "local_attention": 16} if request.param == "modernbert" else {}
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(kind(**sizes, id2label=CLASSES)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def declare(tmp_path):
    """Write a declaration and return what a recipe would contain for it."""

    def write(source: Path | None, judges: str = "harm", recipe: dict | None = None, **fields) -> GuardJudge:
        reading = {"pattern": "(?s)^(.)", "labels": {"a": "harmful"}}
        declaration = {"about": "", "licence": "", "format": "chat", "output": "text", "max_input_tokens": 400}
        declaration |= {"source": str(source) if source else None, "readings": {"harm": reading}, **fields}
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        file.write_text(json.dumps(declaration))
        return GuardJudge(
            kind="guard", name="tiny", guard=str(file), judges=judges, **{"batch_size": 3, **(recipe or {})}
        )

    return write

import pytest
import torch
from tiny_models import load

from dcr_ds.models import endpoint


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(model_folder):
    """(model, tokenizer)"""
    return load(model_folder)


@pytest.fixture
def quick_endpoint(monkeypatch):
    """Remove the developer's key from the environment, and wait only milliseconds."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.005)

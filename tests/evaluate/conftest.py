import pytest
import torch
from tiny_models import load


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(model_folder):
    """(model, tokenizer)"""
    return load(model_folder)

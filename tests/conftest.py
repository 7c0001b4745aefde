"""Settings for every test, before torch is imported: one thread, no hub, and Triton's interpreter without a GPU."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if not os.path.exists("/dev/nvidia0"):
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import gc
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `from tiny import make_model`


def pytest_collection_finish():
    """Leave modules and tests out of garbage collections: each run in this process makes several, half of its time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny random model with a tokenizer, saved."""
    from tiny_models import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("model"))

"""The recipe and the data are checked before torch is imported: errors appear within a second, on any machine."""

import subprocess
import sys

import pytest
from small_runs import the_error
from tiny import one_thread_environment

SCRIPT = """
import sys
from dcr_ds.cli import main
code = main(["train", *sys.argv[1:]])
print([name for name in ("torch", "transformers", "deepspeed", "datasets") if name in sys.modules])
sys.exit(code)
"""
MISTAKES = {
    "recipe": ["--refine.layr", "1"],
    "DeepSpeed configuration": ["--deepspeed", "{train_batch_size: 8}"],
    "data": ["--data.toxic", "nowhere.jsonl"],
    "layer": ["--refine.layer", "9"],
    "model": ["--model.source", "/nowhere"],
}


@pytest.mark.parametrize("what", MISTAKES)
def test_error_before_torch_is_imported(recipe, what):
    command = [sys.executable, "-c", SCRIPT, recipe, *MISTAKES[what]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=one_thread_environment())
    assert (done.returncode, done.stdout) == (2, "[]\n"), done.stderr
    assert the_error(done.stderr)

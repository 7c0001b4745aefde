"""Plans agree with real steps: parameters, gradients and optimizer state within 2 %, peak and traffic within 15 %.

benchmarks/plan_check.py builds the engines, runs real steps and compares; these tests run small cases of it.
"""

import sys

import pytest
from processes import run_command, torchrun


def check(ranks: int, *options: str) -> str:
    launcher = torchrun(ranks) if ranks > 1 else [sys.executable]
    return run_command(*launcher, "benchmarks/plan_check.py", *options).stdout


def test_one_rank():
    """All stages on one rank, full-parameter and in 4 bits, padded and packed."""
    out = check(1, "--stages", "refine,whole,align,dpo", "--adapters", "none,qlora", "--packing", "off,on", "--zero",
                "0", "--checkpointing", "on", "--micro-batches", "4")  # fmt: skip
    assert out.count(" zero ") == 13


@pytest.mark.slow
def test_two_ranks():
    """Shards and traffic: gradients in buckets, parameters gathered for every pass."""
    out = check(2, "--stages", "refine,align,dpo", "--adapters", "none", "--zero", "2,3", "--checkpointing", "off",
                "--micro-batches", "4")  # fmt: skip
    assert out.count(" zero ") == 6


@pytest.mark.slow
def test_optimizers_in_8_bits():
    out = check(1, "--stages", "refine,align", "--zero", "0,2", "--checkpointing", "on", "--optimizers",
                "adamw8bit,paged_adamw32bit")  # fmt: skip
    assert out.count(" zero ") == 16


@pytest.mark.slow
def test_shards_of_four_ranks():
    out = check(4, "--zero", "1,3", "--stages", "align", "--adapters", "none", "--checkpointing", "off", "--rows", "4")
    assert out.count(" zero ") == 2

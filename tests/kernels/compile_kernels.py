"""Compile the package's kernels for an H100 or H200, on any machine: python compile_kernels.py [--full]

Runs the losses and the pooling on CPU tensors, but compiles each kernel instead of launching it, so that types,
constants and options are those of the package. Prints one JSON line for each compiled kernel.
"""

import json
import os
import sys
import warnings

os.environ.pop("TRITON_INTERPRET", None)  # read when the kernels are imported
warnings.simplefilter("ignore")

import torch
import triton
from dcr_kernels import triton_pairs, triton_pooling
from kernel_testing import LOSSES, call, make_batch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

FULL = "--full" in sys.argv
TARGET = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "i1",
    int: "i32",
    float: "fp32",
}
WIDTH = 1024
blocks_for = triton_pairs.blocks_for
compiled = set()
skipped: list[str] = []  # names of kernels


def compile_launch(kernel, *args, grid, warmup, **options):
    values = dict(zip((parameter.name for parameter in kernel.params), args, strict=False))
    constants = {name: value for name, value in options.items() if name in kernel.arg_names}
    constants |= {name: value for name, value in values.items() if value is None}
    constants |= {"UPCAST": False} if "UPCAST" in constants else {}  # only for the interpreter
    options = {name: value for name, value in options.items() if name not in kernel.arg_names}
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        value = values.get(name)
        if name in constants:
            signature[name] = "constexpr"
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]  # the alignment of memory that PyTorch allocates
            value.data.zero_()  # without computing anything
        else:
            signature[name] = TYPES[type(value)]
    source = ASTSource(kernel, signature, constants, attributes)
    if kernel.__name__ in skipped or source.hash() in compiled:
        return
    compiled.add(source.hash())
    result = triton.compile(source, target=TARGET, options=options)
    first_pointer = next(kind for kind in signature.values() if kind.startswith("*"))
    print(
        json.dumps(
            {
                "kernel": kernel.__name__,
                "kind": constants.get("KIND"),
                "dtype": first_pointer[1:],
                "shared": result.metadata.shared,
                "tensor_cores": any(name in result.asm["ptx"] for name in ("wgmma", "mma.sync")),
            }
        ),
        flush=True,
    )


def compile_losses(dtype: torch.dtype, num_rows: int, matrix_products: bool) -> None:
    """Compile with the tile sizes for `rows` rows, on a small batch."""
    triton_pairs.blocks_for = lambda dtype, _: blocks_for(dtype, num_rows)
    triton_pairs._TOWARD_KERNEL_ROWS = 0 if matrix_products else 10**9
    for name in LOSSES:
        h, labels = make_batch(8, WIDTH, 2, dtype)
        call(name, h.requires_grad_(), labels, backend="triton").backward()


def compile_pooling(dtype: torch.dtype) -> None:
    layouts = [
        (torch.zeros(2, 70, WIDTH, dtype=dtype), torch.ones(2, 70, dtype=torch.int64), None),
        (torch.zeros(140, WIDTH, dtype=dtype), None, torch.tensor([0, 70, 140])),
    ]
    for hidden, mask, cu_seqlens in layouts:
        triton_pooling.last(hidden, mask, cu_seqlens)
        for splits in (1, 2):
            h, _ = triton_pooling.mean(hidden.requires_grad_(), mask, cu_seqlens, splits)
            h.sum().backward()


JITFunction.run = compile_launch
os.environ["TRITON_INTERPRET"] = "1"  # otherwise it rejects CPU tensors
if FULL:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for num_rows in (256, 1024, 4096):
            compile_losses(dtype, num_rows, matrix_products=num_rows > 512)
        compile_pooling(dtype)
else:
    compile_losses(torch.bfloat16, 1024, matrix_products=True)
    skipped.append("statistics_kernel")
    compile_losses(torch.bfloat16, 256, matrix_products=False)
    compile_pooling(torch.bfloat16)

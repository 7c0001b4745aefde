"""Time and memory of the eNTK, compared with computing it column by column and with materialised Jacobians.

    python benchmarks/entk.py --csv benchmarks/results/entk.csv
    python benchmarks/entk.py --shape smollm2-135m --prompts 4 --columns 3 --csv benchmarks/results/entk.csv

Providers, for N prompts, k logits per prompt and all parameters:

- ours: `dcr_ds.diagnose.entk`.
- jvp: per prompt x and logit j, the gradient v of z_j(x) from a backward pass, then the forward-mode derivatives of the
  logits of all prompts x' in direction v, in batches: N·N·k JVPs.
- difference: the same with (z(θ + εv) − z(θ)) / ε instead of the JVP, which costs a forward pass and is not exact.
- jacobian: the gradients of all N·k logits in memory at once, and one matrix product.

For jvp and difference only --columns columns are timed, spread evenly over the N·k, and the time is extrapolated.
The model has random weights; a prompt has between 0.5 and 1.5 times --length random tokens. Errors are relative to the
columns of ours. Every provider runs in its own process. Times are CPU seconds, summed over threads.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measuring import (
    attempt,
    cpu_clock,
    free_bytes,
    in_lean_process,
    in_new_process,
    peak_bytes,
    set_process_environment,
)
from record import append, cpu_name, number, one_or_more_of, option_parser, provenance, rounded
from shapes import SHAPES, config_of
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoConfig, AutoModelForCausalLM

from dcr_ds.diagnose.entk.kernel import sample_products
from dcr_ds.diagnose.entk.layout import frozen, read_layout

PROVIDERS = ("ours", "jvp", "difference", "jacobian")
MEDIUM = {"num_hidden_layers": 6, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
MEDIUM |= {"intermediate_size": 688, "vocab_size": 8192, "tie_word_embeddings": True, "pad_token_id": 0}
BATCH = 8
EPSILON = 1e-3  # norm of the finite-difference step
LINE = "{:10}  {:>9}  {:>9}  {:>8}  {:>8}  {:>9}  {}"


class Problem:
    """A random model, prompts of three categories, and their largest logits."""

    def __init__(self, options: argparse.Namespace):
        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        medium = options.shape == "medium"
        config = AutoConfig.for_model("llama", **MEDIUM) if medium else config_of(options.shape)
        self.model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval().requires_grad_(False)
        self.k, count = options.k, 3 * options.prompts
        lengths = (options.length * (0.5 + torch.rand(count))).long().clamp(min=1).sort().values.tolist()
        self.prompts = [torch.randint(3, config.vocab_size, (length,)).tolist() for length in lengths]
        self.parameters = dict(self.model.named_parameters())
        batches = [self.prompts[start : start + BATCH] for start in range(0, count, BATCH)]
        self.batches = [self.padded(batch) for batch in batches]
        self.model.lm_head.register_forward_pre_hook(lambda _, args: (self.at_last(args[0]),))
        with torch.no_grad():
            self.tokens = torch.cat([self.all_logits(*batch).topk(self.k).indices for batch in self.batches])
        step = max(1, count * self.k // options.columns)
        self.columns = list(range(step // 2, count * self.k, step))[: options.columns]

    @staticmethod
    def padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Token ids [n, T], padded on the right (causal attention ignores that), and the last positions [n]."""
        length = max(map(len, prompts))
        ids = torch.tensor([[*prompt, *[0] * (length - len(prompt))] for prompt in prompts])
        return ids, torch.tensor([len(prompt) - 1 for prompt in prompts])

    def at_last(self, hidden: Tensor) -> Tensor:
        """The hidden states of the last positions, so that the head computes only those logits."""
        return hidden[torch.arange(len(hidden)), self.last][:, None]

    def all_logits(self, ids: Tensor, last: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
        self.last = last
        return functional_call(self.model, parameters or {}, (ids,), {"use_cache": False}).logits[:, 0]

    def logits(self, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """The k logits of every prompt [N · k]."""
        parts, start = [], 0
        for ids, last in self.batches:
            tokens = self.tokens[start : start + len(ids)]
            parts.append(self.all_logits(ids, last, parameters).gather(1, tokens).flatten())
            start += len(ids)
        return torch.cat(parts)

    def gradients(self, prompt: int, logits: list[int]) -> list[dict[str, Tensor]]:
        """The gradients of some logits of a prompt, one after the other."""
        self.model.requires_grad_(True)
        outputs = self.all_logits(*self.padded([self.prompts[prompt]]))[0]
        inputs = list(self.parameters.values())
        gradients = [
            torch.autograd.grad(outputs[self.tokens[prompt, j]], inputs, retain_graph=j != logits[-1]) for j in logits
        ]
        self.model.requires_grad_(False)
        return [dict(zip(self.parameters, values, strict=True)) for values in gradients]

    def by_columns(self, derivative: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        """The timed columns of the kernel [N · k, columns]; `derivative` maps a direction to that of all logits."""
        directions = (self.gradients(column // self.k, [column % self.k])[0] for column in self.columns)
        return torch.stack([derivative(direction) for direction in directions], dim=1)


def ours(problem: Problem) -> Tensor:
    layout = read_layout(problem.model, "all")
    problem.model.lm_head._forward_pre_hooks.clear()
    with frozen(layout.model):
        return sample_products(layout, problem.prompts, problem.k, BATCH)[0][:, problem.columns]


def by_jvp(problem: Problem) -> Tensor:
    def derivative(direction: dict[str, Tensor]) -> Tensor:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward-mode derivative
            return jvp(problem.logits, (problem.parameters,), (direction,))[1]

    return problem.by_columns(derivative)


@torch.no_grad()
def by_difference(problem: Problem) -> Tensor:
    start = problem.logits()

    def derivative(direction: dict[str, Tensor]) -> Tensor:
        values, steps = list(problem.parameters.values()), list(direction.values())
        size = EPSILON / float(torch.stack(torch._foreach_norm(steps)).norm())
        torch._foreach_add_(values, steps, alpha=size)
        moved = problem.logits()
        torch._foreach_sub_(values, steps, alpha=size)
        return (moved - start) / size

    with torch.enable_grad():
        return problem.by_columns(torch.no_grad()(derivative))


def by_jacobian(problem: Problem) -> Tensor:
    size = sum(parameter.numel() for parameter in problem.parameters.values())
    rows = len(problem.prompts) * problem.k
    if (needed := 4 * rows * size) > 0.6 * free_bytes("cpu"):
        raise MemoryError(f"the Jacobian takes {needed / 1e9:.0f} GB")
    jacobian = torch.empty(rows, size)
    for prompt in range(len(problem.prompts)):
        for j, gradients in enumerate(problem.gradients(prompt, list(range(problem.k)))):
            torch.cat([value.flatten() for value in gradients.values()], out=jacobian[prompt * problem.k + j])
    return (jacobian @ jacobian.T)[:, problem.columns]


ACTIONS = dict(zip(PROVIDERS, (ours, by_jvp, by_difference, by_jacobian), strict=True))


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds for the whole kernel, and its timed columns."""
    problem, columns = Problem(options), []
    problem.gradients(0, [0])
    if name == "jvp":
        by_jvp(Problem(argparse.Namespace(**vars(options) | {"columns": 1})))  # its first call is slow
    seconds = cpu_clock(lambda: columns.append(ACTIONS[name](problem))) / 1e3
    timed = len(problem.columns) if name in ("jvp", "difference") else problem.tokens.numel()
    sizes = {"parameters": sum(p.numel() for p in problem.parameters.values()), "samples": problem.tokens.numel()}
    sizes |= {"tokens": sum(map(len, problem.prompts)), "columns_timed": timed}
    return sizes | {"cpu_seconds": seconds * problem.tokens.numel() / timed, "columns": columns[0].double().numpy()}


def peak_mb(name: str, options: argparse.Namespace) -> float:
    """Peak memory beyond the model; a single column where columns are computed one by one."""
    problem = Problem(argparse.Namespace(**vars(options) | {"columns": 1}))
    return peak_bytes(lambda: ACTIONS[name](problem), "cpu") / 1e6


COLUMNS = ("parameters", "samples", "tokens", "columns_timed", "cpu_seconds", "ratio", "peak_mb", "error", "outcome")


def row_of(name: str, options: argparse.Namespace, baseline: dict[str, Any]) -> dict[str, Any]:
    """Measure a provider; `baseline` keeps the results of ours, for the ratio and the error."""
    result, outcome = attempt(in_new_process, measure, name, options)
    row = {"provider": name, "shape": options.shape, "prompts": 3 * options.prompts, "k": options.k}
    row |= {"threads": options.threads, "device": cpu_name()} | dict.fromkeys(COLUMNS) | {"outcome": outcome}
    if result is None:
        return row
    columns = result.pop("columns")
    if name == "ours":
        baseline |= {"columns": columns, "cpu_seconds": result["cpu_seconds"]}
    row |= result
    row["peak_mb"], _ = attempt(in_lean_process, peak_mb, name, options)
    if baseline:
        difference = ((columns - baseline["columns"]) ** 2).sum() / (baseline["columns"] ** 2).sum()
        row |= {"ratio": result["cpu_seconds"] / baseline["cpu_seconds"], "error": float(difference**0.5)}
    return rounded(row)


def parse() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("--providers", type=one_or_more_of(PROVIDERS), default=list(PROVIDERS), help="default: all")
    parser.add_argument("--shape", choices=("medium", *SHAPES), default="medium", help="default: %(default)s")
    parser.add_argument("--prompts", type=int, default=8, help="per category (default: %(default)s)")
    parser.add_argument("--length", type=int, default=24, help="mean tokens per prompt (default: %(default)s)")
    parser.add_argument("--k", type=int, default=10, help="logits per prompt (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=4, help="columns to time (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        options.shape, options.prompts, options.length, options.k = "tiny", 2, 6, 3
    if min(options.prompts, options.length, options.k, options.columns, options.threads) < 1:
        parser.error("--prompts, --length, --k, --columns and --threads: at least 1")
    return options


def main() -> None:
    options = parse()
    set_process_environment("cpu", options.threads)
    head, baseline = provenance("torch", "transformers"), {}
    print(LINE.format("provider", "columns", "CPU s", "ratio", "MB", "error", "outcome"))
    for name in options.providers:
        row = head | row_of(name, options, baseline)
        numbers = [number(row[column]) for column in ("columns_timed", "cpu_seconds", "ratio", "peak_mb", "error")]
        print(LINE.format(name, *numbers, row["outcome"]), flush=True)
        if options.csv:
            append(options.csv, row)


if __name__ == "__main__":
    main()

"""The section `evaluate` of a recipe: benchmarks and judges."""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from dcr_ds.recipe.engines import LOCAL, checked_engine
from dcr_ds.recipe.fields import MAX_SEED, Auto, Count, Data, DataSource, PositiveInt, Section, Texts
from dcr_ds.recipe.layout import ALIGNED, BASE, CONTROL, ModelName


class OwnBenchmark(Section):
    """A prompt set of your own, and the behaviour wanted on it."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of its folder and of its row in reports"
    )
    prompts: Data = Field(description="the prompt set")
    wanted: Literal["comply", "refuse"] = Field(description="what a good model does with each of its prompts")
    max_new_tokens: PositiveInt | None = Field(
        None, description="longest answer, in tokens; used with evaluate.max_new_tokens: auto"
    )
    counterpart: str | None = Field(
        None, description="name of the benchmark of harmful prompts that this harmless one is compared with"
    )


class NamedBenchmark(Section):
    """A benchmark or suite that docs/benchmark-sets.md lists. A plain string in its place is its `name`."""

    name: str = Field(
        description="xstest-safe, or-bench-hard, … or a suite: builtin, quick, paper; NAME+ATTACK is attacked"
    )
    source: str | None = Field(None, description="a copy of it: file, URL or hub id (default: evaluate.local_data)")
    subset: str | None = Field(None, description="configuration of the hub data set (default: the declared one)")
    split: str | None = Field(None, description="split of the hub data set (default: the declared one)")
    columns: dict[str, str] = Field({}, description="column in the source by our column name, if the declared is wrong")
    where: dict[str, Texts] | None = Field(None, description="rows that count (default: the declared ones)")
    rows: PositiveInt | None = Field(None, description="maximum number of prompts, sampled with seed 0")


def _benchmark(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _kind_of_benchmark(value: Any) -> str:
    own = isinstance(value, OwnBenchmark) or (isinstance(value, dict) and bool({"prompts", "wanted"} & value.keys()))
    return "OwnBenchmark" if own else "NamedBenchmark"


AttackName = Literal["prefill", "suppression", "role_play", "language"]

AnyBenchmark = Annotated[
    Annotated[OwnBenchmark, Tag("OwnBenchmark")] | Annotated[NamedBenchmark, Tag("NamedBenchmark")],
    Discriminator(_kind_of_benchmark),
    BeforeValidator(_benchmark, json_schema_input_type=str | OwnBenchmark | NamedBenchmark),
]


PlainJudge = Literal["rules", "xstest_strings", "advbench_strings", "scans_strings", "refusal_direction_strings"]
JudgeName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of its file of verdicts and of its row in reports"
    ),
]
JudgedMatter = Literal["refusal", "harm"]


class EndpointSection(Section):
    key_env: str = Field("OPENAI_API_KEY", description="environment variable with the endpoint's key")
    concurrency: Auto | PositiveInt = Field(
        "auto", description="requests in flight; auto: 64 with evaluate.engine: vllm, else 8"
    )
    timeout_seconds: float = Field(
        60.0, gt=0, le=86_400, description="retry a request after this many seconds without a reply"
    )
    retries: Count = Field(5, description="attempts after the first, for temporary failures")
    limit_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="the field that limits an answer"
    )
    temperature: float | None = Field(0.0, ge=0, description="of sampling; null: not sent")
    seed: int | None = Field(0, ge=0, le=MAX_SEED, description="of sampling; null: not sent")


class LlmJudge(Section):
    """A language model behind an OpenAI-compatible endpoint that labels answers by a rubric."""

    kind: Literal["llm"] = Field(description="a language model behind an endpoint")
    name: JudgeName
    url: str = Field(description="base URL of the endpoint, e.g. http://localhost:8000/v1")
    model: str = Field(description="name of the model at the endpoint")
    judges: JudgedMatter = Field("refusal", description="rubric: whether the answer refuses, or whether it is harmful")
    key_env: str = Field("OPENAI_API_KEY", description="environment variable with the endpoint's key")
    max_tokens: PositiveInt = Field(512, description="longest reply, in tokens: a reason, then the label")
    concurrency: PositiveInt = Field(8, description="requests in flight")
    timeout_seconds: float = Field(
        60.0, gt=0, le=86_400, description="retry a request after this many seconds without a reply"
    )
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(
        {}, description="variables of its chat template, such as enable_thinking: false"
    )


class GuardJudge(Section):
    """A model trained to label answers, as a declaration describes it."""

    kind: Literal["guard"] = Field(description="a guard model, loaded in this process")
    name: JudgeName
    guard: str = Field(
        description="qwen3guard_gen, llama_guard_3, wildguard, harmbench_cls, refusal_classifier, sequence_classifier, "
        "or a JSON file"
    )
    judges: JudgedMatter = Field(description="what it labels: whether the answer refuses, or whether it is harmful")
    source: str | None = Field(None, description="model folder or hub id (default: the declaration's)")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    format: str | None = Field(None, description="text file with {prompt} and {response} (default: the declaration's)")
    labels: dict[str, str] = Field({}, description="label by the model's output (default: the declaration's)")
    batch_size: PositiveInt = Field(8, description="answers per forward pass")


JUDGE_KINDS: dict[str, type[Section]] = {"llm": LlmJudge, "guard": GuardJudge}


def _kind_of_judge(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return JUDGE_KINDS[kind].__name__ if kind else "str"


def _known_judge(value: Any) -> Any:
    """Raise for an unknown name, kind or field of a judge, with the closest known one."""
    if isinstance(value, str):
        _refuse_misspelt("judge", value, get_args(PlainJudge))
    elif isinstance(value, dict):
        kind: Any = value.get("kind")
        _refuse_misspelt("kind of judge", kind, list(JUDGE_KINDS))
        for key in value:
            _refuse_misspelt(f"field in a judge of kind {kind}", key, list(JUDGE_KINDS[kind].model_fields))
    elif not isinstance(value, LlmJudge | GuardJudge):
        raise ValueError(f"evaluate.judges: must be names of judges, or mappings with a kind (got {value!r})")
    return value


def _refuse_misspelt(what: str, word: Any, known: Sequence[str]) -> None:
    if word not in known:
        close = difflib.get_close_matches(str(word), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
        raise ValueError(f"evaluate.judges: unknown {what}: {word!r}; {hint}")


def _distinct_judges(judges: list) -> list:
    names = [judge if isinstance(judge, str) else judge.name for judge in judges]
    if len(names) != len(set(names)):
        raise ValueError("evaluate.judges: two judges have the same name and would write the same file of verdicts")
    return judges


AnyJudge = Annotated[
    Annotated[PlainJudge, Tag("str")] | Annotated[LlmJudge, Tag("LlmJudge")] | Annotated[GuardJudge, Tag("GuardJudge")],
    Discriminator(_kind_of_judge),
    BeforeValidator(_known_judge, json_schema_input_type=PlainJudge | LlmJudge | GuardJudge),
]


class EvaluateSection(Section):
    models: list[ModelName] = Field(
        [BASE, CONTROL, ALIGNED], min_length=1, description="models that answer the benchmarks, if they exist"
    )
    benchmarks: list[AnyBenchmark] = Field(
        ["builtin"],  # type: ignore[list-item]  # validated like any other value: becomes a NamedBenchmark
        min_length=1,
        description="names of benchmarks or suites (docs/benchmark-sets.md), or mappings",
    )
    attacks: list[AttackName] = Field(
        [], description="attacks (docs/evaluate.md) that every benchmark of harmful prompts is repeated under"
    )
    local_data: str | None = Field(
        None, description="folder of local copies of the named benchmarks (default: the hub)"
    )
    judges: Annotated[list[AnyJudge], AfterValidator(_distinct_judges)] = Field(
        ["rules", "xstest_strings"], min_length=1, description="judges of the answers: names, or mappings with a kind"
    )
    max_new_tokens: Auto | PositiveInt = Field(
        128, description="longest answer, in tokens, decoded greedily; auto: the value of each benchmark's authors"
    )
    batch_size: PositiveInt = Field(32, description="prompts per generation batch")
    ranks_per_copy: Auto | PositiveInt = Field(
        "auto",
        description="GPUs of a node that hold one copy of a model together (tensor parallelism); auto: as few as fit",
    )
    engine: Annotated[str, AfterValidator(checked_engine)] = Field(
        LOCAL,
        description="what generates the answers: transformers, or a server that rank 0 starts and ends: vllm, or a "
        "command with {model}, {host} and {port} (docs/evaluate.md)",
    )
    server_minutes: float = Field(
        30.0, gt=0, le=10_080, description="time that a server of evaluate.engine has to become ready"
    )
    endpoint: EndpointSection = Field(
        EndpointSection(), description="requests to a model behind an endpoint (dcr-ds evaluate URL#MODEL)"
    )
    general: Data = Field(
        DataSource(split="held_out"), description="conversations on whose answers the loss of each model is measured"
    )

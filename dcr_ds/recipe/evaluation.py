"""The section `evaluate` of a recipe: benchmarks and judges."""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from dcr_ds.recipe.fields import Auto, Data, DataSource, PositiveInt, Section
from dcr_ds.recipe.layout import ALIGNED, BASE, CONTROL, ModelName


class OwnBenchmark(Section):
    """A prompt set of the user's own with what is wanted of the model."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder and row name")
    prompts: Data = Field(description="the prompt set")
    wanted: Literal["comply", "refuse"] = Field(description="what a good model does with every prompt of it")
    max_new_tokens: PositiveInt | None = Field(
        None, description="its longest answer, with evaluate.max_new_tokens: auto"
    )
    counterpart: str | None = Field(
        None, description="name of the benchmark of harmful prompts that this harmless one is compared with"
    )


class NamedBenchmark(Section):
    """A benchmark or suite that docs/BENCHMARK_SETS.md lists. A plain string in its place is its `name`."""

    name: str = Field(description="xstest-safe, or-bench-hard, … or a suite: builtin, quick, paper")
    source: str | None = Field(None, description="a copy of it: a file, URL or hub id (default: evaluate.local_data)")
    rows: PositiveInt | None = Field(None, description="answer at most this many of its prompts, drawn with seed 0")


def _benchmark(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _kind_of_benchmark(value: Any) -> str:
    own = isinstance(value, OwnBenchmark) or (isinstance(value, dict) and bool({"prompts", "wanted"} & value.keys()))
    return "OwnBenchmark" if own else "NamedBenchmark"


AnyBenchmark = Annotated[
    Annotated[OwnBenchmark, Tag("OwnBenchmark")] | Annotated[NamedBenchmark, Tag("NamedBenchmark")],
    Discriminator(_kind_of_benchmark),
    BeforeValidator(_benchmark, json_schema_input_type=str | OwnBenchmark | NamedBenchmark),
]


PlainJudge = Literal["rules", "xstest_strings", "advbench_strings", "scans_strings", "refusal_direction_strings"]
JudgeName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="file and row name of its verdicts")
]
JudgedMatter = Literal["refusal", "harm"]


class LlmJudge(Section):
    """A language model behind an OpenAI-compatible endpoint that labels answers by a rubric."""

    kind: Literal["llm"] = Field(description="a language model behind an endpoint")
    name: JudgeName
    url: str = Field(description="base address of the endpoint, e.g. http://localhost:8000/v1")
    model: str = Field(description="the model's name at the endpoint")
    judges: JudgedMatter = Field("refusal", description="by which rubric; harm is not refusal")
    key_env: str = Field("OPENAI_API_KEY", description="environment variable that holds the endpoint's key")
    max_tokens: PositiveInt = Field(512, description="longest reply: a reason, then the label")
    concurrency: PositiveInt = Field(8, description="requests under way at once")
    timeout_seconds: float = Field(60.0, gt=0, description="retry a request that is silent for so long")


class GuardJudge(Section):
    """A model trained to label answers, as a declaration describes it."""

    kind: Literal["guard"] = Field(description="a model trained to judge, loaded here")
    name: JudgeName
    guard: str = Field(description="llama_guard_3, wildguard, harmbench_cls, sequence_classifier, or a JSON file")
    judges: JudgedMatter = Field(description="which of its readings; harm is not refusal")
    source: str | None = Field(None, description="model folder or hub id (default: the declaration's)")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    format: str | None = Field(None, description="text file with {prompt} and {response} (default: the declaration's)")
    labels: dict[str, str] = Field({}, description="what the model says → our label (default: the declaration's)")
    batch_size: PositiveInt = Field(8, description="answers judged together")


JUDGE_KINDS: dict[str, type[Section]] = {"llm": LlmJudge, "guard": GuardJudge}


def _kind_of_judge(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return JUDGE_KINDS[kind].__name__ if kind else "str"


def _known_judge(value: Any) -> Any:
    """Refuse a judge's misspelt name, kind or field, each with the nearest there is."""
    if isinstance(value, str):
        _refuse_misspelt("judge", value, get_args(PlainJudge))
    elif isinstance(value, dict):
        kind: Any = value.get("kind")
        _refuse_misspelt("kind of judge", kind, list(JUDGE_KINDS))
        for key in value:
            _refuse_misspelt(f"field in a judge of kind {kind}", key, list(JUDGE_KINDS[kind].model_fields))
    elif not isinstance(value, LlmJudge | GuardJudge):
        raise ValueError(f"evaluate.judges: wants names of judges, or mappings with a kind (got {value!r})")
    return value


def _refuse_misspelt(what: str, word: Any, known: Sequence[str]) -> None:
    if word not in known:
        near = difflib.get_close_matches(str(word), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"evaluate.judges: unknown {what}: {word!r}; {hint}")


def _distinct_judges(judges: list) -> list:
    names = [judge if isinstance(judge, str) else judge.name for judge in judges]
    if len(names) != len(set(names)):
        raise ValueError("evaluate.judges: two judges have the same name, and would write the same file of verdicts")
    return judges


AnyJudge = Annotated[
    Annotated[PlainJudge, Tag("str")] | Annotated[LlmJudge, Tag("LlmJudge")] | Annotated[GuardJudge, Tag("GuardJudge")],
    Discriminator(_kind_of_judge),
    BeforeValidator(_known_judge, json_schema_input_type=PlainJudge | LlmJudge | GuardJudge),
]


class EvaluateSection(Section):
    models: list[ModelName] = Field(
        [BASE, CONTROL, ALIGNED], min_length=1, description="which models answer the benchmarks, if they exist"
    )
    benchmarks: list[AnyBenchmark] = Field(
        ["builtin"],  # type: ignore[list-item]  # validated like any other value: becomes a NamedBenchmark
        min_length=1,
        description="names of benchmarks or suites (docs/BENCHMARK_SETS.md), or mappings",
    )
    local_data: str | None = Field(
        None, description="folder of local copies of the named benchmarks (default: the hub)"
    )
    judges: Annotated[list[AnyJudge], AfterValidator(_distinct_judges)] = Field(
        ["rules", "xstest_strings"], min_length=1, description="who judges the answers: names, or mappings with a kind"
    )
    max_new_tokens: Auto | PositiveInt = Field(
        128, description="longest answer, in tokens; decoding is greedy; auto: as each benchmark's authors have it"
    )
    batch_size: PositiveInt = Field(32, description="prompts generated together")
    general: Data = Field(
        DataSource(split="held_out"), description="conversations whose answers' loss is measured for every model"
    )

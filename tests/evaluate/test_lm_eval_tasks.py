"""The lm-eval tasks: loaded by lm-eval itself from a local copy, in step with the declarations."""

import json
from pathlib import Path

import pytest

from dcr_ds.data.benchmarks import declarations

pytest.importorskip("lm_eval", reason="the tasks need lm-eval")
FOLDER = Path(__file__).resolve().parents[2] / "dcr_ds" / "evaluate" / "lm_eval_tasks"
NAMES = [name for name, entry in declarations().items() if entry.wanted == "comply" and not entry.shipped]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    (folder / "coconot").mkdir()
    rows = [{"id": f"r{i}", "prompt": f"{i}?", "category": "c", "subcategory": "s", "response": ""} for i in range(9)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "coconot" / "coconot_contrast_eval.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def tasks(local):
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(FOLDER), include_defaults=False, metadata={"local_data": str(local), "rows": 5})


def test_there_is_a_task_for_every_over_refusal_set(tasks):
    without = {"phtest-controversial", "ms-xsb-safe"}  # disputed; of several turns
    expected = {f"over_refusal_{name.replace('-', '_')}" for name in NAMES if name not in without}
    assert set(tasks.all_tasks) == expected | {"over_refusal"}


def test_a_task_generates_answers_and_judges_them(tasks):
    from lm_eval.tasks import get_task_dict

    task = get_task_dict(["over_refusal_coconot_contrast"], tasks)["over_refusal_coconot_contrast"]
    documents = list(task.test_docs())
    assert len(documents) == 5 and task.doc_to_text(documents[0]) == documents[0]["prompt"]
    for answer, rate in (("I'm sorry, but no.", 0.0), ("It is seven.", 1.0), (" ", 0.0)):
        assert task.process_results(documents[0], [answer]) == {"compliance_rate": rate}
    assert task.config.generation_kwargs["do_sample"] is False


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_answers_are_as_long_as_the_benchmark_allows(file):
    import yaml

    task = yaml.safe_load(file.read_text())
    if "group" not in task:
        longest = declarations()[task["metadata"]["benchmark"]].max_new_tokens or 256
        assert task.get("generation_kwargs", {"max_gen_toks": 256})["max_gen_toks"] == longest

"""Bad recipes and options: the message says what is wrong, where it was set, and what to do."""

import pytest

from dcr_ds.cli import main

COMMAND_LINE = {
    "unknown field": (["--refine.layr", "1"], ["--refine.layr", "did you mean refine.layer?"]),
    "unknown section": (["--refin.layer", "1"], ["--refin.layer", "did you mean refine.layer?"]),
    "unknown field of a data set": (["--data.toxic.row", "3"], ["--data.toxic.row", "did you mean data.toxic.rows?"]),
    "a name of TRL": (["--per_device_train_batch_size", "4"], ["did you mean align.micro_batch?"]),
    "a name of transformers without a field": (["--resume_from_checkpoint", "true"], ["the same command resumes"]),
    "a name of axolotl, for stage 1": (["--refine.lora_r", "4"], ["did you mean refine.lora.rank?"]),
    "a name of another trainer in a part without it": (["--evaluate.lr", "4"], ["--evaluate.lr", "unknown field"]),
    "unlike any field": (["--qqqq", "1"], ["--qqqq", "--help"]),
    "a word for a number": (["--refine.layer", "two"], ["the command line: refine.layer", "'two'"]),
    "a number for a choice": (["--align.adapter", "3"], ["the command line: align.adapter", "'none' or 'lora'", "3"]),
    "yes for a number": (["--refine.layer", "yes"], ["the command line: refine.layer", "a number", "true"]),
    "a word for a list": (["--stages", "refine,align"], ["the command line: stages", "a list, such as [refine,align]"]),
    "a field inside of a number": (["--refine.layer.x", "1"], ["unknown field 'refine.layer.x'", "refine.layer?"]),
    "no output, as of a variable that is not set": (["--output", ""], ["the command line: output", "not be empty"]),
    "a variable without braces": (["--output", "$SCRATCH/runs"], ["output: $scratch/runs: write ${scratch}"]),
    "a value for a section": (
        ["--refine", "3"],
        ["the command line: refine", "a mapping of fields: set its fields, such as refine.", "3"],
    ),
    "a model for the section": (["--model", "llama"], ["model: must be a mapping", "such as model.source"]),
    "below the range": (["--refine.margin", "0"], ["the command line: refine.margin", "greater than 0", "0"]),
    "above the range": (["--align.learning_rate", "2"], ["the command line: align.learning_rate", "less than", "2"]),
    "not finite": (["--refine.scale", ".inf"], ["the command line: refine.scale", "finite"]),
    "a batch without positives": (["--refine.global_batch", "2"], ["refine.global_batch", "at least 4"]),
    "unknown loss": (["--refine.loss", "cirle"], ["the command line: refine.loss", "cirle", "circle"]),
    "odd batch": (["--refine.global_batch", "5"], ["the command line: refine.global_batch", "even"]),
    "micro-batch above the batch": (["--align.micro_batch", "99"], ["align.micro_batch", "align.global_batch", "auto"]),
    "a packed row too short": (
        ["--align.packed_length", "256"],
        ["the command line: align.packed_length", "256", "align.max_length (512)", "fits in no row", "auto"],
    ),
    "stages out of order": (["--stages", "[align, refine]"], ["the command line: stages", "order"]),
    "unknown stage": (["--stages", "[refine, tune]"], ["the command line: stages", "'tune'"]),
    "not YAML": (["--stages", "[refine"], ["--stages", "'[refine'"]),
    "a name with a slash": (["--name", "a/b"], ["the command line: name", "a/b"]),
    "no value": (["--refine.layer"], ["--refine.layer", "needs a value"]),
    "an option for a value": (["--refine.layer", "--seed", "1"], ["--refine.layer", "needs a value"]),
    "two recipes": (["other.yaml"], ["two recipes", "other.yaml"]),
    "unknown stage to redo": (["--redo", "nonsense"], ["--redo", "'nonsense'", "refine, align, evaluate or all"]),
    "the last block": (["--refine.layer", "2"], ["refine.layer: 2", "2 blocks", "1 to 1"]),
    "a layer far out": (["--refine.layer", "99"], ["refine.layer: 99", "1 to 1"]),
}
YAML = {
    "unknown field": ("refine:\n  layr: 1\n", ["line 2", "'refine.layr'", "did you mean refine.layer?"]),
    "unknown section": ("refin: {layer: 1}\n", ["line 1", "'refin'", "did you mean refine?"]),
    "unknown field of a data set": ("data:\n  toxic: {sorce: x}\n", ["line 2", "'data.toxic.sorce'", "source?"]),
    "unknown field of a benchmark": (
        "evaluate:\n  benchmarks:\n  - {name: a, prompt: x, wanted: comply}\n",
        ["line 2", "evaluate.benchmarks.0.prompt", "prompts"],
    ),
    "a missing field of a benchmark": (
        "evaluate:\n  benchmarks:\n  - {name: a, prompts: x}\n",
        ["line 2", "evaluate.benchmarks.0.wanted", "required"],
    ),
    "a word for a number": ("seed: one\n", ["line 1", "seed", "'one'"]),
    "a list for a section": ("refine: [1]\n", ["line 1", "refine", "[1]"]),
    "a number for a field's name": ("1: x\n", ["line 1", "1"]),
    "out of range": ("refine:\n\n  margin: 7\n", ["line 3", "refine.margin", "less than 1", "7"]),
    "odd batch": ("refine:\n  global_batch: 5\n", ["line 2", "refine.global_batch", "even"]),
    "not YAML": ("refine:\n  layer: [1\nseed: 0\n", ["line 3", "not valid YAML"]),
    "true for a number": ("refine:\n  learning_rate: true\n", ["line 2", "refine.learning_rate", "a number"]),
    "a section without fields": ("refine:\n", ["line 1", "refine: must be a mapping of fields; leave it out"]),
    "it extends nothing": ("extends:\n", ["extends: must name another recipe"]),
    "it extends a folder": ("extends: .\n", ["is a folder"]),
    "a tab": ("refine:\n\tlayer: 1\n", ["line 2", "not valid YAML"]),
    "a list": ("- refine\n", ["a mapping", "list"]),
    "a word": ("refine\n", ["a mapping", "str"]),
    "an object of Python": ("seed: !!python/name:os.system\n", ["line 1", "not valid YAML"]),
    "it extends no file": ("extends: nowhere.yaml\n", ["nowhere.yaml", "no such recipe"]),
    "it extends itself": ("extends: bad.yaml\n", ["extends", "bad.yaml"]),
}


@pytest.mark.parametrize("case", COMMAND_LINE)
def test_bad_option(refused, case):
    arguments, expected = COMMAND_LINE[case]
    message = refused(*arguments)
    assert all(word.lower() in message.lower() for word in expected), message


@pytest.mark.parametrize("case", YAML)
def test_bad_recipe_file(refused, tmp_path, case):
    text, expected = YAML[case]
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    message = refused(start_from=str(path))
    assert message.startswith(str(tmp_path)), message
    assert all(word.lower() in message.lower() for word in expected), message


def test_all_problems_are_reported_at_once(refused):
    message = refused("--refine.margin", "7", "--align.epochs", "-1", "--seed", "x")
    assert [line.split(": ")[1] for line in message.splitlines()] == ["refine.margin", "align.epochs", "seed"]


def test_missing_recipe_file(refused):
    message = refused(start_from="recipes/nowhere.yaml")
    assert message.startswith("recipes/nowhere.yaml: ") and "recipes/smollm2-135m.yaml" in message


def test_recipe_file_that_is_not_utf8(refused, tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: é".encode("latin-1"))
    message = refused(start_from=str(path))
    assert message.startswith(str(path)) and "UTF-8" in message


def test_recipe_file_that_is_binary(refused, tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"a: \0")
    assert refused(start_from=str(path)).startswith(str(path))


def test_unknown_command(capsys):
    assert main(["tarin"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command 'tarin'; did you mean train?")


@pytest.mark.parametrize(
    "words, message",
    [
        (["plan", "recipes/smollm2-135m.yaml", "--gpuss", "8"], "--gpuss; did you mean --gpus?"),
        (["evaluate", "a", "--benchmark", "builtin", "--out", "b"], "--benchmark; did you mean --benchmarks?"),
        (["plan", "--refine.layr", "8"], "Did you mean refine.layer?"),
        (["plan", "recipes/smolm2-135m.yaml"], "Did you mean recipes/smollm2-135m.yaml?"),
        (["verify", "nowhere", "nothing"], "MODEL: nothing is not a model folder"),
        (["diagnose", "layers", "nothing"], "MODEL: nothing is not a model folder"),
        (["ability", "nothing"], "MODEL: nothing is not a model folder"),
    ],
)
def test_mistyped_names_of_a_command(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err

"""Answers, and the classes of a refusal classifier, for the tests of guards."""

from dcr_ds.judges.base import Answer

ANSWERS = [Answer("how " * (i % 3), f"answer {i} " * (1 + i * 5 % 7) + "so") for i in range(7)]
FORMAT = "Question: {prompt}\nAnswer: {response}\nHarmful?"
CLASSES = {0: "NORMAL", 1: "REJECTION"}
REJECTION = {"NORMAL": "compliance", "REJECTION": "full_refusal"}

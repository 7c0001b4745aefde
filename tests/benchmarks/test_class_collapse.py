"""The figures of the class-collapse benchmark."""

import sys

import torch
from scripts import FOLDER

sys.path.insert(0, str(FOLDER))
from class_collapse import first_topics, nearest_twins


def test_nearest_twins_counts_both_directions_around_the_class_means():
    topics = torch.eye(4)
    shift = torch.tensor([9.0, 0, 0, 0])  # between the classes, larger than any topic
    hidden = torch.cat([topics, (topics + shift)[[1, 0, 2, 3]]])
    labels, pairs = torch.arange(8) // 4, torch.tensor([0, 1, 2, 3, 1, 0, 2, 3])
    assert nearest_twins(hidden, labels, pairs) == 1
    swapped = pairs[[0, 1, 2, 3, 5, 4, 6, 7]]
    assert nearest_twins(hidden, labels, swapped) == 0.5


def test_half_of_the_pairs_are_of_the_first_categories():
    categories = {"a": "z", "b": "x", "c": "y", "d": "x"}
    assert first_topics(sorted(categories), categories) == {"b", "d"}

"""The data of a run: read, check, split and sample prompt sets, conversations and preferences; find leakage.

Nothing here imports torch: data is checked before a process group or a model exists.
"""

from dcr_ds.data.benchmarks import Benchmark
from dcr_ds.data.conversations import read_conversations
from dcr_ds.data.labelled import read_labelled
from dcr_ds.data.leakage import Overlap, describe, find_overlaps
from dcr_ds.data.load import RunData, load_data
from dcr_ds.data.preferences import read_preferences
from dcr_ds.data.prompts import read_prompts
from dcr_ds.data.records import (
    Conversation,
    ConversationSet,
    DataSet,
    LabelledAnswer,
    LabelledSet,
    Preference,
    PreferenceSet,
    Prompt,
    PromptSet,
)
from dcr_ds.data.sampler import ContrastiveSampler, draw
from dcr_ds.data.splitting import HeldOutSplit, split_held_out

__all__ = [
    "Benchmark",
    "ContrastiveSampler",
    "Conversation",
    "ConversationSet",
    "DataSet",
    "HeldOutSplit",
    "LabelledAnswer",
    "LabelledSet",
    "Overlap",
    "Preference",
    "PreferenceSet",
    "Prompt",
    "PromptSet",
    "RunData",
    "describe",
    "draw",
    "find_overlaps",
    "load_data",
    "read_conversations",
    "read_labelled",
    "read_preferences",
    "read_prompts",
    "split_held_out",
]

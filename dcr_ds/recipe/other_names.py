"""The names that fields have in TRL, transformers, axolotl and LLaMA-Factory: for "did you mean".

docs/comparison.md lists them, and a test compares both.
"""

OTHER_NAMES = {  # name there → field here; of a field that both stages have, that of align
    **dict.fromkeys(("model_name_or_path", "base_model", "model_name"), "model.source"),
    **dict.fromkeys(("bf16", "fp16", "torch_dtype"), "model.dtype"),
    **dict.fromkeys(("attn_implementation", "flash_attention", "flash_attn"), "model.attention"),
    **dict.fromkeys(("use_liger_kernel", "enable_liger_kernel"), "model.kernels"),
    "gradient_checkpointing": "model.activation_checkpointing",
    **dict.fromkeys(("load_in_4bit", "quantization_bit"), "model.quantize"),
    **dict.fromkeys(("dataset_name", "dataset", "datasets"), "data.general"),
    **dict.fromkeys(("per_device_train_batch_size", "micro_batch_size"), "align.micro_batch"),
    **dict.fromkeys(("gradient_accumulation_steps", "batch_size"), "align.global_batch"),
    **dict.fromkeys(("num_train_epochs", "num_epochs"), "align.epochs"),
    "lr": "align.learning_rate",
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), "align.schedule"),
    "optim": "align.optimizer",
    **dict.fromkeys(("max_seq_length", "sequence_len", "cutoff_len"), "align.max_length"),
    **dict.fromkeys(("sample_packing", "neat_packing"), "align.packing"),
    "rl": "align.method",
    **dict.fromkeys(("use_peft", "finetuning_type"), "align.adapter"),
    **dict.fromkeys(("r", "lora_r", "lora_rank"), "align.lora.rank"),
    "lora_alpha": "align.lora.alpha",
    "lora_dropout": "align.lora.dropout",
    **dict.fromkeys(("lora_target_modules", "lora_target", "target_modules"), "align.lora.targets"),
    **dict.fromkeys(("beta", "pref_beta"), "align.dpo.beta"),
    **dict.fromkeys(("loss_type", "pref_loss"), "align.dpo.loss"),
    "output_dir": "output",
    "run_name": "name",
    "report_to": "track",
    "logging_steps": "log_every",
    "save_steps": "checkpoint.every_steps",
    "save_total_limit": "checkpoint.keep",
}

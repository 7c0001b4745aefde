"""Refine, align and evaluate a model as a recipe says.

    deepspeed train.py                                                     the demo, with or without a GPU
    deepspeed --num_gpus 8 train.py recipes/llama-3-8b.yaml --deepspeed ds_configs/zero3.json
    torchrun --nproc_per_node 8 train.py recipes/qwen2.5-7b.yaml
    python train.py recipes/smollm2-135m.yaml --refine.layer 20            one process

`python train.py --help` lists the options and the sections of fields, `--help refine` the fields of a section.
"""

from dcr_ds.cli import train_as_rank

if __name__ == "__main__":
    train_as_rank()

"""What a run will need, before it runs: memory and time per GPU, the ZeRO stage and micro-batch that fit, and how they
change with the number of GPUs. Loads no weight and needs no GPU.

rehearsal.py runs the project's own steps on fake tensors; states.py knows what DeepSpeed keeps; memory.py adds them up;
traffic.py counts what ranks send each other; clock.py turns operations and bytes into seconds; choose.py picks.
"""

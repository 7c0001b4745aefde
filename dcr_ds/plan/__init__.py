"""Plan a run before it starts: memory and time per GPU, the ZeRO stage and micro-batch that fit, scaling with nodes.

Needs no GPU and loads no weights. rehearsal.py runs the passes of passes.py on fake tensors; states.py lists what
DeepSpeed keeps; memory.py adds both up; traffic.py counts what ranks send each other; clock.py turns operations and
bytes into seconds; choose.py selects ZeRO stage and micro-batch.
"""

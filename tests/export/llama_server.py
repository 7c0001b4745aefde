"""Serves a GGUF file with llama.cpp's own server, from the package xllamacpp, until it is stopped; prints its address.

python llama_server.py FILE CONTEXT SLOTS. The slots share the context, as with llama-server's defaults.
"""

import signal
import sys

import xllamacpp

file, context, slots = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path, params.model_alias = file, "tiny"
params.hostnames, params.port = ["127.0.0.1"], 0
params.n_ctx, params.n_parallel, params.kv_unified = int(context), int(slots), True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.warmup = False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
signal.pause()

"""Launched by test_watchdog.py as one or two ranks without a launcher: MODE and HANG_MINUTES of the watchdog.

Prints "ready" once the ranks have joined.
"""

import errno
import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed

from dcr_ds.engine.distributed import Ranks
from dcr_ds.engine.watch import watchdog
from dcr_ds.engine.watch.stop import raise_on_stop_signal
from dcr_ds.errors import Interrupted
from dcr_ds.progress import heartbeat

mode, hang_minutes = sys.argv[1], float(sys.argv[2])
watchdog.POLL_SECONDS, watchdog.GONE_SECONDS, watchdog.REPORT_SECONDS = 0.3, 4.0, 1.0
watchdog.LOST_SECONDS, watchdog.STORE_TIMEOUT = 1.5, timedelta(seconds=2)
rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
with raise_on_stop_signal(), watchdog.Watchdog(hang_minutes) as dog:
    torch.distributed.init_process_group("gloo")
    dog.join(Ranks(rank, world_size, rank, torch.device("cpu")))
    heartbeat(f"align step {7 + rank}, 28 samples")
    time.sleep(3 * watchdog.POLL_SECONDS)  # until the others have received it
    print("ready", flush=True)
    if mode == "rank 1 fails" and rank == 1:
        raise MemoryError("nothing left")
    if mode == "the disk of rank 1 is full" and rank == 1:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if mode == f"rank {rank} is stopped":
        raise Interrupted("stopped by SIGTERM")
    if mode == "rank 0 makes progress" and rank == 0:  # the others wait longer than hang_minutes
        for number in range(9):
            time.sleep(1)
            heartbeat(f"judge {number}")
    if mode == f"rank {rank} sleeps":
        time.sleep(60)
    torch.distributed.barrier()
torch.distributed.destroy_process_group()

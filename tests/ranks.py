"""Run a Python program as several ranks, as srun would, without the seconds in which a launcher imports its packages.

    python ranks.py RANKS PORT PROGRAM ARGUMENT…

Ends with the exit code of the first rank that fails, and ends the others then.
"""

import os
import subprocess
import sys
import time

POLL_SECONDS = 0.02


def main(world_size: int, port: str, program: list[str]) -> int:
    shared = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen([sys.executable, *program], env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in map(str, range(world_size))
    ]
    while running:
        time.sleep(POLL_SECONDS)
        codes = [process.poll() for process in running]
        if failed := [code for code in codes if code]:
            for process in running:
                process.kill()
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        running = [process for process, code in zip(running, codes, strict=True) if code is None]
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))

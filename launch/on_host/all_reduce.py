"""One process per host: joins the others, sums a vector over all of them, and tells how long that took."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta


def main(given: str) -> int:
    """``{"rank", "world", "address", "port", "device", "megabytes", "timeout"}``; prints seconds or the error."""
    task = json.loads(given)
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # a host that cannot be reached is told once, by us
    import torch
    import torch.distributed as dist

    cuda = task["device"] != "cpu" and torch.cuda.is_available()
    limit = timedelta(seconds=task["timeout"])
    phase = "meeting the other hosts"
    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo", init_method=f"tcp://{task['address']}:{task['port']}", rank=task["rank"],
            world_size=task["world"], timeout=limit,
        )  # fmt: skip
        phase = "the all-reduce"
        vector = torch.ones(int(task["megabytes"] * 250_000), device="cuda:0" if cuda else "cpu")
        seconds = []
        for _ in range(3):
            vector.fill_(1.0)
            dist.barrier()
            begin = time.perf_counter()
            dist.all_reduce(vector)
            total = float(vector[0])  # waits for the device
            seconds.append(time.perf_counter() - begin)
        wrong = total != float(task["world"])
        print(json.dumps({"seconds": min(seconds), "error": "the sum is wrong" if wrong else None}), flush=True)
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(json.dumps({"seconds": None, "error": f"in {phase}: {text[:200]}"}), flush=True)
    os._exit(0)  # leaving the group in order would wait for hosts that are not there


if __name__ == "__main__":
    main(sys.argv[1])

"""The process that measures, with one number of threads: ``python -m longstream.bench.worker``, a plan on stdin.

`run.measure` starts it on as many CPUs as it may use, so that libraries which count CPUs to choose their threads, as
jax does, have as many as torch. It writes a JSON object a line: who is about to run, rows, limits.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import warnings
from typing import Any


def main() -> None:
    """Measure what the plan says."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what packages print is not for the channel

    def say(**message: Any) -> None:
        channel.write(json.dumps(message) + "\n")

    plan = json.load(sys.stdin)
    end = time.monotonic() + plan["seconds"]
    import torch

    from longstream.bench import measure, peers, registry
    from longstream.bench.limits import measure_limits

    warnings.simplefilter("ignore")
    torch.set_num_threads(plan["threads"])
    effort, history, excluded = measure.Effort(*plan["effort"]), measure.History(), plan["excluded"]
    gc.freeze()  # what is imported is there to stay, and need not be looked through for garbage
    say(limits=measure_limits(plan["limits"]))
    for i, case in enumerate(measure.Case(*case) for case in plan["cases"]):
        say(case=i)
        who = registry.contestants(case, plan["backends"], plan["ours_only"])
        who = [_left_out(one, excluded.get(f"{case.group}/{one.name}")) for one in who]
        if time.monotonic() > end:
            who = [_left_out(one, "not run: the time that --budget allows was used up") for one in who]
        rows = measure.run_case(case, who, plan["threads"], effort, history, lambda name: say(at=name), peers.version)
        say(rows=[vars(row) for row in rows])
    say(limits=measure_limits(plan["limits"]))


def _left_out(one: Any, why: str | None) -> Any:
    from longstream.bench.measure import Skip

    def make(case: Any) -> Any:
        raise Skip(why)

    return one if why is None else one._replace(make=make)


if __name__ == "__main__":
    main()

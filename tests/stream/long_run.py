"""Random calls of streams beside a simple model of them, as many as one likes: ``python -m tests.stream.long_run``.

What `test_stateful` does for a moment. It stops at the first difference, with the seed that leads to it.
"""

import argparse
import random
import time

import torch

from tests.stream.calls import Calls
from tests.stream.streamed import MODELS

NAMES = [name for name in MODELS if name not in ("classify", "forecast")]  # their answers are not of each frame


def some_call(calls: Calls, draw: random.Random) -> None:
    """One call, mostly a step; for runs without hypothesis."""
    B, seed = calls.B, draw.randrange(1 << 30)
    some = sorted(draw.sample(range(B), draw.randint(1, B)))
    kind = draw.random()
    if kind < 0.9:
        calls.step(seed, some if draw.random() < 0.03 else [], some if draw.random() < 0.05 else [])
    elif kind < 0.935:
        calls.rollback(draw.randint(0, calls.history + 1), some)
    elif kind < 0.95:
        calls.replay(draw.randint(1, max(calls.history, 1)))
    elif kind < 0.96:
        calls.prefill(seed, draw.randint(1, 20), draw.random() < 0.5)
    elif kind < 0.965:
        calls.reset(some)
    elif kind < 0.975:
        calls.select([draw.randrange(B) for _ in range(draw.randint(1, 5))])
    elif kind < 0.985:
        calls.copy_rows(draw.randrange(B), some)
    elif kind < 0.995:
        calls.save_and_load([draw.randrange(B) for _ in range(draw.randint(1, 5))])
    else:
        calls.load_the_models_own()
    if draw.random() < 0.05:
        calls.look()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000, help="of all models together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", choices=NAMES, nargs="+", default=NAMES)
    parser.add_argument("--backend", choices=["native", "eager"], default="native")
    parser.add_argument("--round", type=int, default=2_000, help="steps before another stream begins")
    args = parser.parse_args()
    torch.set_num_threads(1)
    done, rounds, settled, started = 0, 0, 0, time.monotonic()
    while done < args.steps:
        seed = args.seed + rounds
        draw = random.Random(seed)
        name = args.model[rounds % len(args.model)]
        options = {
            "batch_size": draw.randint(1, 4),
            "history": draw.choice([0, 1, 3, 10, 30]),
            "nonfinite": draw.choice(["raise", "hold", "pass"]),
        }
        calls = Calls(name, args.backend, **options)
        try:
            while calls.steps < min(args.round, args.steps - done):
                some_call(calls, draw)
            calls.check_all()
        except BaseException:
            print(f"after {calls.steps} steps of: --seed {seed} --model {name} --backend {args.backend}, {options}")
            raise
        done, rounds, settled = done + calls.steps, rounds + 1, settled + calls.settled
        if rounds % 10 == 0 or done >= args.steps:
            seconds = time.monotonic() - started
            print(
                f"{done:,} steps in {rounds} streams, {seconds:,.0f} s, no difference; {settled} in float64", flush=True
            )


if __name__ == "__main__":
    main()

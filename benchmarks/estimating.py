"""`python -m benchmarks.estimating`: measure event-loop delays while an answer is tokenized.

The answer is long and has no usage; other requests wait while the event loop is blocked. A task repeatedly sleeps for
1 ms. Its longest delay beyond 1 ms is how long the event loop was blocked.
"""

import argparse
import asyncio
import random
import time

from services.chat import tokenizer

NAP_SECONDS = 0.001


async def longest_delay(text: str) -> tuple[float, float]:
    """Return the longest delay of another task, and the tokenizing time.

    Both are in seconds.
    """
    delays = [0.0]

    async def nap() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(NAP_SECONDS)
            delays.append(time.perf_counter() - began - NAP_SECONDS)

    napping = asyncio.create_task(nap())
    began = time.perf_counter()
    await tokenizer.estimate([{"role": "user", "content": "Hi"}], text)
    took = time.perf_counter() - began
    napping.cancel()
    return max(delays), took


def main() -> None:
    """Print a row for each kind of text."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimating", description=__doc__)
    parser.add_argument("--characters", type=int, default=1_200_000, help="characters of the answer (%(default)s)")
    count = parser.parse_args().characters
    tokenizer.count("the tables of the tokenizer take most of a second to load")
    chance = random.Random(1)
    words = " ".join(
        "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randrange(1, 12))) for _ in range(count)
    )
    texts = {"words": words[:count], "one letter": "a" * count, "rare characters": "\U00013000" * count}
    for name, text in texts.items():
        delay, took = asyncio.run(longest_delay(text))
        print(f"| {name}, {count:,} characters | {1000 * delay:.1f} ms | {took:.2f} s |")  # noqa: T201


if __name__ == "__main__":
    main()

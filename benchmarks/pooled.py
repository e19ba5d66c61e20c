"""Measure what a connection pooler costs: `python -m benchmarks.pooled`.

`PATH` decides which PgBouncer is measured.
"""

import contextlib
import itertools
from collections.abc import Sequence

from benchmarks import databases, figures, load, servers, sizes, stages
from benchmarks.figures import Figure, Measure, by_turns
from benchmarks.turns import turns
from tests.support import poolers

CONNECTIONS, USERS = 8, 8
_MODEL = {"LLM_API_KEY": "none", "LLM_MODEL": "gpt-4o-mini"}


def main() -> None:
    """Print the table."""
    wanted = sizes.SMOKE
    rows: list[Figure] = []
    with databases.urls() as urls, stages.opened("PostgreSQL", urls["PostgreSQL"], wanted.many) as stage:
        tokens = [databases.token(stage.run(databases.add_user(stage.database, f"pooled{i}"))) for i in range(USERS)]
        me = load.request("GET", "/auth/me", databases.token(stage.users.year))
        with contextlib.ExitStack() as stack:
            model = stack.enter_context(servers.model(pause_seconds=0))
            direct = stack.enter_context(servers.started(stage.url, LLM_BASE_URL=model, **_MODEL))
            for mode in ("transaction", "tracked"):
                url = stack.enter_context(poolers.running(stage.url, mode))
                pooled = stack.enter_context(servers.started(url, LLM_BASE_URL=model, **_MODEL))
                servers_ = pooled.wait_until_ready(), direct.wait_until_ready()
                chats = turns(tokens, 100_000, stream=False)
                for what, requests in (("GET /auth/me", [me]), ("whole chat turns", chats)):
                    ours, floor = by_turns(8, *(_rate(address, requests) for address in servers_))
                    rows.append(
                        Figure(
                            what=f"{what}, {CONNECTIONS} connections, {mode}",
                            database=stage.kind,
                            unit="requests/s",
                            ours=ours,
                            floor_is="without a pooler",
                            floor=floor,
                        )
                    )
    print(figures.table(rows))  # noqa: T201


def _rate(address: str, requests: Sequence[bytes]) -> Measure:
    endless = itertools.cycle(requests)

    def measure() -> float:
        *took, total = load.run(address, endless, CONNECTIONS, 1.0)
        return len(took) / total

    return measure


if __name__ == "__main__":
    main()

"""Makes a new connection every INTERVAL seconds, writes one row by it and closes it.

One line each: "ok BEGUN ENDED PRIMARY TIMELINE" or "error BEGUN ENDED MESSAGE", times in ns of CLOCK_MONOTONIC.
"""

import asyncio
import sys
import time

import psycopg

# The name of the segment that is written begins with the timeline.
INSERT = """
INSERT INTO ledger (path, timeline) VALUES (%s, ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int)
RETURNING host(inet_server_addr()), timeline
"""

conninfo, name, interval = sys.argv[1], sys.argv[2], float(sys.argv[3])
# At a time. They all log in at once when the new primary opens, and the first of them is what is timed.
MOST = 4


async def once():
    begun = time.monotonic_ns()
    try:
        connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
        async with connection:
            row = await (await connection.execute(INSERT, (name,), prepare=False)).fetchone()
        print("ok", begun, time.monotonic_ns(), *row, flush=True)
    except (psycopg.Error, OSError) as error:
        said = str(error).strip().splitlines()
        print("error", begun, time.monotonic_ns(), said[0] if said else type(error).__name__, flush=True)


async def main():
    # Who waits is not joined by ever more: what a crowd costs is another question.
    running = set()
    begun = time.monotonic()
    for number in range(10**9):
        if len(running) < MOST:
            task = asyncio.create_task(once())
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.sleep(max(0.0, begun + (number + 1) * interval - time.monotonic()))


asyncio.run(main())

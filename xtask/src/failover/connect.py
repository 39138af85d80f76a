"""Makes one new connection after another, begun every INTERVAL seconds or as soon as the one before has ended, writes a row
by it and closes it.

One line each: "ok BEGUN ENDED PRIMARY TIMELINE" or "error BEGUN ENDED MESSAGE", times in ns of CLOCK_MONOTONIC.
"""

import sys
import time

import psycopg

# The name of the segment that is written begins with the timeline.
INSERT = """
INSERT INTO ledger (path, timeline) VALUES (%s, ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int)
RETURNING host(inet_server_addr()), timeline
"""

conninfo, name, interval = sys.argv[1], sys.argv[2], float(sys.argv[3])
while True:
    begun = time.monotonic_ns()
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            row = connection.execute(INSERT, (name,), prepare=False).fetchone()
            # Before the connection is closed.
            print("ok", begun, time.monotonic_ns(), *row, flush=True)
    except (psycopg.Error, OSError) as error:
        said = str(error).strip().splitlines()
        print("error", begun, time.monotonic_ns(), said[0] if said else type(error).__name__, flush=True)
    time.sleep(max(0.0, interval - (time.monotonic_ns() - begun) / 1e9))

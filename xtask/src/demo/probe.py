"""Writes a row every 20 ms and says on a line how each went: "ok N PRIMARY TIMELINE" or "error N MESSAGE".

It keeps its connection as an application does, and connects again when that breaks.
"""

import sys
import time

import psycopg

# The name of the segment that is written begins with the timeline: it tells one primary's reign from the next.
INSERT = """
INSERT INTO probe VALUES (%s, %s)
RETURNING host(inet_server_addr()), ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int
"""

conninfo, name = sys.argv[1:]
connection = None
number = 0
while True:
    begun = time.monotonic()
    number += 1
    try:
        if connection is None:
            connection = psycopg.connect(conninfo, autocommit=True, connect_timeout=2)
        row = connection.execute(INSERT, (name, number), prepare=False).fetchone()
        print("ok", number, *row, flush=True)
    except psycopg.Error as error:
        said = str(error).strip().splitlines()
        print("error", number, said[0] if said else type(error).__name__, flush=True)
        if connection is not None and connection.broken:
            connection.close()
            connection = None
    time.sleep(max(0.0, 0.02 - (time.monotonic() - begun)))

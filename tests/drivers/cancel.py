"""Cancels 12 queries, each on its own connection to CONNINFO, as libpq 17 does it: over a connection that is encrypted
where the session's is. Prints one line for each: milliseconds and what the query's caller was told."""

import sys
import threading
import time

import psycopg

CONNINFO, TAG = sys.argv[1:]
COUNT = 12

assert psycopg.capabilities.has_cancel_safe(check=True)
ended = {}


def sleep(number, connection):
    try:
        connection.execute(f"SELECT pg_sleep(60) /* {TAG} */")
        said = "it slept to its end"
    except psycopg.Error as error:
        said = str(error).splitlines()[0]
    ended[number] = (time.monotonic(), said)


connections = [psycopg.connect(CONNINFO, autocommit=True, prepare_threshold=None) for _ in range(COUNT)]
threads = [threading.Thread(target=sleep, args=pair) for pair in enumerate(connections)]
for thread in threads:
    thread.start()

with psycopg.connect(CONNINFO, autocommit=True) as watcher:
    count = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s AND pid <> pg_backend_pid()"
    for _ in range(200):
        if watcher.execute(count, [f"%/* {TAG} */"]).fetchone()[0] == COUNT:
            break
        time.sleep(0.05)
    else:
        sys.exit("the queries do not run")

for number, connection in enumerate(connections):
    asked = time.monotonic()
    connection.cancel_safe(timeout=10)
    threads[number].join(10)
    at, said = ended.get(number, (time.monotonic(), "it still sleeps"))
    print(round((at - asked) * 1000), said)
sys.stdout.flush()
# What still sleeps shall not keep us.
import os; os._exit(0)

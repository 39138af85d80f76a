"""Waits until the PostgreSQL of this host takes a write, and prints when: ns of CLOCK_MONOTONIC. Then it does nothing until
it is killed: the end of a Python takes some 30 ms of a processor, which everybody needs at that moment.
"""

import signal
import sys
import time

import psycopg

connection = None
while True:
    try:
        if connection is None:
            connection = psycopg.connect(sys.argv[1], autocommit=True, connect_timeout=2)
        connection.execute("INSERT INTO ledger (path, timeline) VALUES ('writable', 0)", prepare=False)
        print(time.monotonic_ns(), flush=True)
        signal.pause()
    except psycopg.Error:
        if connection is not None and connection.broken:
            connection = None
        time.sleep(0.003)

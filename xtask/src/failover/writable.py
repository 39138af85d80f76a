"""Waits until the PostgreSQL of this host takes a write, and prints when: ns of CLOCK_MONOTONIC."""

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
        break
    except psycopg.Error:
        if connection is not None and connection.broken:
            connection = None
        time.sleep(0.003)

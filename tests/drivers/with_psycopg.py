"""What people do with psycopg 3, through the server that the PG* variables name. Prints each step when it is done."""

import hashlib
import sys
import threading
import time

import psycopg

steps = sys.argv[1]  # "plain" or "tls"

connection = psycopg.connect(autocommit=True)
assert connection.pgconn.ssl_in_use == (steps == "tls")
assert connection.execute("SELECT current_user, current_database()").fetchone() == ("app", "app")
print("connect")

with psycopg.ClientCursor(connection) as cursor:
    assert cursor.execute("SELECT 1; SELECT 2").fetchone() == (1,)
    assert cursor.nextset() and cursor.fetchone() == (2,)
print("simple")

for number in range(100):
    assert connection.execute("SELECT %s + 1", [number], prepare=True).fetchone() == (number + 1,)
print("prepared")

rows = [(number, f"row {number}") for number in range(50_000)]
connection.execute("CREATE TEMP TABLE copied (number int, text text)")
with connection.cursor() as cursor:
    with cursor.copy("COPY copied FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
    with cursor.copy("COPY (SELECT * FROM copied ORDER BY number) TO STDOUT (FORMAT binary)") as copy:
        copy.set_types(["int4", "text"])
        assert list(copy.rows()) == rows
print("copy")

try:
    connection.execute("SELECT 1/0")
    sys.exit("1/0 is something")
except psycopg.errors.DivisionByZero as error:
    assert error.sqlstate == "22012"
assert connection.execute("SELECT 1").fetchone() == (1,)
print("error")

connection.execute("CREATE TEMP TABLE kept (number int)")
try:
    with connection.transaction():
        connection.execute("INSERT INTO kept VALUES (1)")
        raise psycopg.Rollback()
except psycopg.Rollback:
    pass
with connection.transaction():
    connection.execute("INSERT INTO kept VALUES (2)")
    with connection.transaction(force_rollback=True):
        connection.execute("INSERT INTO kept VALUES (3)")
assert connection.execute("SELECT * FROM kept").fetchall() == [(2,)]
print("transaction")

connection.execute(f"LISTEN psycopg_{steps}")
with psycopg.connect(autocommit=True) as another:
    another.execute(f"NOTIFY psycopg_{steps}, 'from another session'")
heard = next(connection.notifies(timeout=10))
assert heard.payload == "from another session"
print("notify")

for cancel in [connection.cancel, connection.cancel_safe]:
    begun = time.monotonic()
    timer = threading.Timer(0.5, cancel)
    timer.start()
    try:
        connection.execute("SELECT pg_sleep(60)")
        sys.exit("it slept")
    except psycopg.errors.QueryCanceled:
        assert time.monotonic() - begun < 20
    timer.join()
print("cancel")

sql = "SELECT repeat(lpad(i::text, 8, '0'), 128) FROM generate_series(1, 12000) i"
expected, got = hashlib.sha256(), hashlib.sha256()
for number in range(1, 12001):
    expected.update(f"{number:08}".encode() * 128)
with psycopg.ServerCursor(connection, "big") as cursor, connection.transaction():
    for (text,) in cursor.execute(sql):
        got.update(text.encode())
assert got.digest() == expected.digest()
got = hashlib.sha256("".join(text for (text,) in connection.execute(sql)).encode())
assert got.digest() == expected.digest()
print("large result")

big = "x" * 8_000_000
answer = connection.execute("SELECT length(%(big)s), md5(%(big)s)", {"big": big}).fetchone()
assert answer == (len(big), hashlib.md5(big.encode()).hexdigest())
print("large parameter")

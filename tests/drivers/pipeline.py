"""A client that does not wait for its answers: psycopg's pipeline mode, through the server that the PG* variables
name. Prints each step when it is done."""

import psycopg
from psycopg.pq import TransactionStatus

connection = psycopg.connect(autocommit=True)

COUNT = 5000
with connection.pipeline():
    cursors = [connection.execute("SELECT %s::int * 2", [number]) for number in range(COUNT)]
    assert [cursor.fetchone()[0] for cursor in cursors] == [number * 2 for number in range(COUNT)]
print("many small ones")

# Both directions are full at once: whoever forwards one only when the other has a pause never ends this.
big = [chr(ord("a") + number % 26) * 200_000 for number in range(200)]
with connection.pipeline():
    cursors = [connection.execute("SELECT %s::text", [text]) for text in big]
    for cursor, text in zip(cursors, big):
        assert cursor.fetchone()[0] == text
print("both directions full")

connection.execute("DROP TABLE IF EXISTS piped")
connection.execute("CREATE TABLE piped (number int PRIMARY KEY)")
try:
    with connection.pipeline() as pipeline:
        connection.execute("INSERT INTO piped VALUES (1)")
        pipeline.sync()
        connection.execute("INSERT INTO piped VALUES (1)")
        connection.execute("INSERT INTO piped VALUES (2)")
        pipeline.sync()
    raise SystemExit("a duplicate went in")
except psycopg.errors.UniqueViolation:
    pass
assert connection.info.transaction_status == TransactionStatus.IDLE
with connection.pipeline():
    connection.execute("INSERT INTO piped VALUES (3)")
assert connection.execute("SELECT array_agg(number ORDER BY number) FROM piped").fetchone()[0] == [1, 3]
print("an error in the middle")

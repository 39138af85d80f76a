"""What people do with asyncpg, through the server that the PG* variables name. Prints each step when it is done."""

import asyncio
import hashlib
import io
import sys
import time

import asyncpg

steps = sys.argv[1]  # "plain" or "tls"


async def main():
    connection = await asyncpg.connect()
    encrypted = connection._transport.get_extra_info("ssl_object") is not None
    assert encrypted == (steps == "tls")
    assert tuple(await connection.fetchrow("SELECT current_user::text, current_database()::text")) == ("app", "app")
    print("connect")

    assert await connection.execute("SELECT 1; SELECT 2") == "SELECT 1"
    print("simple")

    statement = await connection.prepare("SELECT $1::int + 1")
    for number in range(100):
        assert await statement.fetchval(number) == number + 1
    print("prepared")

    rows = [(number, f"row {number}") for number in range(50_000)]
    await connection.execute("CREATE TEMP TABLE copied (number int, text text)")
    await connection.copy_records_to_table("copied", records=rows)
    out = io.BytesIO()
    await connection.copy_from_query("SELECT * FROM copied ORDER BY number", output=out)
    assert out.getvalue().decode() == "".join(f"{number}\t{text}\n" for number, text in rows)
    print("copy")

    try:
        await connection.execute("SELECT 1/0")
        sys.exit("1/0 is something")
    except asyncpg.DivisionByZeroError as error:
        assert error.sqlstate == "22012"
    assert await connection.fetchval("SELECT 1") == 1
    print("error")

    await connection.execute("CREATE TEMP TABLE kept (number int)")
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("INSERT INTO kept VALUES (1)")
    await transaction.rollback()
    async with connection.transaction():
        await connection.execute("INSERT INTO kept VALUES (2)")
    assert await connection.fetchval("SELECT array_agg(number) FROM kept") == [2]
    print("transaction")

    heard = asyncio.get_running_loop().create_future()
    await connection.add_listener(f"asyncpg_{steps}", lambda _c, _pid, _channel, payload: heard.set_result(payload))
    another = await asyncpg.connect()
    await another.execute(f"NOTIFY asyncpg_{steps}, 'from another session'")
    await another.close()
    assert await asyncio.wait_for(heard, 10) == "from another session"
    print("notify")

    begun = time.monotonic()
    try:
        await connection.execute("SELECT pg_sleep(60)", timeout=0.5)
        sys.exit("it slept")
    except TimeoutError:
        pass
    # The connection is usable only when the server has taken the cancel.
    assert await connection.fetchval("SELECT 1") == 1
    assert time.monotonic() - begun < 20
    print("cancel")

    rows = await connection.fetch("SELECT repeat(lpad(i::text, 8, '0'), 128) FROM generate_series(1, 12000) i")
    got = hashlib.sha256("".join(row[0] for row in rows).encode())
    expected = hashlib.sha256("".join(f"{number:08}" * 128 for number in range(1, 12001)).encode())
    assert got.digest() == expected.digest()
    print("large result")

    big = "x" * 8_000_000
    answer = await connection.fetchrow("SELECT length($1::text), md5($1::text)", big)
    assert tuple(answer) == (len(big), hashlib.md5(big.encode()).hexdigest())
    print("large parameter")
    await connection.close()


asyncio.run(main())

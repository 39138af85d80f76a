# What people do with psql, through the server that the PG* variables name. Prints each step when it is done.
set -eu
steps=$1 # "plain" or "tls"
cd "$(mktemp -d)"

run() { psql -XAtq -v ON_ERROR_STOP=1 "$@"; }
expect() { # what was expected, what came
    [ "$1" = "$2" ] && return
    echo "expected: $1" >&2
    echo "got: $2" >&2
    exit 1
}

case $steps in
    tls) run -c '\conninfo' | grep -q 'SSL connection (protocol: TLSv1.3' ;;
    *) run -c '\conninfo' | grep -v SSL | grep -q 'connected to database "app"' ;;
esac
echo connect

expect "1
2" "$(run -c "SELECT 1; SELECT 2")"
echo simple

expect 42 "$(printf '%s\n' 'SELECT $1::int + $2::int \bind 20 22 \g' | run)"
echo prepared

seq 200000 | sed 's/$/\ta row/' >in
run <<'SQL'
CREATE TEMP TABLE rows (number int, text text);
\copy rows FROM 'in'
\copy (SELECT * FROM rows ORDER BY number) TO 'out'
SQL
cmp in out
echo copy

expect "ERROR:  division by zero" "$(run -c 'SELECT 1/0' 2>&1 || true)"
echo error

expect "2" "$(run <<'SQL'
CREATE TEMP TABLE rows (number int);
BEGIN;
INSERT INTO rows VALUES (1);
ROLLBACK;
BEGIN;
INSERT INTO rows VALUES (2);
COMMIT;
SELECT * FROM rows;
SQL
)"
echo transaction

run >out <<SQL
LISTEN psql_$steps;
\! psql -Xqc "NOTIFY psql_$steps, 'from another session'"
SELECT 1;
SQL
grep -q "\"psql_$steps\" with payload \"from another session\"" out
echo notify

expect "Cancel request sent
ERROR:  canceling statement due to user request" "$(timeout --signal=INT 1 psql -Xqc 'SELECT pg_sleep(60)' 2>&1 | uniq || true)" # timeout may signal twice
echo cancel

seq -f %08.0f 12000 | awk '{ s = $0; for (i = 0; i < 7; i++) s = s s; print s }' >in
run -c "SELECT repeat(lpad(i::text, 8, '0'), 128) FROM generate_series(1, 12000) i" >out
cmp in out
echo large result

expect "8000000|$(head -c 8000000 /dev/zero | tr '\0' x | md5sum | cut -d' ' -f1)" "$(run <<'SQL'
\set big `head -c 8000000 /dev/zero | tr '\0' x`
SELECT length($1), md5($1) \bind :big \g
SQL
)"
echo large parameter

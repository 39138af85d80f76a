# A large object in and out with psql, by PostgreSQL's function calls (protocol message F), through the server that the
# PG* variables name.
set -eu
cd "$(mktemp -d)"
head -c 30000000 /dev/urandom >in
psql -Xq -v ON_ERROR_STOP=1 <<'SQL'
\lo_import in
\lo_export :LASTOID out
\lo_unlink :LASTOID
SQL
cmp in out
echo same

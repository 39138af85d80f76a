// What people do with node-postgres, through the server that the PG* variables name. Prints each step when it is done.
// COPY is not in the driver itself.
const assert = require('node:assert')
const crypto = require('node:crypto')
const fs = require('node:fs')
const { Client } = require('pg')

const steps = process.argv[2] // "plain" or "tls"
// The driver would take these by its own rules: it is told what to do instead.
const authority = process.env.PGSSLROOTCERT
delete process.env.PGSSLMODE
delete process.env.PGSSLROOTCERT
const config = { ssl: steps === 'tls' ? { ca: fs.readFileSync(authority), host: process.env.PGHOST } : false }

async function main() {
  const client = new Client(config)
  await client.connect()
  assert.equal(Boolean(client.connection.stream.encrypted), steps === 'tls')
  const who = await client.query('SELECT current_user AS u, current_database() AS d')
  assert.deepEqual(who.rows, [{ u: 'app', d: 'app' }])
  console.log('connect')

  const two = await client.query('SELECT 1 AS n; SELECT 2 AS n')
  assert.deepEqual(two.map((result) => result.rows[0].n), [1, 2])
  console.log('simple')

  for (let n = 0; n < 100; n++) {
    const answer = await client.query({ name: 'plus one', text: 'SELECT $1::int + 1 AS n', values: [n] })
    assert.equal(answer.rows[0].n, n + 1)
  }
  console.log('prepared')

  await assert.rejects(client.query('SELECT 1/0'), { code: '22012' })
  assert.equal((await client.query('SELECT 1 AS n')).rows[0].n, 1)
  console.log('error')

  await client.query('CREATE TEMP TABLE kept (number int)')
  await client.query('BEGIN')
  await client.query('INSERT INTO kept VALUES (1)')
  await client.query('ROLLBACK')
  await client.query('BEGIN')
  await client.query('INSERT INTO kept VALUES (2)')
  await client.query('COMMIT')
  assert.deepEqual((await client.query('SELECT * FROM kept')).rows, [{ number: 2 }])
  console.log('transaction')

  const heard = new Promise((resolve) => client.on('notification', (message) => resolve(message.payload)))
  await client.query(`LISTEN node_${steps}`)
  const another = new Client(config)
  await another.connect()
  await another.query(`NOTIFY node_${steps}, 'from another session'`)
  await another.end()
  assert.equal(await heard, 'from another session')
  console.log('notify')

  const begun = Date.now()
  const { Query } = require('pg')
  const query = new Query('SELECT pg_sleep(60)')
  const ended = new Promise((resolve) => {
    query.on('error', resolve)
    query.on('end', () => resolve(new Error('it slept')))
  })
  client.query(query)
  // PostgreSQL signals twice and then closes: a query before that may be hit, too.
  const canceler = new Client(config)
  const closed = new Promise((resolve) => canceler.connection.once('end', resolve))
  setTimeout(() => canceler.cancel(client, query), 500)
  assert.equal((await ended).code, '57014')
  await closed
  assert(Date.now() - begun < 20000)
  console.log('cancel')

  const rows = await client.query("SELECT repeat(lpad(i::text, 8, '0'), 128) AS t FROM generate_series(1, 12000) i")
  const got = crypto.createHash('sha256')
  const expected = crypto.createHash('sha256')
  rows.rows.forEach((row) => got.update(row.t))
  for (let n = 1; n <= 12000; n++) expected.update(String(n).padStart(8, '0').repeat(128))
  assert.equal(got.digest('hex'), expected.digest('hex'))
  console.log('large result')

  const big = 'x'.repeat(8000000)
  const answer = await client.query('SELECT length($1::text) AS l, md5($1::text) AS m', [big])
  assert.deepEqual(answer.rows, [{ l: big.length, m: crypto.createHash('md5').update(big).digest('hex') }])
  console.log('large parameter')
  await client.end()
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})

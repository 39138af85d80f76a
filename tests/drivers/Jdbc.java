// What people do with pgjdbc, through the server that the PG* variables name. Prints each step when it is done.

import java.io.ByteArrayOutputStream;
import java.io.StringReader;
import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.util.Arrays;
import java.util.Properties;
import org.postgresql.PGConnection;

public class Jdbc {
    static String steps; // "plain" or "tls"

    static Connection connect() throws SQLException {
        var env = System.getenv();
        var settings = new Properties();
        settings.put("user", env.get("PGUSER"));
        settings.put("password", env.get("PGPASSWORD"));
        settings.put("sslmode", env.get("PGSSLMODE"));
        if (steps.equals("tls")) {
            settings.put("sslrootcert", env.get("PGSSLROOTCERT"));
        }
        var url = "jdbc:postgresql://%s:%s/%s".formatted(env.get("PGHOST"), env.get("PGPORT"), env.get("PGDATABASE"));
        return DriverManager.getConnection(url, settings);
    }

    static void expect(Object expected, Object got) {
        if (!expected.equals(got)) {
            throw new AssertionError("expected " + expected + ", got " + got);
        }
    }

    static String one(Connection connection, String sql) throws SQLException {
        try (var statement = connection.createStatement(); var rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getString(1);
        }
    }

    static void done(String step) {
        System.out.println(step);
    }

    static String hex(MessageDigest digest) {
        return new BigInteger(1, digest.digest()).toString(16);
    }

    public static void main(String[] arguments) throws Exception {
        steps = arguments[0];
        var connection = connect();
        expect("app", one(connection, "SELECT current_user"));
        done("connect");

        try (var statement = connection.createStatement()) {
            expect(true, statement.execute("SELECT 1; SELECT 2"));
            expect(true, statement.getMoreResults());
            statement.getResultSet().next();
            expect(2, statement.getResultSet().getInt(1));
        }
        done("simple");

        // From the fifth run on the driver names the statement and keeps it at the server.
        try (var statement = connection.prepareStatement("SELECT ?::int + 1")) {
            for (int number = 0; number < 100; number++) {
                statement.setInt(1, number);
                var rows = statement.executeQuery();
                rows.next();
                expect(number + 1, rows.getInt(1));
            }
        }
        done("prepared");

        var rows = new StringBuilder();
        for (int number = 0; number < 50000; number++) {
            rows.append(number).append("\trow ").append(number).append("\n");
        }
        connection.createStatement().execute("CREATE TEMP TABLE copied (number int, text text)");
        var copy = connection.unwrap(PGConnection.class).getCopyAPI();
        expect(50000L, copy.copyIn("COPY copied FROM STDIN", new StringReader(rows.toString())));
        var out = new ByteArrayOutputStream();
        copy.copyOut("COPY (SELECT * FROM copied ORDER BY number) TO STDOUT", out);
        expect(rows.toString(), out.toString(StandardCharsets.UTF_8));
        done("copy");

        try {
            one(connection, "SELECT 1/0");
            throw new AssertionError("1/0 is something");
        } catch (SQLException error) {
            expect("22012", error.getSQLState());
        }
        expect("1", one(connection, "SELECT 1"));
        done("error");

        connection.createStatement().execute("CREATE TEMP TABLE kept (number int)");
        connection.setAutoCommit(false);
        connection.createStatement().execute("INSERT INTO kept VALUES (1)");
        connection.rollback();
        connection.createStatement().execute("INSERT INTO kept VALUES (2)");
        connection.commit();
        connection.setAutoCommit(true);
        expect("{2}", one(connection, "SELECT array_agg(number) FROM kept"));
        done("transaction");

        connection.createStatement().execute("LISTEN jdbc_" + steps);
        try (var another = connect()) {
            another.createStatement().execute("NOTIFY jdbc_" + steps + ", 'from another session'");
        }
        var heard = connection.unwrap(PGConnection.class).getNotifications(10000);
        expect("from another session", heard[0].getParameter());
        done("notify");

        var begun = System.nanoTime();
        try (var statement = connection.createStatement()) {
            statement.setQueryTimeout(1);
            statement.execute("SELECT pg_sleep(60)");
            throw new AssertionError("it slept");
        } catch (SQLException error) {
            expect("57014", error.getSQLState());
            expect(true, System.nanoTime() - begun < 20_000_000_000L);
        }
        done("cancel");

        var got = MessageDigest.getInstance("SHA-256");
        var expected = MessageDigest.getInstance("SHA-256");
        var sql = "SELECT repeat(lpad(i::text, 8, '0'), 128) FROM generate_series(1, 12000) i";
        try (var statement = connection.createStatement(); var big = statement.executeQuery(sql)) {
            while (big.next()) {
                got.update(big.getBytes(1));
            }
        }
        for (int number = 1; number <= 12000; number++) {
            expected.update("%08d".formatted(number).repeat(128).getBytes(StandardCharsets.UTF_8));
        }
        expect(hex(expected), hex(got));
        done("large result");

        var big = new byte[8000000];
        Arrays.fill(big, (byte) 'x');
        try (var statement = connection.prepareStatement("SELECT length(?), md5(?)")) {
            statement.setString(1, new String(big, StandardCharsets.UTF_8));
            statement.setString(2, new String(big, StandardCharsets.UTF_8));
            var answer = statement.executeQuery();
            answer.next();
            expect(big.length, answer.getInt(1));
            var md5 = MessageDigest.getInstance("MD5");
            md5.update(big);
            expect("%032x".formatted(new BigInteger(1, md5.digest())), answer.getString(2));
        }
        done("large parameter");
        connection.close();
    }
}

-- The roles and the database that the other files name. Run once on the primary, as postgres.
CREATE ROLE app LOGIN PASSWORD '@APP_PASSWORD@';
CREATE DATABASE app OWNER app;
-- What pgsplice's probes log in as. It owns nothing.
CREATE ROLE pgsplice LOGIN PASSWORD '@PROBE_PASSWORD@';

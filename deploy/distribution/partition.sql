-- Hash-partition the tables that grow by user_id, on plain PostgreSQL. docs/scaling.md says when.
--
--   psql --no-psqlrc -v ON_ERROR_STOP=1 -v partitions=16 -f deploy/distribution/partition.sql "$DATABASE_URL"
--
-- Run keys.sql before, and stop the servers: all rows are copied in one transaction, which needs as much disk again.
-- A failure changes nothing.

\set QUIET on
SET client_min_messages = warning;
\if :{?partitions}
\else
\set partitions 16
\endif

BEGIN;

CREATE TEMP TABLE by_user (name text, position serial) ON COMMIT DROP;
INSERT INTO by_user (name) VALUES
    ('conversations'), ('messages'), ('feedback'), ('message_images'), ('user_monthly_token_usage'),
    ('user_daily_token_usage'), ('usage_adjustments'), ('api_keys'), ('refresh_tokens'), ('revoked_tokens'),
    ('password_resets'), ('archived_keys'), ('user_preferences'), ('user_model_categories');
LOCK TABLE conversations, messages, feedback, message_images, user_monthly_token_usage, user_daily_token_usage,
    usage_adjustments, api_keys, refresh_tokens, revoked_tokens, password_resets, archived_keys, user_preferences,
    user_model_categories IN ACCESS EXCLUSIVE MODE;

CREATE FUNCTION pg_temp.partition(name text, partitions int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    old CONSTANT regclass := name;
    new CONSTANT text := name || '_by_user';
    sequence text;
    again text[];
    definition text;
BEGIN
    IF EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = old) THEN
        RETURN;  -- by an earlier run
    END IF;
    IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = old AND NOT tgisinternal) THEN
        RAISE '% has triggers: they would be lost', name;
    END IF;
    IF EXISTS (SELECT FROM pg_class WHERE oid = old AND relrowsecurity)
            OR EXISTS (SELECT FROM pg_policy WHERE polrelid = old)
            OR EXISTS (SELECT FROM pg_attribute WHERE attrelid = old AND attacl IS NOT NULL)
            OR EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = old) THEN
        RAISE '% has row security, column privileges or a publication: they would be lost', name;
    END IF;
    again := ARRAY(  -- keys, indexes, owner and privileges
        SELECT format('ALTER TABLE %I ADD CONSTRAINT %I %s', name, conname, pg_get_constraintdef(oid))
        FROM pg_constraint WHERE conrelid = old AND contype IN ('p', 'u')
    ) || ARRAY(
        SELECT pg_get_indexdef(indexrelid) FROM pg_index
        WHERE indrelid = old AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND conrelid = old)
    ) || ARRAY(
        SELECT format('ALTER TABLE %I OWNER TO %s', name, relowner::regrole) FROM pg_class WHERE oid = old
    ) || ARRAY(
        SELECT format('GRANT %s ON %I TO %s', privilege_type, name,
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
        FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = old
    );
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL EXCLUDING INDEXES) PARTITION BY HASH (user_id)', new, name);
    FOR remainder IN 0 .. partitions - 1 LOOP
        EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES WITH (MODULUS %s, REMAINDER %s)',
            name || '_p' || remainder, new, partitions, remainder);
    END LOOP;
    EXECUTE format('INSERT INTO %I OVERRIDING SYSTEM VALUE SELECT * FROM %I', new, name);
    SELECT pg_get_serial_sequence(name, attname) INTO sequence FROM pg_attribute
    WHERE attrelid = old AND attname = 'id' AND attidentity = '';  -- the server advances that of an identity column
    IF sequence IS NOT NULL THEN
        EXECUTE format('ALTER SEQUENCE %s OWNED BY %I.id', sequence, new);
    END IF;
    EXECUTE format('DROP TABLE %I', name);
    EXECUTE format('ALTER TABLE %I RENAME TO %I', new, name);
    FOREACH definition IN ARRAY again LOOP
        EXECUTE definition;
    END LOOP;
END $$;

-- Foreign keys would keep a table from being replaced: they are dropped first, and return at the end.
CREATE TEMP TABLE foreign_keys ON COMMIT DROP AS
    SELECT conrelid::regclass::text AS name, conname, pg_get_constraintdef(oid) AS definition FROM pg_constraint
    WHERE contype = 'f' AND conrelid::regclass::text IN (SELECT name FROM by_user) AND conparentid = 0;
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', name, conname) FROM foreign_keys \gexec
SELECT pg_temp.partition(name, :partitions) FROM by_user ORDER BY position \g /dev/null
SELECT format('ALTER TABLE %s ADD CONSTRAINT %I %s', name, conname, definition) FROM foreign_keys \gexec

COMMIT;
ANALYZE;

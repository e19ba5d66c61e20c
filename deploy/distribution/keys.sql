-- Put user_id into every key of the tables that grow. docs/scaling.md says when.
--
--   psql --no-psqlrc -v ON_ERROR_STOP=1 -f deploy/distribution/keys.sql "$DATABASE_URL"
--
-- Connect to the server itself, not to a pooler.
--
-- Servers may continue: indexes are built concurrently, and tables are locked for moments. Run it as the owner of the
-- tables, on PostgreSQL 14 or newer. It can be interrupted and repeated, also after a deadlock or a lock timeout. Each
-- new connection of a server notices the keys.

\set QUIET on
SET client_min_messages = warning;
SET lock_timeout = '5s';

DROP TABLE IF EXISTS pg_temp.by_user;
CREATE TEMP TABLE by_user (name regclass, key_column name);
INSERT INTO by_user VALUES
    ('conversations', 'id'), ('messages', 'id'), ('feedback', 'id'), ('message_images', 'name'),
    ('user_monthly_token_usage', 'id'), ('user_daily_token_usage', NULL), ('usage_adjustments', NULL),
    ('api_keys', 'id'), ('refresh_tokens', NULL), ('revoked_tokens', NULL), ('password_resets', NULL),
    ('archived_keys', NULL), ('user_preferences', 'id'), ('user_model_categories', 'id');

-- What has to be true before.
DO $$
DECLARE
    found text;
BEGIN
    IF EXISTS (SELECT FROM foundation_settings WHERE name = 'earlier_backend') THEN
        RAISE 'the earlier backend may still run: run python migrate_token_data.py --finish first';
    END IF;
    IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'messages'::regclass AND attname = 'id'
            AND atttypid = 'integer'::regtype) THEN
        RAISE 'ids of messages have 32 bits: run python migrate_token_data.py --widen-ids first';
    END IF;
    IF EXISTS (SELECT FROM messages WHERE user_id IS NULL) THEN
        RAISE 'messages without a user: run python migrate_token_data.py first; then, after a backup, DELETE FROM messages WHERE user_id IS NULL';
    END IF;
    IF EXISTS (SELECT FROM conversations WHERE user_id IS NULL) THEN
        RAISE 'conversations without a user: after a backup, DELETE FROM conversations WHERE user_id IS NULL';
    END IF;
    IF EXISTS (SELECT FROM messages m JOIN conversations c ON c.id = m.conversation_id WHERE c.user_id <> m.user_id) THEN
        RAISE 'messages in the conversation of another user: remove them from it first';
    END IF;
    IF EXISTS (SELECT FROM feedback f JOIN messages m ON m.id = f.message_id WHERE f.user_id <> m.user_id) THEN
        RAISE 'feedback on the message of another user: delete it first';
    END IF;
    SELECT string_agg(DISTINCT conrelid::regclass::text, ', ') INTO found FROM pg_constraint
    WHERE contype = 'f' AND confrelid IN (SELECT name FROM by_user) AND conrelid NOT IN (SELECT name FROM by_user);
    IF found IS NOT NULL THEN
        RAISE 'other tables refer to these by id alone: drop the foreign keys of %', found;
    END IF;
END $$;

-- NOT NULL, without a lock while the rows are read.
ALTER TABLE conversations DROP CONSTRAINT IF EXISTS has_user,
    ADD CONSTRAINT has_user CHECK (user_id IS NOT NULL) NOT VALID;
ALTER TABLE conversations VALIDATE CONSTRAINT has_user;
ALTER TABLE conversations ALTER COLUMN user_id SET NOT NULL, DROP CONSTRAINT has_user;
ALTER TABLE messages DROP CONSTRAINT IF EXISTS has_user,
    ADD CONSTRAINT has_user CHECK (user_id IS NOT NULL) NOT VALID;
ALTER TABLE messages VALIDATE CONSTRAINT has_user;
ALTER TABLE messages ALTER COLUMN user_id SET NOT NULL, DROP CONSTRAINT has_user;

-- The new keys. \gexec runs each line that the query returns, outside of a transaction.
SELECT format('DROP INDEX CONCURRENTLY IF EXISTS %I', name || '_new_key') FROM by_user WHERE key_column IS NOT NULL
UNION ALL SELECT 'DROP INDEX CONCURRENTLY IF EXISTS ix_messages_id' \gexec
SELECT format('CREATE UNIQUE INDEX CONCURRENTLY %I ON %s (user_id, %I)', name || '_new_key', name, key_column)
FROM by_user WHERE key_column IS NOT NULL \gexec
-- For what reads all users by id: the check of the sequence at the start, and --redate.
CREATE INDEX CONCURRENTLY ix_messages_id ON messages (id);

BEGIN;
DO $$
DECLARE
    old record;
BEGIN
    FOR old IN  -- foreign keys to an id alone; below, two of them return with the user
        SELECT conrelid::regclass AS name, conname FROM pg_constraint
        WHERE contype = 'f' AND confrelid IN (SELECT name FROM by_user)
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', old.name, old.conname);
    END LOOP;
    FOR old IN
        SELECT b.name, conname FROM pg_constraint JOIN by_user b ON b.name = conrelid
        WHERE contype = 'p' AND key_column IS NOT NULL
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %I PRIMARY KEY USING INDEX %I',
            old.name, old.conname, old.conname, old.name || '_new_key');
    END LOOP;
END $$;
ALTER TABLE messages ADD CONSTRAINT messages_conversation_id_fkey
    FOREIGN KEY (user_id, conversation_id) REFERENCES conversations (user_id, id) NOT VALID;
ALTER TABLE feedback ADD CONSTRAINT feedback_message_id_fkey
    FOREIGN KEY (user_id, message_id) REFERENCES messages (user_id, id) NOT VALID;
COMMIT;
ALTER TABLE messages VALIDATE CONSTRAINT messages_conversation_id_fkey;
ALTER TABLE feedback VALIDATE CONSTRAINT feedback_message_id_fkey;

RESET lock_timeout;
DROP TABLE by_user;

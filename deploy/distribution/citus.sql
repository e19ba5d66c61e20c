-- Distribute the tables that grow by user_id, on the coordinator of a Citus cluster. docs/scaling.md says when.
--
--   psql --no-psqlrc -v ON_ERROR_STOP=1 -f deploy/distribution/citus.sql "$DATABASE_URL"
--
-- Run keys.sql before, and stop the servers: each table is locked while its rows are copied to the workers.

\set QUIET on
SET client_min_messages = warning;

-- A table that is not distributed yet cannot refer to one that is: two foreign keys return at the end.
ALTER TABLE feedback DROP CONSTRAINT IF EXISTS feedback_message_id_fkey;
ALTER TABLE messages DROP CONSTRAINT IF EXISTS messages_conversation_id_fkey;

-- Users are on every node: their names are unique among all, and every row refers to its user without leaving its node.
SELECT create_reference_table('users')
WHERE NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = 'users'::regclass) \g /dev/null
SELECT create_distributed_table('conversations', 'user_id', colocate_with => 'none')
WHERE NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = 'conversations'::regclass AND partmethod = 'h') \g /dev/null
SELECT create_distributed_table(name, 'user_id', colocate_with => 'conversations')
FROM unnest(ARRAY[
    'messages', 'feedback', 'message_images', 'user_monthly_token_usage', 'user_daily_token_usage',
    'usage_adjustments', 'api_keys', 'refresh_tokens', 'revoked_tokens', 'password_resets', 'user_preferences',
    'user_model_categories', 'archived_keys'
]) AS name
WHERE NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = name::regclass AND partmethod = 'h') \g /dev/null

ALTER TABLE messages ADD CONSTRAINT messages_conversation_id_fkey
    FOREIGN KEY (user_id, conversation_id) REFERENCES conversations (user_id, id);
ALTER TABLE feedback ADD CONSTRAINT feedback_message_id_fkey
    FOREIGN KEY (user_id, message_id) REFERENCES messages (user_id, id);

-- The copies on the coordinator are no longer read.
SELECT truncate_local_data_after_distributing_table('users') \g /dev/null

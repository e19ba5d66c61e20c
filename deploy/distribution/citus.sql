-- Distribute the tables that grow by user_id, on the coordinator of a Citus cluster. docs/scaling.md says when.
--
--   psql --no-psqlrc -v ON_ERROR_STOP=1 -f deploy/distribution/citus.sql "$DATABASE_URL"
--
-- Run keys.sql before, and stop the servers: each table is locked while its rows are copied to the workers.

\set QUIET on
SET client_min_messages = warning;

-- Users are on every node: their names are unique among all, and every row refers to its user without leaving its node.
SELECT create_reference_table('users') \g /dev/null
SELECT create_distributed_table('conversations', 'user_id') \g /dev/null
SELECT create_distributed_table(name, 'user_id', colocate_with => 'conversations')
FROM unnest(ARRAY[
    'messages', 'feedback', 'message_images', 'user_monthly_token_usage', 'user_daily_token_usage',
    'usage_adjustments', 'api_keys', 'refresh_tokens', 'revoked_tokens', 'password_resets', 'user_preferences',
    'user_model_categories'
]) AS name \g /dev/null

-- The copies on the coordinator are no longer read.
SELECT truncate_local_data_after_distributing_table(logicalrelid) FROM pg_dist_partition
WHERE logicalrelid IN ('users'::regclass, 'conversations'::regclass) \g /dev/null

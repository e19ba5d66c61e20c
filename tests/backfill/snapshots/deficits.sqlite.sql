WITH days AS
  (SELECT 1 AS sides, user_id, usage_date, model, CAST(sum(input_tokens) AS BIGINT) AS input_tokens,
          CAST(sum(output_tokens) AS BIGINT) AS output_tokens, sum(total_cost) AS total_cost, CAST(sum(message_count) AS BIGINT) AS message_count,
          CAST(sum(unpriced_count) AS BIGINT) AS unpriced_count, CAST(sum(estimated_count) AS BIGINT) AS estimated_count
   FROM
     (SELECT user_id, usage_date, coalesce(model, '') AS model,
             CAST(sum(messages.input_tokens) AS BIGINT) AS input_tokens, CAST(sum(coalesce(messages.output_tokens,
                                                                                    0)) AS BIGINT) AS output_tokens,
             sum(coalesce(messages.cost, 0)) AS total_cost, CAST(sum(1) AS BIGINT) AS message_count,
             CAST(sum(CASE WHEN (messages.cost IS NULL) THEN 1 ELSE 0
                      END) AS BIGINT) AS unpriced_count,
             CAST(sum(CASE WHEN messages.usage_estimated THEN 1 ELSE 0
                      END) AS BIGINT) AS estimated_count
      FROM messages
      WHERE user_id BETWEEN :first_user AND :last_user
        AND usage_date BETWEEN :since AND :until
      GROUP BY user_id, usage_date, coalesce(model, '')
      HAVING user_id IN
        (SELECT id
         FROM users)
      UNION ALL SELECT user_id, usage_date, model, input_tokens, output_tokens, total_cost, message_count,
                       unpriced_count, estimated_count
      FROM usage_adjustments
      WHERE user_id BETWEEN :first_user AND :last_user
        AND usage_date BETWEEN :since AND :until) AS ledger
   GROUP BY user_id, usage_date, model
   UNION ALL SELECT 2, user_id, usage_date, model, input_tokens, output_tokens, total_cost, message_count,
                    unpriced_count, estimated_count
   FROM user_daily_token_usage
   WHERE user_id BETWEEN :first_user AND :last_user
     AND usage_date BETWEEN :since AND :until),
     months AS
  (SELECT sides, user_id, CAST(strftime('%Y', usage_date) AS INTEGER) AS YEAR,
          CAST(strftime('%m', usage_date) AS INTEGER) AS MONTH, CAST(sum(input_tokens) AS BIGINT) AS input_tokens,
          CAST(sum(output_tokens) AS BIGINT) AS output_tokens, sum(total_cost) AS total_cost, CAST(sum(message_count) AS BIGINT) AS message_count,
          CAST(sum(unpriced_count) AS BIGINT) AS unpriced_count, CAST(sum(estimated_count) AS BIGINT) AS estimated_count
   FROM days
   GROUP BY sides, user_id, CAST(strftime('%Y', usage_date) AS INTEGER),
            CAST(strftime('%m', usage_date) AS INTEGER)
   UNION ALL SELECT 4, user_id, YEAR, MONTH, CAST(sum(input_tokens) AS BIGINT) AS input_tokens,
                    CAST(sum(output_tokens) AS BIGINT) AS output_tokens, sum(total_cost) AS total_cost, CAST(sum(message_count) AS BIGINT) AS message_count,
                    CAST(sum(unpriced_count) AS BIGINT) AS unpriced_count, CAST(sum(estimated_count) AS BIGINT) AS estimated_count
   FROM user_monthly_token_usage
   WHERE user_id BETWEEN :first_user AND :last_user
     AND CAST(YEAR AS BIGINT) * 100 + MONTH BETWEEN :since_month AND :until_month
   GROUP BY user_id, YEAR, MONTH)
SELECT sum(sides) AS sides, user_id, CAST(NULL AS DATE) AS usage_date, '' AS model, YEAR, MONTH, input_tokens, output_tokens,
       total_cost, message_count, unpriced_count, estimated_count
FROM months
GROUP BY user_id, YEAR, MONTH, input_tokens, output_tokens, total_cost, message_count, unpriced_count,
         estimated_count
UNION ALL
SELECT sum(sides), user_id, usage_date, model, NULL, NULL, input_tokens, output_tokens, total_cost, message_count,
       unpriced_count, estimated_count
FROM days
GROUP BY user_id, usage_date, model, input_tokens, output_tokens, total_cost, message_count, unpriced_count,
         estimated_count
HAVING count(*) = 1
OR message_count = 0

WITH days AS
  (SELECT day_parts.user_id AS user_id, day_parts.usage_date AS usage_date, day_parts.model AS model,
          max(day_parts.is_found) AS is_found, CAST(sum(day_parts.expected_input_tokens) AS BIGINT) AS expected_input_tokens,
          CAST(sum(day_parts.expected_output_tokens) AS BIGINT) AS expected_output_tokens, sum(day_parts.expected_total_cost) AS expected_total_cost,
          CAST(sum(day_parts.expected_message_count) AS BIGINT) AS expected_message_count, CAST(sum(day_parts.expected_unpriced_count) AS BIGINT) AS expected_unpriced_count,
          CAST(sum(day_parts.expected_estimated_count) AS BIGINT) AS expected_estimated_count, CAST(sum(day_parts.found_input_tokens) AS BIGINT) AS found_input_tokens,
          CAST(sum(day_parts.found_output_tokens) AS BIGINT) AS found_output_tokens, sum(day_parts.found_total_cost) AS found_total_cost,
          CAST(sum(day_parts.found_message_count) AS BIGINT) AS found_message_count, CAST(sum(day_parts.found_unpriced_count) AS BIGINT) AS found_unpriced_count,
          CAST(sum(day_parts.found_estimated_count) AS BIGINT) AS found_estimated_count
   FROM
     (SELECT counted.user_id AS user_id, counted.usage_date AS usage_date, counted.model AS model,
             counted.expected_input_tokens AS expected_input_tokens, counted.expected_output_tokens AS expected_output_tokens,
             counted.expected_total_cost AS expected_total_cost, counted.expected_message_count AS expected_message_count,
             counted.expected_unpriced_count AS expected_unpriced_count, counted.expected_estimated_count AS expected_estimated_count, 0 AS found_input_tokens,
             0 AS found_output_tokens, 0 AS found_total_cost, 0 AS found_message_count, 0 AS found_unpriced_count,
             0 AS found_estimated_count, 0 AS is_found
      FROM
        (SELECT messages.user_id AS user_id, messages.usage_date AS usage_date, coalesce(messages.model,
                                                                                  '') AS model,
                CAST(sum(messages.input_tokens) AS BIGINT) AS expected_input_tokens, CAST(sum(coalesce(messages.output_tokens,
                                                                                                0)) AS BIGINT) AS expected_output_tokens,
                sum(coalesce(messages.cost, 0)) AS expected_total_cost, CAST(sum(1) AS BIGINT) AS expected_message_count,
                CAST(sum(CASE WHEN (messages.cost IS NULL) THEN 1 ELSE 0
                         END) AS BIGINT) AS expected_unpriced_count,
                CAST(sum(CASE WHEN messages.usage_estimated THEN 1 ELSE 0
                         END) AS BIGINT) AS expected_estimated_count
         FROM messages
         WHERE messages.user_id BETWEEN :first_user AND :last_user
           AND messages.usage_date BETWEEN :since AND :until
         GROUP BY messages.user_id, messages.usage_date, coalesce(messages.model,
                                                           '')
         HAVING messages.user_id IN
           (SELECT users.id
            FROM users)) AS counted
      UNION ALL SELECT usage_adjustments.user_id AS user_id, usage_adjustments.usage_date AS usage_date, usage_adjustments.model AS model,
                       usage_adjustments.input_tokens AS expected_input_tokens, usage_adjustments.output_tokens AS expected_output_tokens,
                       usage_adjustments.total_cost AS expected_total_cost, usage_adjustments.message_count AS expected_message_count,
                       usage_adjustments.unpriced_count AS expected_unpriced_count, usage_adjustments.estimated_count AS expected_estimated_count,
                       0 AS found_input_tokens, 0 AS found_output_tokens, 0 AS found_total_cost, 0 AS found_message_count,
                       0 AS found_unpriced_count, 0 AS found_estimated_count, 0
      FROM usage_adjustments
      WHERE usage_adjustments.user_id BETWEEN :first_user AND :last_user
        AND usage_adjustments.usage_date BETWEEN :since AND :until
      UNION ALL SELECT user_daily_token_usage.user_id AS user_id, user_daily_token_usage.usage_date AS usage_date,
                       user_daily_token_usage.model AS model, 0 AS expected_input_tokens, 0 AS expected_output_tokens, 0 AS expected_total_cost,
                       0 AS expected_message_count, 0 AS expected_unpriced_count, 0 AS expected_estimated_count,
                       user_daily_token_usage.input_tokens AS found_input_tokens, user_daily_token_usage.output_tokens AS found_output_tokens,
                       user_daily_token_usage.total_cost AS found_total_cost, user_daily_token_usage.message_count AS found_message_count,
                       user_daily_token_usage.unpriced_count AS found_unpriced_count, user_daily_token_usage.estimated_count AS found_estimated_count, 1
      FROM user_daily_token_usage
      WHERE user_daily_token_usage.user_id BETWEEN :first_user AND :last_user
        AND user_daily_token_usage.usage_date BETWEEN :since AND :until) AS day_parts
   GROUP BY day_parts.user_id, day_parts.usage_date, day_parts.model),
     months AS
  (SELECT month_parts.user_id AS user_id, month_parts.year AS YEAR, month_parts.month AS MONTH, max(month_parts.is_found) AS is_found,
          CAST(sum(month_parts.expected_input_tokens) AS BIGINT) AS expected_input_tokens, CAST(sum(month_parts.expected_output_tokens) AS BIGINT) AS expected_output_tokens,
          sum(month_parts.expected_total_cost) AS expected_total_cost, CAST(sum(month_parts.expected_message_count) AS BIGINT) AS expected_message_count,
          CAST(sum(month_parts.expected_unpriced_count) AS BIGINT) AS expected_unpriced_count, CAST(sum(month_parts.expected_estimated_count) AS BIGINT) AS expected_estimated_count,
          CAST(sum(month_parts.found_input_tokens) AS BIGINT) AS found_input_tokens, CAST(sum(month_parts.found_output_tokens) AS BIGINT) AS found_output_tokens,
          sum(month_parts.found_total_cost) AS found_total_cost, CAST(sum(month_parts.found_message_count) AS BIGINT) AS found_message_count,
          CAST(sum(month_parts.found_unpriced_count) AS BIGINT) AS found_unpriced_count, CAST(sum(month_parts.found_estimated_count) AS BIGINT) AS found_estimated_count,
          CAST(sum(month_parts.in_days_input_tokens) AS BIGINT) AS in_days_input_tokens, CAST(sum(month_parts.in_days_output_tokens) AS BIGINT) AS in_days_output_tokens,
          sum(month_parts.in_days_total_cost) AS in_days_total_cost, CAST(sum(month_parts.in_days_message_count) AS BIGINT) AS in_days_message_count,
          CAST(sum(month_parts.in_days_unpriced_count) AS BIGINT) AS in_days_unpriced_count, CAST(sum(month_parts.in_days_estimated_count) AS BIGINT) AS in_days_estimated_count
   FROM
     (SELECT days.user_id AS user_id, CAST(CAST(STRFTIME('%Y',
                                                  days.usage_date) AS INTEGER) AS INTEGER) AS YEAR,
             CAST(CAST(STRFTIME('%m', days.usage_date) AS INTEGER) AS INTEGER) AS MONTH, days.expected_input_tokens AS expected_input_tokens,
             days.expected_output_tokens AS expected_output_tokens, days.expected_total_cost AS expected_total_cost,
             days.expected_message_count AS expected_message_count, days.expected_unpriced_count AS expected_unpriced_count,
             days.expected_estimated_count AS expected_estimated_count, 0 AS found_input_tokens, 0 AS found_output_tokens, 0 AS found_total_cost,
             0 AS found_message_count, 0 AS found_unpriced_count, 0 AS found_estimated_count,
             days.found_input_tokens AS in_days_input_tokens, days.found_output_tokens AS in_days_output_tokens,
             days.found_total_cost AS in_days_total_cost, days.found_message_count AS in_days_message_count,
             days.found_unpriced_count AS in_days_unpriced_count, days.found_estimated_count AS in_days_estimated_count, 0 AS is_found
      FROM days
      UNION ALL SELECT user_monthly_token_usage.user_id AS user_id, user_monthly_token_usage.year AS YEAR, user_monthly_token_usage.month AS MONTH,
                       0 AS expected_input_tokens, 0 AS expected_output_tokens, 0 AS expected_total_cost, 0 AS expected_message_count,
                       0 AS expected_unpriced_count, 0 AS expected_estimated_count,
                       user_monthly_token_usage.input_tokens AS found_input_tokens, user_monthly_token_usage.output_tokens AS found_output_tokens,
                       user_monthly_token_usage.total_cost AS found_total_cost, user_monthly_token_usage.message_count AS found_message_count,
                       user_monthly_token_usage.unpriced_count AS found_unpriced_count, user_monthly_token_usage.estimated_count AS found_estimated_count,
                       0 AS in_days_input_tokens, 0 AS in_days_output_tokens, 0 AS in_days_total_cost, 0 AS in_days_message_count,
                       0 AS in_days_unpriced_count, 0 AS in_days_estimated_count, 1
      FROM user_monthly_token_usage
      WHERE user_monthly_token_usage.user_id BETWEEN :first_user AND :last_user
        AND CAST(user_monthly_token_usage.year AS BIGINT) * :param_1 + user_monthly_token_usage.month BETWEEN :since_month AND :until_month) AS month_parts
   GROUP BY month_parts.user_id, month_parts.year, month_parts.month)
SELECT rows.user_id AS user_id, rows.usage_date AS usage_date, rows.model AS model, rows.year AS YEAR, rows.month AS MONTH,
       rows.is_found AS is_found, rows.expected_input_tokens AS expected_input_tokens,
       rows.expected_output_tokens AS expected_output_tokens, rows.expected_total_cost AS expected_total_cost,
       rows.expected_message_count AS expected_message_count, rows.expected_unpriced_count AS expected_unpriced_count,
       rows.expected_estimated_count AS expected_estimated_count, rows.found_input_tokens AS found_input_tokens,
       rows.found_output_tokens AS found_output_tokens, rows.found_total_cost AS found_total_cost, rows.found_message_count AS found_message_count,
       rows.found_unpriced_count AS found_unpriced_count, rows.found_estimated_count AS found_estimated_count,
       rows.in_days_input_tokens AS in_days_input_tokens, rows.in_days_output_tokens AS in_days_output_tokens,
       rows.in_days_total_cost AS in_days_total_cost, rows.in_days_message_count AS in_days_message_count,
       rows.in_days_unpriced_count AS in_days_unpriced_count, rows.in_days_estimated_count AS in_days_estimated_count
FROM
  (SELECT months.user_id AS user_id, CAST(NULL AS DATE) AS usage_date, '' AS model, months.year AS YEAR, months.month AS MONTH,
          months.is_found AS is_found, months.expected_input_tokens AS expected_input_tokens,
          months.expected_output_tokens AS expected_output_tokens, months.expected_total_cost AS expected_total_cost,
          months.expected_message_count AS expected_message_count, months.expected_unpriced_count AS expected_unpriced_count,
          months.expected_estimated_count AS expected_estimated_count, months.found_input_tokens AS found_input_tokens,
          months.found_output_tokens AS found_output_tokens, months.found_total_cost AS found_total_cost,
          months.found_message_count AS found_message_count, months.found_unpriced_count AS found_unpriced_count,
          months.found_estimated_count AS found_estimated_count, months.in_days_input_tokens AS in_days_input_tokens,
          months.in_days_output_tokens AS in_days_output_tokens, months.in_days_total_cost AS in_days_total_cost,
          months.in_days_message_count AS in_days_message_count, months.in_days_unpriced_count AS in_days_unpriced_count,
          months.in_days_estimated_count AS in_days_estimated_count
   FROM months
   UNION ALL SELECT days.user_id AS user_id, days.usage_date AS usage_date, days.model AS model, CAST(NULL AS INTEGER) AS YEAR,
                    CAST(NULL AS INTEGER) AS MONTH, days.is_found AS is_found, days.expected_input_tokens AS expected_input_tokens,
                    days.expected_output_tokens AS expected_output_tokens, days.expected_total_cost AS expected_total_cost,
                    days.expected_message_count AS expected_message_count, days.expected_unpriced_count AS expected_unpriced_count,
                    days.expected_estimated_count AS expected_estimated_count, days.found_input_tokens AS found_input_tokens,
                    days.found_output_tokens AS found_output_tokens, days.found_total_cost AS found_total_cost,
                    days.found_message_count AS found_message_count, days.found_unpriced_count AS found_unpriced_count,
                    days.found_estimated_count AS found_estimated_count, 0 AS in_days_input_tokens, 0 AS in_days_output_tokens, 0 AS in_days_total_cost,
                    0 AS in_days_message_count, 0 AS in_days_unpriced_count, 0 AS in_days_estimated_count
   FROM days
   WHERE days.expected_input_tokens != days.found_input_tokens
     OR days.expected_output_tokens != days.found_output_tokens
     OR days.expected_total_cost != days.found_total_cost
     OR days.expected_message_count != days.found_message_count
     OR days.expected_unpriced_count != days.found_unpriced_count
     OR days.expected_estimated_count != days.found_estimated_count
     OR days.is_found = 1
     AND days.expected_message_count = 0) AS ROWS

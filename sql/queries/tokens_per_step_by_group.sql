-- What decoding gained in each group: tokens written per decode step (plain decoding: 1), and the share of tokens that
-- relaxed verification let through though the model would have written another.
--
-- :domain text = movies  the domain
-- :run_id text = null  one run; all runs when it is not given

SELECT
    kind,
    group_name,
    sum(texts)::bigint AS texts,
    sum(tokens)::bigint AS tokens,
    round(sum(tokens) / nullif(sum(steps), 0), 3) AS tokens_per_step,
    round(sum(relaxed)::numeric / nullif(sum(tokens), 0), 4) AS relaxed_token_rate
FROM features.decoding_efficiency
WHERE domain = :domain AND (:run_id IS NULL OR run_id = :run_id)
GROUP BY kind, group_name
ORDER BY kind, tokens_per_step DESC, group_name;

-- Applied by every `dare warehouse upgrade`. A migration that changes a column used here drops the view first.
CREATE OR REPLACE VIEW features.decoding_efficiency AS
SELECT
    domain,
    run_id,
    kind,
    group_name,
    count(*) AS texts,
    sum(new_tokens) AS tokens,
    sum(steps) AS steps,
    sum(relaxed) AS relaxed,
    round(sum(new_tokens)::numeric / nullif(sum(steps), 0), 3) AS tokens_per_step,
    round(sum(accepted)::numeric / nullif(sum(drafted), 0), 4) AS acceptance,
    round(sum(relaxed)::numeric / nullif(sum(new_tokens), 0), 4) AS relaxed_token_rate
FROM knowledge.knowledge
GROUP BY domain, run_id, kind, group_name;

COMMENT ON VIEW features.decoding_efficiency IS
    'What decoding gained: one row per run, kind and retrieval-pool group';
COMMENT ON COLUMN features.decoding_efficiency.tokens_per_step IS 'Tokens per decode step; plain decoding: 1';
COMMENT ON COLUMN features.decoding_efficiency.acceptance IS 'Of the drafted tokens, those that became text';
COMMENT ON COLUMN features.decoding_efficiency.relaxed_token_rate IS
    'Of all tokens, those that relaxed verification let pass though the model would have written another';

-- Applied by every `dare warehouse upgrade`. A migration that changes a column used here drops the view first.
CREATE OR REPLACE VIEW features.quality AS
SELECT
    r.domain,
    r.run_id,
    r.state,
    r.started_at,
    r.planned,
    r.generated,
    r.failed,
    r.quarantined,
    r.loaded,
    CASE WHEN r.state = 'loaded' THEN r.generated - r.quarantined - r.loaded END AS unaccounted,
    round(r.quarantined::numeric / nullif(r.generated, 0), 4) AS quarantined_share,
    coalesce(rules.texts, '{}') AS quarantined_by_rule
FROM knowledge.generation_run AS r
LEFT JOIN LATERAL (
    SELECT jsonb_object_agg(rule, texts) AS texts FROM (
        SELECT rule, count(*) AS texts FROM knowledge.quarantine WHERE run_id = r.run_id GROUP BY rule
    ) AS of_rule
) AS rules ON true;

COMMENT ON VIEW features.quality IS
    'What became of each run''s texts: one row per run';
COMMENT ON COLUMN features.quality.failed IS 'Requests that no text could be written for';
COMMENT ON COLUMN features.quality.unaccounted IS
    'Texts of a loaded run that are neither loaded nor in quarantine: a defect where it is not 0';
COMMENT ON COLUMN features.quality.quarantined_by_rule IS 'Rows in quarantine by rule; a text may break several';

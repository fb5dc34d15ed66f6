-- Applied by every `dare warehouse upgrade`. A migration that changes a column used here drops the view first.
CREATE OR REPLACE VIEW features.freshness AS
SELECT
    n.domain,
    n.kind,
    count(*) AS entities,
    count(k.request_id) AS with_knowledge,
    round(count(k.request_id)::numeric / count(*), 4) AS share,
    min(k.available_at) AS oldest,
    max(k.available_at) AS newest,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY now() - k.available_at) AS median_age
FROM knowledge.entity AS n
LEFT JOIN knowledge.knowledge AS k
    ON (k.domain, k.kind, k.entity_id) = (n.domain, n.kind, n.entity_id) AND k.valid_to IS NULL
WHERE n.deleted_at IS NULL
GROUP BY n.domain, n.kind;

COMMENT ON VIEW features.freshness IS
    'How complete and how old the knowledge is: one row per domain and kind of entity';
COMMENT ON COLUMN features.freshness.share IS 'Of the entities, those with valid knowledge';

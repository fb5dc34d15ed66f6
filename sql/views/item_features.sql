-- Applied by every `dare warehouse upgrade`. A migration that changes a column used here drops the view first.
CREATE OR REPLACE VIEW features.item_features AS
SELECT
    k.domain,
    k.entity_id,
    n.group_name,
    n.attributes,
    k.text,
    e.encoder,
    e.embedding,
    k.model,
    k.pool_version,
    k.data_as_of,
    k.available_at,
    k.request_id
FROM knowledge.knowledge_embedding AS e
JOIN knowledge.knowledge AS k USING (request_id)
JOIN knowledge.entity AS n USING (domain, kind, entity_id)
WHERE k.kind = 'item' AND k.valid_to IS NULL AND n.deleted_at IS NULL;

COMMENT ON VIEW features.item_features IS
    'The items'' currently valid knowledge and its vector: one row per item and encoder';

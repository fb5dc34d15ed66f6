-- Applied by every `dare warehouse upgrade`. A migration that changes a column used here drops the view first.
CREATE OR REPLACE VIEW features.user AS
SELECT
    k.domain,
    k.entity_id AS user_id,
    n.group_name,
    n.attributes,
    k.text,
    c.name AS encoder,
    e.embedding,
    k.model,
    k.pool_version,
    k.data_as_of,
    k.available_at,
    k.request_id,
    e.form
FROM knowledge.knowledge AS k
JOIN knowledge.entity AS n USING (domain, kind, entity_id)
LEFT JOIN knowledge.encoder AS c ON c.in_force
LEFT JOIN knowledge.knowledge_embedding AS e
    ON (e.domain, e.request_id, e.encoder) = (k.domain, k.request_id, c.name)
WHERE k.kind = 'user' AND k.valid_to IS NULL AND n.deleted_at IS NULL;

COMMENT ON VIEW features.user IS
    'The users'' valid knowledge, with its vector by the encoder in force: one row per user';
COMMENT ON COLUMN features.user.attributes IS 'The user as the source last described it';
COMMENT ON COLUMN features.user.data_as_of IS 'Newest source event that the prompt could see';
COMMENT ON COLUMN features.user.available_at IS 'When the text was written: no model saw it before';
COMMENT ON COLUMN features.user.form IS
    'What the vector is made of: answer, attributes+answer or history+answer';

-- Applied by every `dare warehouse upgrade`. A migration that changes a column used here drops the view first.
CREATE OR REPLACE VIEW features.user_history AS
SELECT
    k.domain,
    k.entity_id AS user_id,
    k.group_name,
    k.text,
    c.name AS encoder,
    e.embedding,
    k.model,
    k.data_as_of,
    k.available_at,
    k.valid_from,
    k.valid_to,
    k.request_id,
    e.form
FROM knowledge.knowledge AS k
LEFT JOIN knowledge.encoder AS c ON c.in_force
LEFT JOIN knowledge.knowledge_embedding AS e
    ON (e.domain, e.request_id, e.encoder) = (k.domain, k.request_id, c.name)
WHERE k.kind = 'user';

COMMENT ON VIEW features.user_history IS
    'Every text ever loaded about users, replaced ones too, with its vector by the encoder in force';
COMMENT ON COLUMN features.user_history.group_name IS 'The user''s group when the text was asked for';
COMMENT ON COLUMN features.user_history.data_as_of IS 'Newest source event that the prompt could see';
COMMENT ON COLUMN features.user_history.available_at IS 'When the text was written: no model saw it before';
COMMENT ON COLUMN features.user_history.valid_to IS 'When it was replaced, or its user was gone; null while valid';
COMMENT ON COLUMN features.user_history.form IS
    'What the vector is made of: answer, attributes+answer or history+answer';

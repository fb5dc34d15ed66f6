-- How complete and how old the knowledge is: per kind, the entities, those with valid knowledge, and when it was written.
--
-- :domain text = movies  the domain

SELECT
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
WHERE n.domain = :domain AND n.deleted_at IS NULL
GROUP BY n.kind
ORDER BY n.kind;

-- How complete and how old the knowledge is: per kind, the entities, those with valid knowledge, and when it was written.
--
-- :domain text = movies  the domain

SELECT kind, entities, with_knowledge, share, oldest, newest, median_age
FROM features.freshness
WHERE domain = :domain
ORDER BY kind;

-- Applied by every `dare warehouse upgrade`, last: who may do what. The roles are given to logins by GRANT.
-- The reader selects views and calls functions; whatever they read belongs to others.
GRANT USAGE ON SCHEMA features TO dare_reader, dare_loader;
GRANT SELECT ON ALL TABLES IN SCHEMA features TO dare_reader, dare_loader;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA features, knowledge FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA features TO dare_reader, dare_loader;

-- The loader writes rows and, in staging, tables of its own; partitions and indexes come from functions.
GRANT USAGE ON SCHEMA knowledge, partitions TO dare_loader;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA knowledge TO dare_loader;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA knowledge TO dare_loader;
GRANT USAGE, CREATE ON SCHEMA staging TO dare_loader;

-- The source may belong to somebody else, who then decides.
DO $$ BEGIN
    IF (SELECT pg_has_role(nspowner, 'MEMBER') FROM pg_namespace WHERE nspname = 'source') THEN
        GRANT USAGE, CREATE ON SCHEMA source TO dare_loader;
    END IF;
END $$;

"""The warehouse: PostgreSQL with pgvector, embedded or by URL."""

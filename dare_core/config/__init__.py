"""Settings, domains, and what knowledge is about: light, so that a DAG file can import it."""

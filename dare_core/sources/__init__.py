"""Source tables: adapters that read public data sets, and their import into a database that Spark pulls from."""

"""Spark programs, started by ``spark-submit`` here (:mod:`dare_core.sources.spark_submit`) or on a cluster.

On a cluster the executors unpickle :mod:`spark_jobs.postgres_source`, so this package, ``dare_core`` and their
dependencies must be installed in the executors' Python, or shipped with ``--py-files`` and ``--archives``.
"""

"""Spark programs, started by ``spark-submit``: on this machine by :mod:`dare_core.spark_submit`, or on a cluster.

On a cluster the executors unpickle :mod:`spark_jobs.postgres_source`, so this package, ``dare_core`` and their
dependencies must be installed in the executors' Python, or shipped with ``--py-files`` and ``--archives``.
"""

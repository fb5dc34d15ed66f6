"""Airflow on this machine, for the demo, ``dare ui`` and tests; production has an Airflow of its own.

Airflow is never imported here: its components are child processes (scheduler with LocalExecutor, DAG processor, API
server on loopback), its metadata a database beside the warehouse.
"""

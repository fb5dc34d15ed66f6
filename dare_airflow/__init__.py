"""The Airflow side: stages as tasks, parameters, assets, the plugin, and Airflow on this machine."""

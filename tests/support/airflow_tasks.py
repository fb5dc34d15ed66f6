"""What a person does to a task in Airflow's UI."""

from dare_airflow.client import AirflowApi, run_path


def clear(api: AirflowApi, dag_id: str, run_id: str, task_id: str) -> None:
    """Run one task of an ended run again."""
    body = {"dry_run": False, "dag_run_id": run_id, "task_ids": [task_id], "only_failed": False}
    api.call("POST", f"dags/{dag_id}/clearTaskInstances", json=body)


def respond(api: AirflowApi, dag_id: str, run_id: str, task_id: str, option: str) -> None:
    """Choose an option of a task that waits for a person."""
    path = f"{run_path(dag_id, run_id)}/taskInstances/{task_id}/-1/hitlDetails"
    api.call("PATCH", path, json={"chosen_options": [option], "params_input": {}})

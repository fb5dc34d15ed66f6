"""What filesystems are told by environment variables, and what of it is secret."""

import pytest

from dare_core.storage import credentials


def test_the_storage_s_variables_are_passed_on_and_only_their_secrets_are_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in credentials.variables():
        monkeypatch.delenv(name)
    given = {
        "AWS_ACCESS_KEY_ID": "minio-user",
        "AWS_SECRET_ACCESS_KEY": "hunter2hunter2",
        "AWS_ENDPOINT_URL": "http://store:9000",
        "AWS_SESSION_TOKEN": "none",  # too short to be one
        "FSSPEC_ABFS": '{"account_name": "somebody", "client": {"sas_token": "sv=2026&sig=x"}}',
        "FSSPEC_GCS": "{no JSON",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OTHER_SECRET", "not of the storage")
    assert credentials.variables() == given
    assert credentials.secrets() == {"minio-user", "hunter2hunter2", "sv=2026&sig=x"}

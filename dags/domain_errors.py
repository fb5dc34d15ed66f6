"""Shows every broken file of `config/` as an import error in Airflow's UI.

A file of its own, so that the DAGs of the other domains stay: Airflow drops whatever a file with an error defines.
"""

from dare_airflow.installation import DOMAIN_ERRORS
from dare_core.errors import SettingError

if DOMAIN_ERRORS:
    problems = "\n".join(map(str, DOMAIN_ERRORS))
    raise SettingError(f"These domains have no DAGs until their files are mended:\n{problems}")

"""What the suites of a stage find: warnings are kept for the run's report, anything worse ends the run."""

import json
import logging
from collections.abc import Sequence

from dare_core.config.settings import Settings
from dare_core.knowledge import shards
from dare_core.quality import findings
from dare_core.quality.findings import Finding
from dare_core.stages.request import RunRequest

log = logging.getLogger(__name__)


def weigh(settings: Settings, request: RunRequest, suite: str, found: Sequence[Finding], what: str) -> list[str]:
    """Log and keep what a suite warns of.

    Args:
        settings: in force.
        request: of the run.
        suite: names the file that is kept.
        found: by the suite.
        what: was checked, in words.

    Returns:
        The warnings, a sentence each.

    Raises:
        QualityError: it found more than that.
    """
    sentences = [finding.sentence for finding in found if finding.severity == "warning"]
    for sentence in sentences:
        log.warning("%s, %s: %s", what, suite, sentence)
    shards.write_json(findings.warnings_path(settings.run_dir(request.run_id), suite), json.dumps(sentences))
    findings.require(found, what, settings.data_docs_dir)
    return sentences

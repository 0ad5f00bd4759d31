"""The released policies in `policies`: small, and successful without training."""

from pathlib import Path

import pytest

from imf_ray.folders import EPISODES_FILE
from imf_ray.rollout.record_store import read_records
from tests.helpers import REPO_ROOT
from tests.helpers.commands import run_command

POLICIES = REPO_ROOT / "policies"
MAX_BYTES = 8_000_000


@pytest.mark.slow
def test_the_released_transfer_policy_succeeds(tmp_path: Path) -> None:
    policy = POLICIES / "sim_transfer"
    assert sum(path.stat().st_size for path in policy.iterdir()) < MAX_BYTES
    process = run_command(
        "evaluate",
        f"checkpoint={policy}",
        "evaluate.num_episodes=4",
        f"evaluate.output_dir={tmp_path}",
        "cluster.include_dashboard=false",
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    records = read_records(tmp_path / EPISODES_FILE)
    # Fewer than its average success rate would give, because rounding differs between processors.
    assert len(records) == 4 and sum(record.success for record in records) >= 3

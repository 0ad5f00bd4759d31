"""The policies that the repository holds are small and work at once."""

from pathlib import Path

from imf_ray.rollout.record_store import EPISODES_FILE, read_records
from tests.helpers import REPO_ROOT
from tests.helpers.commands import run_command

POLICIES = REPO_ROOT / "policies"
MOST_BYTES = 8_000_000


def test_the_transfer_policy_moves_the_cube_from_arm_to_arm(tmp_path: Path) -> None:
    policy = POLICIES / "sim_transfer"
    assert sum(path.stat().st_size for path in policy.iterdir()) < MOST_BYTES
    ended = run_command(
        "evaluate",
        f"checkpoint={policy}",
        "evaluate.num_episodes=4",
        f"evaluate.output_dir={tmp_path}",
        "cluster.include_dashboard=false",
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    records = read_records(tmp_path / EPISODES_FILE)
    # A little less than on average: other processors round otherwise.
    assert len(records) == 4 and sum(record.success for record in records) >= 3

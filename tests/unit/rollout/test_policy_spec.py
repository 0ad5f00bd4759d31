"""Names of policies: text forms, kinds and paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from imf_ray.errors import UserError
from imf_ray.rollout.policy_spec import EXPERT, PolicyKind, PolicySpec


@pytest.mark.parametrize(
    ("text", "kind", "path"),
    [
        ("runs/a/checkpoint_00000001", PolicyKind.CHECKPOINT, "runs/a/checkpoint_00000001"),
        ("s3://bucket/a/checkpoint_00000001", PolicyKind.CHECKPOINT, None),
        ("untrained:runs/a", PolicyKind.UNTRAINED, "runs/a"),
        ("replay:data/demos", PolicyKind.REPLAY, "data/demos"),
        ("expert", PolicyKind.EXPERT, ""),
    ],
)
def test_text_forms(text: str, kind: PolicyKind, path: str | None) -> None:
    spec = PolicySpec.parse(text)
    assert (spec.kind, spec.path) == (kind, text if path is None else path)
    assert str(spec) == text
    assert spec.is_agent == (kind in (PolicyKind.CHECKPOINT, PolicyKind.UNTRAINED))


def test_resolved_paths_are_absolute_and_local(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    untrained = PolicySpec.parse("untrained:runs/a").resolve()
    assert str(untrained) == f"untrained:{tmp_path / 'runs' / 'a'}"
    assert untrained.local_path == tmp_path / "runs" / "a"
    assert EXPERT.resolve() == EXPERT == PolicySpec.parse("expert")
    remote = PolicySpec.parse("memory://bucket/a").resolve()
    assert Path(remote.path).is_absolute() and remote.local_path == Path(remote.path)
    with pytest.raises(UserError, match="a replay needs episodes in a local folder"):
        PolicySpec.parse("replay:memory://bucket/demos").resolve()


@pytest.mark.parametrize("text", ["replay:", "untrained:"])
def test_a_prefix_without_a_path_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=text):
        PolicySpec.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("expert", "expert"),
        ("runs/sweep/trials/03-n_emb_96/checkpoint_00000300", "03-n_emb_96/checkpoint_00000300"),
        ("untrained:s3://bucket/runs/03/checkpoint_00000300", "untrained 03/checkpoint_00000300"),
        ("replay:data/transfer/episode_0.hdf5", "replay transfer/episode_0.hdf5"),
    ],
)
def test_the_short_name_says_run_and_step(text: str, expected: str) -> None:
    assert PolicySpec.parse(text).short_name == expected

"""What is installed is what was tested: the lock file, its hashes, and the workflow's actions."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def requirements(name):
    """{package==version ; where: hashes} of a requirements file."""
    text = re.sub(r"\\\n\s*", "", (ROOT / name).read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    split = [re.split(r"\s+--hash=", line) for line in lines]
    return {re.sub(r"\s+", "", line): hashes for line, *hashes in split}


def test_hashes_are_of_the_versions_that_are_locked():
    """Make them again with the command in SECURITY.md where this fails."""
    hashed = requirements("requirements.hashes")
    assert set(hashed) == set(requirements("requirements.lock"))
    assert all(hashes for hashes in hashed.values())
    assert all(
        re.fullmatch(r"sha256:[0-9a-f]{64}", h) for hashes in hashed.values() for h in hashes
    )


@pytest.mark.parametrize(
    "workflow", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem
)
def test_actions_are_pinned_and_may_only_read(workflow):
    text = workflow.read_text()
    actions = re.findall(r"uses: (\S+)", text)
    assert actions
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in actions)
    assert "\npermissions:\n  contents: read\n" in text
    assert len(re.findall(r": write", text)) == 0

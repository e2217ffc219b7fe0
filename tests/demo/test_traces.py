"""The search for what must be nowhere finds it where it is. Source: the issue, "searching every file under the data
directory for a task id, a bearer token or a canary finds nothing".
"""

from pathlib import Path

from tasktrail.demo.traces import found_in


def test_a_trace_is_found_in_whichever_file_it_is(tmp_path: Path) -> None:
    """Hidden, deep, binary, at the very end, in the middle of something else."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "clean").write_bytes(b"nothing here")
    (tmp_path / "empty").touch()
    (tmp_path / ".hidden").write_bytes(b"\x00\xffcanary-1")
    (tmp_path / "a" / "b" / "block.blk").write_bytes(b"\0" * 5_000_000 + b"xcanary-2x")
    (tmp_path / "link").symlink_to(tmp_path / ".hidden")
    files, hits = found_in(tmp_path, {"one": "canary-1", "two": "canary-2", "three": "canary-3"})
    assert files == 4
    assert hits == [".hidden: one", "a/b/block.blk: two"]


def test_an_empty_directory_holds_nothing(tmp_path: Path) -> None:
    """And says how little was searched."""
    assert found_in(tmp_path, {"one": "canary-1"}) == (0, [])

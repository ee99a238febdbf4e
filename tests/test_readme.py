"""The README: short, and its Python runs as printed but for narrower networks and fewer images."""

import re

import pages
import pytest


def test_it_is_read_in_one_sitting():
    text = re.sub(r"<!--.*?-->", "", pages.README.read_text(encoding="utf-8"))  # readers do not see comments
    assert len(text.split()) <= 1500


def test_its_python_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlxtend", reason="the extra 'data' is not installed")
    monkeypatch.chdir(tmp_path)
    assert len(pages.blocks(pages.README, "python")) == 2
    names = pages.run(pages.README)
    assert (tmp_path / "net.safetensors").is_file()
    assert (names["guess"].label == names["truth"]).float().mean() > 0.7
    assert names["net"].finished_tasks == 1 and names["net"].current_task == 1

"""The README's Python, run as printed but for the width of its networks."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    names = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block.replace("2000", "64"), str(README), "exec"), names)
    assert (tmp_path / "net.safetensors").is_file()
    assert (names["guess"].label == names["truth"]).float().mean() > 0.8
    assert names["net"].finished_tasks == 1 and names["net"].current_task == 1


def test_the_readme_names_files_that_exist():
    text = README.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert len(links) > 8
    for link in links:
        assert (README.parent / link).exists(), link

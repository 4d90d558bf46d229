"""Notebooks run from top to bottom on a finished run, and are committed without output."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_notebook_runs(file, finished, monkeypatch):
    """Cell after cell in one namespace, as a kernel would; what the last lines show is shown to nobody."""
    monkeypatch.setenv("IA_RUN", str(finished))
    cells = [c for c in json.loads(file.read_text())["cells"] if c["cell_type"] == "code"]
    assert cells
    namespace = {}
    for n, cell in enumerate(cells):
        assert cell["outputs"] == []
        exec(compile("".join(cell["source"]), f"{file.name}, code cell {n}", "exec"), namespace)
    # The change of a weight, formed in full.
    ia = namespace["ia"]
    whole = sum(((ia[t]["a"] @ ia[t]["b"]) ** 2).sum() for t in ia)
    assert sum(v.sum() for v in namespace["inner"](ia, ia).values()) == pytest.approx(float(whole), rel=1e-4)
    assert set(namespace["table"].columns) >= {"organism+ia", "organism", "base+ia", "base"}
